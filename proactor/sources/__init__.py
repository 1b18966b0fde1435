"""One reader a corpus, and the generator of synthetic dialogues, behind one function: `load`."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from proactor.files import SourceError
from proactor.sources.base import SPLITS, Corpus, Selection, SelectionError, Split, split_of

__all__ = ["NAMES", "READERS", "SPLITS", "Corpus", "Selection", "SourceError", "Split", "load", "split_of"]

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
"""Corpora on disk: each has a module of its name here, imported when it is first read."""

NAMES = ("synthetic", *READERS)


def load(
    name: str,
    path: str | Path | None = None,
    split: Split | None = None,
    limit: int | None = None,
    seed: int = 0,
    keep: Selection | None = None,
    **opts: Any,
) -> Corpus:
    """The dialogues of corpus `name` (one of `NAMES`).

    Args:
        path: folder (or file) of a real corpus; not used by "synthetic".
        split: "train", "dev", "test" or None for all; by a hash of the dialogue id, 80/10/10.
        limit: at most this many dialogues, a sample that depends on `seed` and grows by prefix; the rest is
        not parsed.
        seed: of the sample, and of the generator.
        keep: which of them, by domain and length; `limit` then counts those, and all of the split are parsed.
        opts: options of the reader (`SyntheticOptions`, `SgdOptions`, …); unknown ones are refused by name.

    Raises:
        SourceError: one line, `file:line: what`, for missing files and for empty or malformed lines.
        ValueError: an unknown corpus, split or option.
    """
    if split is not None and split not in SPLITS:
        raise SelectionError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    if limit is not None and limit < 0:
        raise SelectionError(f"limit {limit} is negative")
    if keep is not None and keep != Selection():
        return keep.apply(load(name, path, split, None, seed, **opts), limit, seed)
    if name == "synthetic":
        if path is not None:
            raise SelectionError(f"the synthetic corpus has no path (got {path})")
        from proactor.sources import synthetic

        return synthetic.load(split, limit, seed, **opts)
    if name not in READERS:
        raise SelectionError(f"corpus {name!r} is not one of {', '.join(NAMES)}")
    if path is None:
        raise SelectionError(f"corpus {name!r} needs a path")
    reader = import_module(f"proactor.sources.{name}")
    found: Corpus = reader.load(Path(path), split, limit, seed, **opts)
    return found
