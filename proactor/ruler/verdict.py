"""Reads a judge's answer strictly: scores by id, every id exactly once, every score a finite number.

Upstream matches scores with candidates by position and neither clamps nor checks them [CODE]. Here they are
matched by id and clamped to 0..1 (counted), and NaN, infinities, booleans and texts are refused [INFERRED].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from proactor.dialogue.json_values import JsonObject, Number, find_values
from proactor.dialogue.parse import split_thought

Reason = Literal["bad_json", "wrong_ids", "bad_scores"]

LONGEST = 200_000
"""Characters of an answer; a longer one is no verdict."""

LONGEST_EXPLANATION = 300
"""Characters of an explanation where a schema bounds it, so that a model comes to its numbers."""

LONGEST_NUMBER = 400
"""Characters of a number; a longer one is no score."""


@dataclass(frozen=True, slots=True)
class Score:
    """The score of one candidate: ``value`` and its sub-scores ``parts``, all in 0..1."""

    value: float
    parts: dict[str, float] = field(default_factory=dict)
    explanation: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Scores by id. Counts: ``clamped``, numbers outside 0..1; ``missing_parts``, sub-scores not given;
    ``further``, other verdicts in the answer, which are not read.
    """

    scores: dict[str, Score]
    clamped: int = 0
    missing_parts: int = 0
    further: int = 0


@dataclass(frozen=True, slots=True)
class Unusable:
    """An answer that is no verdict; ``bad_json``: it holds no JSON of a verdict's form."""

    reason: Reason
    detail: str


def verdict_schema(ids: Sequence[str], parts: Sequence[str] = (), each: bool = False) -> dict[str, Any]:
    """JSON schema of a verdict. The explanation comes before the numbers, so that they can depend on it.

    ``each``: every id once, in this order, numbers in 0..1 and short explanations, which few servers can
    keep to.
    """
    numbers: dict[str, Any] = {name: {"type": "number"} for name in (*parts, "score")}
    entry = {"id": {"type": "string", "enum": list(ids)}, "explanation": {"type": "string"}, **numbers}
    item = {"type": "object", "properties": entry, "required": list(entry), "additionalProperties": False}
    scores: dict[str, Any] = {"type": "array", "items": item}
    if each:
        bounds = {name: {"type": "number", "minimum": 0, "maximum": 1} for name in numbers}
        entry |= {"explanation": {"type": "string", "maxLength": LONGEST_EXPLANATION}, **bounds}
        ordered = [{**item, "properties": {**entry, "id": {"const": id}}} for id in ids]
        scores = {"type": "array", "prefixItems": ordered, "items": False, "minItems": len(ids)}
    return {
        "type": "object",
        "properties": {"scores": scores},
        "required": ["scores"],
        "additionalProperties": False,
    }


def read_verdict(text: str, ids: Sequence[str], parts: Sequence[str] = ()) -> Verdict | Unusable:
    """Read a judge's answer. Any string gives a `Verdict` over exactly ``ids``, or an `Unusable`.

    A closed thinking block is skipped, and what `find_values` passes over. The first value of a verdict's
    form counts, else the objects with an id (one a line). An id may be a number. Sub-scores other than
    ``parts`` are ignored; of a key with two values, neither counts.
    """
    if len(text) > LONGEST:
        return Unusable("bad_json", f"{len(text)} characters, more than {LONGEST}: {text[:80]!r}")
    verdicts = list(_verdicts(text))
    if not verdicts:
        return Unusable("bad_json", f"no verdict in {text[:80]!r}")
    entries = verdicts[0]
    given_ids = [None if "id" in entry.repeated else _read_id(entry.get("id")) for entry in entries]
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
            number = None if part in entry.repeated else _read_number(entry.get(part))
            if number is None:
                given = "given twice" if part in entry.repeated else str(entry.get(part))
                return Unusable("bad_scores", f"{part} of {name} is {given[:40]!r}")
            numbers[part] = min(max(number, 0.0), 1.0)
            clamped += numbers[part] != number
        explanation = entry.get("explanation")
        value = numbers.pop("score")
        scores[str(name)] = Score(value, numbers, explanation if isinstance(explanation, str) else "")
    further = sum(other != entries for other in verdicts[1:])
    return Verdict(scores, clamped, missing, further)


def _read_number(value: object) -> float | None:
    """A finite number; None for any other value, texts and booleans included."""
    if not isinstance(value, Number):
        return None
    number = float(value[:LONGEST_NUMBER])
    return number if math.isfinite(number) and len(value) <= LONGEST_NUMBER else None


def _verdicts(text: str) -> Iterator[list[JsonObject]]:
    """What has a verdict's form in ``text``: ``{"scores": [{…}, …]}``, that list alone, or its objects."""
    _, text = split_thought(text)
    if text.startswith("<think>"):
        return  # cut off while thinking: any verdict in it is a draft
    loose: list[JsonObject] = []
    for found in find_values(text):
        value = found.value
        if found.failure:
            continue
        if isinstance(value, JsonObject) and "id" in value and "scores" not in value:
            loose.append(value)
            continue
        if isinstance(value, JsonObject):
            value = None if "scores" in value.repeated else value.get("scores")
        if isinstance(value, list) and value and all(isinstance(e, JsonObject) and "id" in e for e in value):
            yield value
    if loose:
        yield loose


def _read_id(value: object) -> str | None:
    """An id as text; None for what cannot be one."""
    return value.strip() if isinstance(value, str) else None
