"""`MarkReader` reads an annotator's answers, and counts what it has to drop.

Any text gives a `MarkReading`. An answer has the schema's form, or the short form of the agent's own answers
(``[{"READY":"book","day":"monday"}]``). An entry with a fault is dropped whole and counted under one reason
[INFERRED, methods 1.3].
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from proactor.annotation.logged import spellings
from proactor.annotation.marks import NO_ASSENT, Mark, MarkStatus
from proactor.dialogue import Dialogue, normalise
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.json_values import JsonObject, Number
from proactor.dialogue.parse import entries
from proactor.dialogue.windows import first_mention

SCHEMA_REASONS = (
    "not_json",
    "truncated",
    "more_values",
    "repeated_key",
    "not_an_object",
    "missing_field",
    "bad_type",
    "unknown_tool",
    "unknown_parameter",
    "bad_status",
    "outside_dialogue",
    "too_many",
)
"""Reasons that count against gate G1. The others are hindsight_value (gate G4) and duplicate."""

MOST_MARKS = 64
"""Different marks of one answer; linking compares each with all of the turn before."""
_NAMES = ("name", "action", "tool")
_PARAMS = ("params", "parameters", "arguments")
_WORDS = frozenset("zero one two three four five six seven eight nine ten eleven twelve a an".split())
_TRUTH = frozenset({"true", "false", "yes", "no"})


@dataclass(frozen=True, slots=True)
class MarkReading:
    """The marks of one answer.

    ``entries``: marks in the answer, dropped ones included; an unreadable answer counts as one. ``drops``:
    marks dropped, by reason; ``faults``: what is wrong with those of which a tool or value can be named.
    ``repairs``: tolerated deviations from the schema, by kind.
    """

    marks: tuple[Mark, ...] = ()
    entries: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    faults: tuple[str, ...] = ()
    repairs: Counter[str] = field(default_factory=Counter)

    @property
    def valid(self) -> int:
        """Entries that follow the schema, even if they were dropped for another reason."""
        return max(0, self.entries - sum(self.drops[reason] for reason in SCHEMA_REASONS))


class _Fault(Exception):
    """The reason why an entry is dropped, and ``detail``: the tool or value that is wrong."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.detail = detail


class MarkReader:
    """Reads the answers about one dialogue.

    A value that the dialogue's log lists for another one (`Reference.variants`) is as good as that one.
    ``causality``: drop entries with a value that was first said after their turn (gate G4, by turn).
    """

    def __init__(self, dialogue: Dialogue, tools: Catalog, causality: bool = True) -> None:
        self.dialogue, self.tools, self.causality = dialogue, tools, causality
        self._mentions: dict[tuple[str, ...], int | None] = {}

    def read(self, turn: int, text: str) -> MarkReading:
        """The marks in ``text``, an answer about ``turn``."""
        items, unread, repairs = entries(text)
        drops: Counter[str] = Counter()
        for reason, count in unread.items():
            drops[reason if reason in SCHEMA_REASONS else "not_json"] += count
        total = len(items) + drops.total()
        marks: dict[tuple[str, frozenset[tuple[str, str]]], Mark] = {}
        faults: list[str] = []
        for item in items:
            try:
                mark = self._mark(item, turn, repairs)
            except _Fault as fault:
                drops[str(fault)] += 1
                faults += [fault.detail] * bool(fault.detail)
                continue
            identity = mark.name, frozenset(mark.params.items())
            if identity in marks:
                drops["duplicate"] += 1
            elif len(marks) == MOST_MARKS:
                drops["too_many"] += 1
            else:
                marks[identity] = mark
        return MarkReading(tuple(marks.values()), total, +drops, tuple(faults), +repairs)

    def _mark(self, entry: object, turn: int, repairs: Counter[str]) -> Mark:
        if not isinstance(entry, dict):
            raise _Fault("not_an_object")
        name, status, params = _fields(entry, repairs)
        if not isinstance(name, str) or isinstance(name, Number):
            raise _Fault("bad_type")
        tool = self.tools.get(name.strip())
        if tool is None:
            raise _Fault("unknown_tool", f"{name.strip()}: no such tool")
        if not isinstance(status, str) or isinstance(status, Number):
            raise _Fault("bad_type")
        if not _is_status(status):
            raise _Fault("bad_status")
        if not isinstance(params, dict):
            raise _Fault("bad_type")
        if any(isinstance(value, JsonObject) and value.repeated for value in (entry, params)):
            raise _Fault("repeated_key")
        values = _values(tool, params, self.dialogue, repairs)
        evidence = self._turns(entry.get("evidence"))
        assent: int | None = None
        if "assent" in entry:
            assent = NO_ASSENT if entry["assent"] is None else self._turns([entry["assent"]])[0]
        if self.causality and any(
            self._said_after(spellings(self.dialogue, tool.name, *value), evidence, turn)
            for value in values.items()
        ):
            raise _Fault("hindsight_value")
        return Mark(
            name=tool.name, status=MarkStatus(status), params=values, evidence=evidence, assent=assent
        )

    def _turns(self, listed: object) -> tuple[int, ...]:
        """Turn numbers, sorted. Raises `_Fault` for other values and for turns the dialogue does not have."""
        if listed is None:
            return ()
        if not isinstance(listed, list) or not all(isinstance(t, Number) for t in listed):
            raise _Fault("bad_type")
        try:
            turns = tuple(sorted({int(t) for t in listed}))
        except ValueError:  # a fraction
            raise _Fault("bad_type") from None
        if any(not 1 <= t <= len(self.dialogue.turns) for t in turns):
            raise _Fault("outside_dialogue")
        return turns

    def _said_after(self, value: tuple[str, ...], evidence: Sequence[int], turn: int) -> bool:
        """Whether a value, in any of its spellings, was first said after ``turn``; by the evidence, if it is
        never said literally.
        """
        if value not in self._mentions:
            self._mentions[value] = first_mention(self.dialogue.turns, value)
        first = self._mentions[value]
        if first is None:
            first = min(evidence, default=0)
        return first > turn


def _fields(entry: Mapping[str, object], repairs: Counter[str]) -> tuple[object, object, object]:
    """(name, status, params) of an entry in either form."""
    flat = [k for k, v in entry.items() if isinstance(v, str) and _is_status(k)]
    name_key = next((k for k in _NAMES if k in entry), None)
    if len(flat) == 1 and name_key is None:
        others = (flat[0], "evidence", "assent")
        return entry[flat[0]], flat[0], {k: v for k, v in entry.items() if k not in others}
    if name_key is None or entry[name_key] in (None, "") or entry.get("status") in (None, ""):
        raise _Fault("missing_field")
    params_key = next((k for k in _PARAMS if k in entry), None)
    repairs["ignored_key"] += len(entry.keys() - {name_key, "status", params_key, "evidence", "assent"})
    params = None if params_key is None else entry[params_key]
    return entry[name_key], entry["status"], {} if params is None else params


def _is_status(text: str) -> bool:
    return text in MarkStatus.__members__ or MarkStatus._missing_(text) is not None


def _values(
    tool: Tool, params: Mapping[str, object], source: Dialogue, repairs: Counter[str]
) -> dict[str, str]:
    """The values of ``params`` as text, without those not given."""
    signature = {parameter.name: parameter for parameter in tool.parameters}
    values: dict[str, str] = {}
    for name, value in params.items():
        if name not in signature:
            raise _Fault("unknown_parameter", f"{tool.name}: no parameter {name!r}")
        if value is None or (isinstance(value, str) and not value.strip()):
            if value is not None:  # the schema's form of a value not given is null
                repairs["null_value"] += 1
            continue
        truth = isinstance(value, bool)
        text = str(value).lower() if truth else value
        if not isinstance(text, str) or not any(
            fits(signature[name], spelling, truth) for spelling in spellings(source, tool.name, name, text)
        ):
            raise _Fault("bad_type", f"{tool.name}: {name}={value} is {_wanted(signature[name])}")
        values[name] = str(text).strip()
    return values


def _wanted(parameter: Parameter) -> str:
    if parameter.type == "enum":
        return f"none of {', '.join(parameter.values)}"
    return f"no {parameter.type}"


def fits(parameter: Parameter, text: str, truth: bool = False) -> bool:
    """Whether ``text`` can be a value of ``parameter``. ``truth``: whether it was a JSON boolean.

    Numbers may be spelled out; dates and times are free text [INFERRED].
    """
    low = normalise(text)
    if parameter.type == "boolean":
        return low in _TRUTH
    if truth:
        return False
    if parameter.type == "integer":
        return low in _WORDS or low.lstrip("+-").isdecimal()
    if parameter.type == "number":
        try:
            return math.isfinite(float(text.replace(",", "")))
        except ValueError:
            return low in _WORDS
    return parameter.type != "enum" or low in {normalise(v) for v in parameter.values}
