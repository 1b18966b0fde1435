"""How far two models are apart on given texts: the base that an adapter was trained on, and the one it serves
on.

For each id of a text after the first, both models see the ids before it. Drift is the difference of their
log-probabilities of that id, in nats; a decision has changed where their most probable ids differ.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from proactor.engine import Engine
from proactor.files import SourceError, parse_json, read_text


@dataclass(frozen=True, slots=True)
class Scores:
    """Of all texts' ids after the first, one after the other: log-probabilities, most probable ids."""

    logprobs: Tensor
    choices: Tensor

    @classmethod
    def of(cls, engine: Engine, sequences: list[list[int]]) -> Scores:
        """Those of an engine, with its adapter if it has one. Raises SourceError without any."""
        if not any(len(ids) > 1 for ids in sequences):
            raise SourceError("texts: none has two tokens")
        return cls(torch.cat(engine.logprobs(sequences)), torch.cat(engine.greedy(sequences)))


@dataclass(frozen=True, slots=True)
class Drift:
    """Over ``tokens`` ids: the mean and the largest absolute difference (nats), the mean difference (below 0:
    the second model finds the texts less probable), and the decisions that changed.
    """

    tokens: int
    mean: float
    largest: float
    shift: float
    changed: int

    @classmethod
    def between(cls, trained: Scores, serving: Scores) -> Drift:
        """From the first to the second."""
        gap = serving.logprobs.double() - trained.logprobs.double()
        changed = int((serving.choices != trained.choices).sum())
        return cls(len(gap), float(gap.abs().mean()), float(gap.abs().max()), float(gap.mean()), changed)

    def __str__(self) -> str:
        """Two lines for a reader."""
        return (
            f"log-probabilities of {self.tokens:,} tokens: {self.mean:.4f} nats apart in the mean, at most "
            f"{self.largest:.3f}; mean shift {self.shift:+.4f}\n"
            f"greedy decisions that changed: {self.changed:,} of {self.tokens:,} "
            f"({self.changed / self.tokens:.2%})"
        )


def read_texts(file: Path) -> list[Any]:
    """The texts of a file, each a line: as it is, or in ``.jsonl`` an object with ``text`` or ``messages``.

    Raises SourceError, naming the line, for another object, and for a file without any.
    """
    lines = [(n, line) for n, line in enumerate(read_text(file).splitlines(), 1) if line.strip()]
    if not lines:
        raise SourceError(f"{file}: holds no text")
    if file.suffix != ".jsonl":
        return [line for _, line in lines]
    return [_prompt(file, n, parse_json(line.encode(), file, n)) for n, line in lines]


def _prompt(file: Path, line: int, value: Any) -> Any:
    if isinstance(value, dict) and isinstance(value.get("text"), str):
        return value["text"]
    if isinstance(value, dict) and isinstance(value.get("messages"), list):
        return value["messages"]
    raise SourceError(
        f"{file}:{line}: should be an object with text or messages, not {json.dumps(value)[:60]}"
    )
