"""A model without its weights: the folder of its config and tokenizer, and its chat format."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from proactor.engine.chat import ChatFormat, open_chat
from proactor.engine.checkpoint import resolve_model
from proactor.engine.tokenizer import load_tokenizer


class Outline(NamedTuple):
    """``folder`` holds config and tokenizer; ``chat`` is None where it holds no tokenizer."""

    folder: Path
    chat: ChatFormat | None


def read_outline(path: str | Path, revision: str | None = None) -> Outline:
    """Config and tokenizer of a folder, or of a Hub repository, whose weights are not downloaded.

    Raises CheckpointError as `Engine.load` for what is neither, and for a tokenizer that cannot be read.
    """
    folder = resolve_model(path, revision, weights=False)
    tokenizer = load_tokenizer(folder)
    return Outline(folder, None if tokenizer is None else open_chat(tokenizer, str(path)))
