"""What an annotator says about one turn: marks, the JSON schema that asks for them, and a reader that counts
whatever it has to drop.

The reader is total: any text gives a `Reading`. It takes the schema's form and the short form of the agent's
own answers (`[{"READY":"book","day":"monday"}]`). An entry with a fault is dropped whole and counted under
one reason [INFERRED, methods 1.3].
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from proactor.dialogue import Dialogue, Status, normalise
from proactor.dialogue.catalog import Catalog, Parameter
from proactor.dialogue.parse import Number, entries
from proactor.dialogue.windows import first_mention

NO_ASSENT = 0
"""`Mark.assent` of an annotator that says: the user never agrees."""

SCHEMA_REASONS = (
    "not_json",
    "truncated",
    "not_a_list",
    "not_an_object",
    "missing_field",
    "bad_type",
    "unknown_tool",
    "unknown_parameter",
    "bad_status",
    "outside_dialogue",
)
"""Reasons that count against gate G1. The others: hindsight_value (its own gate, G4) and duplicate."""

_UNREAD = {"truncated": "truncated", "not_a_list": "not_a_list"}
_NAMES = ("name", "action", "tool")
_PARAMS = ("params", "parameters", "arguments")
_WORDS = frozenset("zero one two three four five six seven eight nine ten eleven twelve a an".split())
_TRUTH = frozenset({"true", "false", "yes", "no"})


class MarkStatus(StrEnum):
    """`Status` [NOTES], and WITHDRAWN: the user takes the action back at this turn, a way to end it other
    than its trigger [INFERRED].
    """

    PENDING = "PENDING"
    READY = "READY"
    TRIGGERED = "TRIGGERED"
    WITHDRAWN = "WITHDRAWN"

    @classmethod
    def _missing_(cls, value: object) -> MarkStatus | None:
        if isinstance(value, str) and value.strip().upper() == "WITHDRAWN":
            return cls.WITHDRAWN
        known = Status._missing_(value)
        return None if known is None else cls(known.value)

    @property
    def rank(self) -> int:
        """The order in which an action may go through them."""
        return tuple(MarkStatus).index(self)


class Mark(BaseModel):
    """One action that is open after a turn. `evidence`: turns that show it. `assent`: the turn at which the
    user agrees, `NO_ASSENT` when the annotator says that there is none, None when it does not say.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    status: MarkStatus
    params: dict[str, str] = Field(default_factory=dict)
    evidence: tuple[int, ...] = ()
    assent: int | None = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one answer said. `entries`: how many marks it tried to make (an unreadable answer counts as one);
    `drops`: marks lost, by reason; `repairs`: what was understood although it was not in form.
    """

    marks: tuple[Mark, ...] = ()
    entries: int = 0
    drops: Counter[str] = field(default_factory=Counter)
    repairs: Counter[str] = field(default_factory=Counter)

    @property
    def valid(self) -> int:
        """Entries that follow the schema, whatever else is wrong with them."""
        return max(0, self.entries - sum(self.drops[reason] for reason in SCHEMA_REASONS))


def schema(tools: Catalog) -> dict[str, Any]:
    """JSON schema of an answer about one turn, for constrained decoding: every key is required and closed, as
    strict servers ask; null is a value not said yet.
    """
    return _closed(
        {
            "actions": {
                "type": "array",
                "items": {"anyOf": [_action(tool.name, tool.parameters) for tool in tools.tools]},
            }
        }
    )


def _action(name: str, parameters: Sequence[Parameter]) -> dict[str, Any]:
    return _closed(
        {
            "name": {"type": "string", "enum": [name]},
            "status": {"type": "string", "enum": [s.value for s in MarkStatus]},
            "params": _closed({p.name: _value(p) for p in parameters}),
            "evidence": {"type": "array", "items": {"type": "integer"}},
            "assent": {"type": ["integer", "null"]},
        }
    )


def _closed(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _value(parameter: Parameter) -> dict[str, Any]:
    kind = parameter.type if parameter.type in ("integer", "number", "boolean") else "string"
    if parameter.type == "enum":
        return {"type": ["string", "null"], "enum": [*parameter.values, None]}
    return {"type": [kind, "null"]}


def render(marks: Iterable[Mark], *, flat: bool = False) -> str:
    """Marks as an answer: in the schema's form, or ``flat`` in the agent's short form, without evidence and
    assent.
    """
    if flat:
        value: Any = [{mark.status.value: mark.name, **mark.params} for mark in marks]
    else:
        value = {"actions": [_written(mark) for mark in marks]}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _written(mark: Mark) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": mark.name,
        "status": mark.status.value,
        "params": mark.params,
        "evidence": mark.evidence,
    }
    return entry if mark.assent is None else {**entry, "assent": mark.assent or None}


class _Fault(Exception):
    """Why an entry is dropped."""


class MarkReader:
    """Reads the answers about one dialogue. ``causality``: drop an entry with a value that was first said
    later (gate G4, by turn).
    """

    def __init__(self, dialogue: Dialogue, tools: Catalog, causality: bool = True) -> None:
        self.dialogue, self.tools, self.causality = dialogue, tools, causality
        self._said: dict[str, int | None] = {}

    def read(self, turn: int, text: str) -> Reading:
        """The marks of ``turn``."""
        found, unread, repairs = entries(text)
        if (
            "truncated" in unread and not found and (inner := text.find("[")) > 0
        ):  # {"actions":[… that was cut off: its list may hold whole entries
            found, unread, repairs = entries(text[inner:])
        drops: Counter[str] = Counter()
        for reason, count in unread.items():
            drops[_UNREAD.get(reason, "not_json")] += count
        total = len(found) + drops.total()
        marks: list[Mark] = []
        for entry in found:
            try:
                mark = self._mark(entry, turn, repairs)
            except _Fault as fault:
                drops[str(fault)] += 1
                continue
            if any((mark.name, mark.params) == (other.name, other.params) for other in marks):
                drops["duplicate"] += 1
            else:
                marks.append(mark)
        return Reading(tuple(marks), total, drops, repairs)

    def _mark(self, entry: object, turn: int, repairs: Counter[str]) -> Mark:
        if not isinstance(entry, dict):
            raise _Fault("not_an_object")
        name, status, params = _fields(entry)
        if not isinstance(name, str) or isinstance(name, Number):
            raise _Fault("bad_type")
        tool = self.tools.get(name.strip())
        if tool is None:
            raise _Fault("unknown_tool")
        if not isinstance(status, str) or isinstance(status, Number):
            raise _Fault("bad_type")
        if not _is_status(status):
            raise _Fault("bad_status")
        if not isinstance(params, dict):
            raise _Fault("bad_type")
        values = _values({p.name: p for p in tool.parameters}, params, repairs)
        evidence = self._turns(entry.get("evidence"))
        assent = (
            None
            if "assent" not in entry
            else NO_ASSENT
            if entry["assent"] is None
            else self._turns([entry["assent"]])[0]
        )
        if self.causality and any(self._later(value, evidence, turn) for value in values.values()):
            raise _Fault("hindsight_value")
        return Mark(
            name=tool.name, status=MarkStatus(status), params=values, evidence=evidence, assent=assent
        )

    def _turns(self, listed: object) -> tuple[int, ...]:
        """Turn numbers; a fault where they are none, or not of this dialogue."""
        if listed is None:
            return ()
        if not isinstance(listed, list) or not all(isinstance(t, Number) for t in listed):
            raise _Fault("bad_type")
        try:
            turns = tuple(sorted({int(t) for t in listed}))
        except ValueError:  # 3.5
            raise _Fault("bad_type") from None
        if any(not 1 <= t <= len(self.dialogue.turns) for t in turns):
            raise _Fault("outside_dialogue")
        return turns

    def _later(self, value: str, evidence: Sequence[int], turn: int) -> bool:
        """Was ``value`` first said after ``turn``? One never said literally is judged by the annotator's own
        evidence.
        """
        if value not in self._said:
            self._said[value] = first_mention(self.dialogue.turns, (value,))
        said = self._said[value]
        if said is None:
            said = min(evidence, default=0)
        return said > turn


def _fields(entry: Mapping[str, object]) -> tuple[object, object, object]:
    """(name, status, params) of either form."""
    flat = [k for k, v in entry.items() if isinstance(v, str) and _is_status(k)]
    name_key = next((k for k in _NAMES if k in entry), None)
    if len(flat) == 1 and name_key is None:
        beside = (flat[0], "evidence", "assent")
        return entry[flat[0]], flat[0], {k: v for k, v in entry.items() if k not in beside}
    if name_key is None or entry[name_key] in (None, "") or entry.get("status") in (None, ""):
        raise _Fault("missing_field")
    params = next((entry[k] for k in _PARAMS if k in entry), None)
    return entry[name_key], entry["status"], {} if params is None else params


def _is_status(text: str) -> bool:
    return text in MarkStatus.__members__ or MarkStatus._missing_(text) is not None


def _values(
    signature: Mapping[str, Parameter], params: Mapping[str, object], repairs: Counter[str]
) -> dict[str, str]:
    read: dict[str, str] = {}
    for name, value in params.items():
        if name not in signature:
            raise _Fault("unknown_parameter")
        if value is None or (isinstance(value, str) and not value.strip()):
            if value is not None:  # null is how the schema says: not given
                repairs["null_value"] += 1
            continue
        text = str(value).lower() if isinstance(value, bool) else value
        if not isinstance(text, str) or not fits(signature[name], text, isinstance(value, bool)):
            raise _Fault("bad_type")
        read[name] = str(text).strip()
    return read


def fits(parameter: Parameter, text: str, truth: bool = False) -> bool:
    """May ``text`` be a value of ``parameter``? Numbers may be spelled out, dates and times are free text
    [INFERRED]. ``truth``: it was a JSON boolean.
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
