"""The folder of a small model for an environment: built once from a teacher's episodes, as `model_folder`
builds one from dialogues.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from proactor.config_base import ConfigError, SmallModel
from proactor.engine import ChatFormat, Sample, ToolChat, atomic_folder
from proactor.episode_config import EpisodeConfig, EpisodePretrain
from proactor.progress import Progress
from proactor.training.demonstrations import Demonstrations
from proactor.training.episodes import open_tasks, open_user
from proactor.training.method_credit import Credit
from proactor.training.model_folder import HELD_OUT, PARTS, share_progress
from proactor.training.pretrain import fit, fit_line, steps_of
from proactor.training.provenance import build_once, write_environment
from proactor.training.small_model import build_model, export, train_tokenizer
from proactor.training.steps import derive_seed
from proactor.training.token_rows import TokenRow

BYTES = 259
"""The vocabulary of a tokenizer of bytes and special tokens alone."""
LEARNED_TEXTS = 400
"""Episodes whose text the tokenizer is trained on."""


def build_episode_model(config: EpisodeConfig, section: EpisodePretrain, ui: Progress) -> None:
    """Train a tokenizer and a model on the teacher's episodes of the training tasks, and write them as a
    bitsandbytes-4bit folder.

    Of the tasks that neither dev nor test holds, those of `Pretrain.share`, at most ``limit``; a twentieth of
    them is held out to decide when to stop. Raises ConfigError as `check_destination` and where too few are
    left, WriterError while another process builds it.
    """
    build_once(config.model, lambda folder: _build(config, section, folder, ui))


def _build(config: EpisodeConfig, section: EpisodePretrain, folder: Path, ui: Progress) -> None:
    size, thoughts = section.size, config.sft.thoughts if config.sft is not None else True
    pool = config.environment.model_copy(update={"share": section.share})
    gym, parts = open_tasks(config.model_copy(update={"environment": pool}), open_user(config))
    tasks = parts.train[: section.limit]
    credit = Credit.of(config.method)

    def taught_by(tokenizer: Any) -> Demonstrations:
        chat = ToolChat(ChatFormat(tokenizer))
        return Demonstrations.of(gym, chat, thoughts, section.teacher, credit.wording, credit.format_taught)

    texts = _texts(taught_by(train_tokenizer([], BYTES)), tasks)
    tokenizer = train_tokenizer(texts, size.vocabulary, size.pieces)
    taught = taught_by(tokenizer)
    rows, episodes, left_out = list[TokenRow](), 0, 0
    for task in tasks:
        samples = taught.samples(task)
        if isinstance(samples, str):
            left_out += 1
        else:
            episodes += 1
            rows += map(episode_row, samples)
    number = min(HELD_OUT, max(1, len(rows) // 20))
    held_out, train = rows[:number], rows[number:]
    if not train:
        raise ConfigError(f"pretrain: {episodes} episodes of the teacher; two are the least")
    longest = max(len(row.ids) for row in rows)
    if longest > size.context:
        raise ConfigError(f"pretrain.size.context: {size.context} tokens; an episode has up to {longest}")
    teacher = f"{episodes} episodes of the teacher ({section.teacher})"
    ui.say(f"{gym.name}: {teacher}, {left_out} left out, up to {longest} tokens")
    length = f"{section.steps} steps, at most " if section.steps else ""
    ui.phase(f"pre-training a small model for {length}{section.seconds:.0f} s", PARTS)
    model = build_model(tokenizer, size)
    history = fit(
        model,
        _batches(train, size),
        held_out,
        size,
        tokenizer.pad_token_id,
        seconds=section.seconds,
        steps=section.steps,
        progress=share_progress(ui),
    )
    steps = steps_of(history, section)
    with atomic_folder(folder) as whole:
        export(model, tokenizer, whole)
        write_environment(whole, config.environment, steps)
    ui.say(f"{config.model}: written, {fit_line(history, steps)}")


def _texts(taught: Demonstrations, tasks: Sequence[str]) -> Iterator[str]:
    """Some episodes as the template writes them: read back from a tokenizer of bytes."""
    tokenizer = taught.chat.template.chat.tokenizer
    for task in tasks[:LEARNED_TEXTS]:
        samples = taught.samples(task)
        for sample in () if isinstance(samples, str) else samples:
            yield tokenizer.decode(sample.prompt_ids + sample.token_ids, skip_special_tokens=True)


def episode_row(sample: Sample) -> TokenRow:
    """An episode for training: its prompt is the trunk, what follows one segment with the sample's mask."""
    *prompt, last = sample.prompt_ids
    seen = len(prompt)
    row = TokenRow(prompt, list(range(seen)), [0] * seen, [0], [0.0] * seen)
    row.branch(seen, [last, *sample.token_ids], 0)
    row.weight[seen:] = [0.0, *map(float, sample.trained_mask())]
    return row


def _batches(rows: Sequence[TokenRow], size: SmallModel) -> Iterator[list[TokenRow]]:
    """Endless batches of rows of similar length, in a new order each time round."""
    for epoch in itertools.count():
        order = random.Random(derive_seed(size.seed, "episodes", epoch))
        shuffled = order.sample(rows, len(rows))
        pool = size.batch * 16
        for start in range(0, len(shuffled), pool):
            near = sorted(shuffled[start : start + pool], key=lambda row: len(row.ids))
            batches = [near[i : i + size.batch] for i in range(0, len(near), size.batch)]
            order.shuffle(batches)
            yield from batches
