"""Reads a judge's answer strictly: scores by id, every id exactly once, every score a finite number.

Upstream matches scores with candidates by position and neither clamps nor checks them [CODE]. Here they are
matched by id and clamped to 0..1 (counted), and NaN, infinities, booleans and texts are refused [INFERRED].
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from proactor.dialogue.parse import split_thought

Reason = Literal["bad_json", "wrong_ids", "bad_scores"]

LONGEST = 200_000
"""Characters of an answer that are read."""

STARTS = 32
"""Opening brackets that are tried as the beginning of a verdict."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one candidate: ``value`` and its sub-scores ``parts``, all in 0..1."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Scores by id. Counts: ``clamped``, numbers outside 0..1; ``missing_parts``, sub-scores not given."""

    scores: dict[str, Score]
    clamped: int = 0
    missing_parts: int = 0


@dataclass(frozen=True, slots=True)
class Unusable:
    """An answer that is no verdict; ``bad_json``: it holds no JSON of a verdict's form."""

    reason: Reason
    detail: str


def verdict_schema(ids: Sequence[str], parts: Sequence[str] = ()) -> dict[str, Any]:
    """JSON schema of a verdict. The explanation comes before the numbers, so that they can depend on it."""
    numbers: dict[str, Any] = {name: {"type": "number"} for name in (*parts, "score")}
    entry = {"id": {"type": "string", "enum": list(ids)}, "explanation": {"type": "string"}, **numbers}
    item = {"type": "object", "properties": entry, "required": list(entry), "additionalProperties": False}
    scores = {"type": "array", "items": item}
    return {
        "type": "object",
        "properties": {"scores": scores},
        "required": ["scores"],
        "additionalProperties": False,
    }


def read_verdict(text: str, ids: Sequence[str], parts: Sequence[str] = ()) -> Verdict | Unusable:
    """Read a judge's answer. Any string gives a `Verdict` over exactly ``ids``, or an `Unusable`.

    Text around the JSON, code fences and a closed thinking block are skipped; the first JSON value of a
    verdict's form counts. An id may be a number. Sub-scores other than ``parts`` are ignored.
    """
    entries = next(_verdicts(text), None)
    if entries is None:
        return Unusable("bad_json", f"no verdict in {text[:80]!r}")
    given_ids = [_read_id(entry.get("id")) for entry in entries]
    if len(given_ids) != len(ids) or set(given_ids) != set(ids):
        return Unusable("wrong_ids", f"ids {given_ids[:20]} for {list(ids)}"[:200])
    scores: dict[str, Score] = {}
    clamped = missing = 0
    for name, entry in zip(given_ids, entries, strict=True):
        numbers: dict[str, float] = {}
        for part in ("score", *parts):
            if part != "score" and part not in entry:
                missing += 1
                continue
            number = entry.get(part)
            if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
                return Unusable("bad_scores", f"{part} of {name} is {str(number)[:40]!r}")
            numbers[part] = min(max(float(number), 0.0), 1.0)
            clamped += numbers[part] != number
        explanation = entry.get("explanation")
        value = numbers.pop("score")
        scores[str(name)] = Score(value, numbers, explanation if isinstance(explanation, str) else "")
    return Verdict(scores, clamped, missing)


def _verdicts(text: str) -> Iterator[list[dict[str, Any]]]:
    """The JSON values in ``text`` of a verdict's form: ``{"scores": [{…}, …]}``, or that list alone."""
    _, text = split_thought(text[:LONGEST])
    if text.startswith("<think>"):
        return  # cut off while thinking: any verdict in it is a draft
    position, starts = 0, 0
    while (match := re.compile(r"[\[{]").search(text, position)) and starts < STARTS:
        starts += 1
        try:
            value, position = _DECODER.raw_decode(text, match.start())
        except (ValueError, RecursionError):  # ValueError also for an integer of thousands of digits
            position = match.start() + 1
            continue
        entries = value.get("scores") if isinstance(value, dict) else value
        if isinstance(entries, list) and entries and all(isinstance(e, dict) and "id" in e for e in entries):
            yield entries


def _read_id(value: object) -> str | None:
    """An id as text; None for what cannot be one."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 10**9:
        return None
    return format(value, "d")


def _parse_int(digits: str) -> float | int:
    """A float where Python's int would be slow to convert."""
    return int(digits) if len(digits) < 18 else float(digits)


def _build_object(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. A key given twice gets an unusable value: which one was meant cannot be known."""
    values: dict[str, Any] = {}
    for key, value in pairs:
        values[key] = "given twice" if key in values and key != "explanation" else value
    return values


_DECODER = json.JSONDecoder(parse_int=_parse_int, object_pairs_hook=_build_object, strict=False)
