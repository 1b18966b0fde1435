"""One reader per corpus, and the generator of synthetic dialogues, behind one function: `load`."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from proactor.files import SourceError
from proactor.sources.base import Subset, validate_options
from proactor.sources.corpus import SPLITS, Corpus, Selection, SelectionError, Split, split_of

__all__ = [
    "NAMES",
    "READERS",
    "SPLITS",
    "Corpus",
    "Selection",
    "SourceError",
    "Split",
    "load",
    "options_of",
    "split_of",
]

READERS = (
    "jsonl",
    "sgd",
    "star",
    "abcd",
    "multiwoz",
    "smcalflow",
    "taskmaster4",
    "multidogo",
    "proactivebench",
)
"""Corpora on disk. Each has a module of its name, imported on first use, that holds `OPTIONS` (a pydantic
model) and `load(path, subset, options)`.
"""

NAMES = ("synthetic", *READERS)


def options_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """``values`` as ``opts`` of `load`. SelectionError for one that is an argument of its own there."""
    if taken := sorted({"name", "path", "split", "limit", "seed", "keep"} & values.keys()):
        raise SelectionError(f"option {taken[0]}: no option of a reader")
    return values


def load(
    name: str,
    path: str | Path | None = None,
    split: Split | None = None,
    limit: int | None = None,
    seed: int = 0,
    keep: Selection | None = None,
    **opts: Any,
) -> Corpus:
    """The dialogues of corpus ``name`` (one of `NAMES`).

    Args:
        path: folder or file of a corpus on disk; None for "synthetic".
        split: "train", "dev", "test", or None for all; 80/10/10 by a hash of the dialogue id.
        limit: at most this many dialogues, sampled by ``seed``; a larger one only adds dialogues.
            JSONL readers parse no others.
        seed: seed of the sample and of the generator.
        keep: restricts domains and length. ``limit`` then counts the dialogues kept, and all of the split are
            parsed.
        opts: the reader's options (`SyntheticOptions`, `SgdOptions`, …).

    Raises:
        SelectionError: an unknown corpus, split, option or domain, a negative limit, a missing path.
        SourceError: a file that is missing or malformed, as ``file:line: what``.
    """
    if split is not None and split not in SPLITS:
        raise SelectionError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if limit is not None and limit < 0:
        raise SelectionError(f"limit {limit} is negative")
    if keep is not None and keep != Selection():
        return keep.apply(load(name, path, split, None, seed, **opts), limit, seed)
    if name not in NAMES:
        raise SelectionError(f"corpus {name!r} is not one of {', '.join(NAMES)}")
    reader = import_module(f"proactor.sources.{name}")
    subset = Subset(split, limit, seed)
    if name == "synthetic":
        if path is not None:
            raise SelectionError(f"the synthetic corpus has no path (got {path})")
    elif path is None:
        raise SelectionError(f"corpus {name!r} needs a path")
    options = validate_options(reader.OPTIONS, opts)
    corpus: Corpus = reader.load(None if path is None else Path(path), subset, options)
    return corpus
