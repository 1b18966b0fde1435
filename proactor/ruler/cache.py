"""A cache of verdicts, in memory and optionally in a file of one JSON line per group.

A resumed run, or one that sees the same answers again, does not ask the judge twice. A line cut off by a kill
is skipped and counted.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from proactor.engine import append, read_regular
from proactor.ruler.verdict import Score

Scores = dict[str, Score]
"""The scores of one group, by `Question.candidate_digest`."""


class _Score(BaseModel):
    model_config = ConfigDict(extra="forbid")

    value: FiniteFloat
    parts: dict[str, FiniteFloat]
    explanation: str


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    key: str
    scores: dict[str, _Score]


@dataclass
class VerdictCache:
    """Scores by `Question.cache_key`.

    ``path``: a file to read and append to; None for memory only. ``keep``: groups held in memory; the oldest
    is dropped first. ``counters``: cache_bad_lines. Raises OSError, naming the file, where it cannot be read.
    """

    path: str | Path | None = None
    keep: int = 100_000
    counters: Counter[str] = field(default_factory=Counter)
    _known: dict[str, Scores] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.path is None or not Path(self.path).exists():
            return
        data = read_regular(self.path)
        for line in data.splitlines():
            try:
                read = _Line.model_validate_json(line)
            except ValidationError:
                self.counters["cache_bad_lines"] += 1
                continue
            self._hold(read.key, {k: Score(s.value, s.parts, s.explanation) for k, s in read.scores.items()})
        if data and not data.endswith(b"\n"):
            self._append(b"\n")

    def get(self, key: str) -> Scores | None:
        """The scores under ``key``, None where there are none."""
        return self._known.get(key)

    def put(self, key: str, scores: Mapping[str, Score]) -> None:
        """Store a group's scores. Raises OSError where the file cannot be written."""
        self._hold(key, dict(scores))
        if self.path is not None:
            line: dict[str, Any] = {"key": key, "scores": {k: _dump(s) for k, s in scores.items()}}
            self._append(json.dumps(line, separators=(",", ":")).encode() + b"\n")

    def _hold(self, key: str, scores: Scores) -> None:
        self._known.pop(key, None)
        while len(self._known) >= max(self.keep, 1):
            del self._known[next(iter(self._known))]
        self._known[key] = scores

    def _append(self, data: bytes) -> None:
        assert self.path is not None
        append(self.path, data)


def _dump(score: Score) -> dict[str, Any]:
    return {"value": score.value, "parts": score.parts, "explanation": score.explanation}
