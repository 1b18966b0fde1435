"""The small model of a config's `pretrain` section: built once, from the training dialogues alone, into the
folder that `model` names.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path

from proactor.config import ConfigError, Data, Pretrain, RunConfig
from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.prompt import PromptEncoder, PromptStyle, system_message, wanted
from proactor.engine import ChatFormat, atomic_file
from proactor.progress import Progress
from proactor.sources import load
from proactor.training.parts import load_part, merge_catalogs
from proactor.training.pretrain import pretrain
from proactor.training.small_model import build_model, export, train_tokenizer

HELD_OUT = 96
"""Most dialogues that the held-out loss is taken on: it is computed again and again."""
PROVENANCE = "pretrained.json"
PARTS = 100
"""Steps of the progress bar."""


def _texts(dialogues: Sequence[Dialogue], catalog: Catalog, style: PromptStyle) -> list[str]:
    """What a tokenizer should know: tool lists, answers and turns."""
    systems = {system_message(d, catalog, style)["content"] for d in dialogues}
    answers = (wanted(d, u, EMPTY, catalog, style.mode) for d in dialogues for u in d.decision_turns)
    return [*systems, *answers, *(t.text for d in dialogues for t in d.turns)]


def build_small_model(config: RunConfig, section: Pretrain, ui: Progress) -> None:
    """Train tokenizer and model on the training split, a twentieth (at most `HELD_OUT`) held out to stop by,
    and write them as a bitsandbytes-4bit folder.
    """
    size = section.size
    part = config.data.train.model_copy(update={"limit": section.limit, "share": section.share})
    corpus = load_part(
        config.model_copy(update={"data": config.data.model_copy(update={"train": part})}), "train"
    )
    warm = load("synthetic", split="train", limit=section.synthetic, size=2 * section.synthetic + 20)
    first = [d for d in warm.dialogues if not config.data.unseen.reason(d)]
    catalog = merge_catalogs([corpus.catalog, warm.catalog]) if first else corpus.catalog
    style = PromptStyle(**config.prompt.model_dump(exclude_none=True))
    tokenizer = train_tokenizer(_texts(corpus.dialogues, catalog, style), size.vocabulary)
    encoder = PromptEncoder(ChatFormat(tokenizer), catalog, style)
    usable = [d for d in corpus.dialogues if d.decision_turns]
    random.Random(size.seed).shuffle(usable)  # files are sorted: their first dialogues may be of one domain
    held_out = min(HELD_OUT, max(1, len(usable) // 20))
    ui.phase(f"pre-training a small model for {section.seconds:.0f} s", PARTS)
    shown = 0

    def progress(elapsed: float, text: str) -> None:
        nonlocal shown
        while shown < min(PARTS, int(elapsed * PARTS)):
            shown += 1
            ui.step(text)

    model = build_model(tokenizer, size)
    history = pretrain(
        model,
        encoder,
        usable[held_out:],
        usable[:held_out],
        size,
        warm=first,
        seconds=section.seconds,
        progress=progress,
    )
    export(model, tokenizer, config.model)
    write_provenance(config.model, config.data)
    last = f", held-out loss {history[-1][1]:.3f}" if history else ""
    ui.say(f"{config.model}: written{last}")


def write_provenance(folder: str | Path, data: Data) -> None:
    """Write down what the model in ``folder`` was built on."""
    seen = data.model_dump(mode="json", include={"source", "unseen", "labels", "keep", "seed", "options"})
    atomic_file(Path(folder) / PROVENANCE, (json.dumps(seen, indent=1) + "\n").encode())


def check_provenance(folder: str | Path, data: Data) -> None:
    """ConfigError when ``data.unseen`` names what the model in ``folder`` may have seen."""
    if not data.unseen:
        return
    file = Path(folder) / PROVENANCE
    other = "model=… names another folder, where one is built without them"
    if not file.is_file():
        raise ConfigError(
            f"model {folder}: no {PROVENANCE} says whether it has seen what data.unseen keeps from training; "
            f"{other}"
        )
    noted = json.loads(file.read_text(encoding="utf-8"))
    for kind in ("domains", "tools"):
        kept_out = noted["unseen"][kind] if noted["source"] == data.source else ()
        if seen := sorted(set(getattr(data.unseen, kind)) - set(kept_out)):
            raise ConfigError(
                f"model {folder}: was built on dialogues of the {kind[:-1]} {seen[0]!r}, which data.unseen "
                f"keeps from training; {other}"
            )
