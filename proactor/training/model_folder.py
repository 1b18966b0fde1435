"""The folder of a config's small model: built once from training dialogues, with a record of its data."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from proactor.config import RunConfig
from proactor.config_base import ConfigError, Pretrain, SmallModel
from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.prompt import PromptEncoder, PromptStyle, system_message, target_text
from proactor.engine import ChatFormat, atomic_folder
from proactor.progress import Progress
from proactor.sources import load
from proactor.training.corpora import load_corpus, merge_catalogs, prompt_style
from proactor.training.pretrain import fit_line, pretrain, steps_of
from proactor.training.provenance import build_once, write_provenance
from proactor.training.small_model import build_model, export, train_tokenizer
from proactor.training.token_rows import held_out_row

HELD_OUT = 96
"""Most dialogues that the held-out loss is computed on."""
PARTS = 100
"""Steps of the progress bar."""


def _tokenizer_texts(dialogues: Sequence[Dialogue], catalog: Catalog, style: PromptStyle) -> list[str]:
    """Texts to train the tokenizer on: tool lists, answers and turns."""
    systems = {system_message(d, catalog, style)["content"] for d in dialogues}
    answers = (target_text(d, u, EMPTY, catalog, style.mode) for d in dialogues for u in d.decision_turns)
    return [*systems, *answers, *(t.text for d in dialogues for t in d.turns)]


def build_small_model(config: RunConfig, section: Pretrain, ui: Progress) -> None:
    """Train a tokenizer and a model on the training split and write them as a bitsandbytes-4bit folder.

    A twentieth of the dialogues (at most `HELD_OUT`) is held out to decide when to stop. The folder appears
    whole at the end. Raises ConfigError where `check_destination` refuses it, WriterError while another
    process builds it.
    """
    build_once(config.model, lambda folder: _build(config, section, folder, ui))


def _build(config: RunConfig, section: Pretrain, folder: Path, ui: Progress) -> None:
    size = section.size
    part = config.data.train.model_copy(update={"limit": section.limit, "share": section.share})
    data = config.data.model_copy(update={"train": part})
    corpus = load_corpus(config.model_copy(update={"data": data}), "train")
    synthetic = load("synthetic", split="train", limit=section.synthetic, size=2 * section.synthetic + 20)
    warm = [d for d in synthetic.dialogues if not config.data.unseen.reason(d)]
    catalog = merge_catalogs([corpus.catalog, synthetic.catalog]) if warm else corpus.catalog
    style = prompt_style(config, catalog)
    tokenizer = train_tokenizer(_tokenizer_texts(corpus.dialogues, catalog, style), size.vocabulary)
    encoder = PromptEncoder(ChatFormat(tokenizer), catalog, style)
    usable = [d for d in corpus.dialogues if d.decision_turns]
    random.Random(size.seed).shuffle(usable)  # files are sorted: their first dialogues may be of one domain
    held_out, others = hold_out(usable, encoder, size)
    length = f"{section.steps} steps, at most " if section.steps else ""
    ui.phase(f"pre-training a small model for {length}{section.seconds:.0f} s", PARTS)
    model = build_model(tokenizer, size)
    history = pretrain(
        model,
        encoder,
        others,
        held_out,
        size,
        warm=warm,
        seconds=section.seconds,
        steps=section.steps,
        progress=share_progress(ui),
    )
    steps = steps_of(history, section)
    with atomic_folder(folder) as whole:
        export(model, tokenizer, whole)
        write_provenance(whole, config.data, steps)
    ui.say(f"{config.model}: written, {fit_line(history, steps)}")


def hold_out(
    usable: Sequence[Dialogue], encoder: PromptEncoder, size: SmallModel
) -> tuple[list[Dialogue], list[Dialogue]]:
    """(the first dialogues with a known answer, to hold out; all others). ConfigError without any."""
    number = min(HELD_OUT, max(1, len(usable) // 20))
    known = (d for d in usable if any(held_out_row(encoder, d, size).weight))
    held_out = list(islice(known, number))
    names = {d.id for d in held_out}
    others = [d for d in usable if d.id not in names]
    if not held_out or not others:
        raise ConfigError(
            f"pretrain: {len(usable)} dialogues to train on, {len(held_out)} of them to hold out with a turn "
            "whose answer is known; one of each is the least"
        )
    return held_out, others


def share_progress(ui: Progress) -> Callable[[float, str], None]:
    """Turn the share of time that has passed into steps of a bar of `PARTS`."""
    shown = 0

    def progress(elapsed: float, text: str) -> None:
        nonlocal shown
        while shown < min(PARTS, int(elapsed * PARTS)):
            shown += 1
            ui.step(text)

    return progress
