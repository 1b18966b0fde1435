"""Marks, what an annotator says about one turn, and the JSON schema that asks for them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from proactor.dialogue import Status
from proactor.dialogue.catalog import Catalog, Parameter

NO_ASSENT = 0
"""`Mark.assent` where the annotator says that the user never agrees."""


class MarkStatus(StrEnum):
    """`Status` [NOTES], and WITHDRAWN: the user takes the action back at this turn [INFERRED]."""

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
        """The position in the order that an action must follow."""
        return tuple(MarkStatus).index(self)


class Mark(BaseModel):
    """One action that is open after a turn.

    ``evidence``: turns that show it. ``assent``: the turn at which the user agrees, `NO_ASSENT` where the
    annotator says that there is none, None where it says nothing.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    status: MarkStatus
    params: dict[str, str] = Field(default_factory=dict)
    evidence: tuple[int, ...] = ()
    assent: int | None = None


def answer_schema(tools: Catalog) -> dict[str, Any]:
    """JSON schema of an answer about one turn, for constrained decoding.

    Every key is required and no other is allowed, as strict servers demand; a value not said yet is null.
    """
    return _closed_object(
        {
            "actions": {
                "type": "array",
                "items": {"anyOf": [_action_schema(tool.name, tool.parameters) for tool in tools.tools]},
            }
        }
    )


def _action_schema(name: str, parameters: Sequence[Parameter]) -> dict[str, Any]:
    return _closed_object(
        {
            "name": {"type": "string", "enum": [name]},
            "status": {"type": "string", "enum": [s.value for s in MarkStatus]},
            "params": _closed_object({p.name: _value_schema(p) for p in parameters}),
            "evidence": {"type": "array", "items": {"type": "integer"}},
            "assent": {"type": ["integer", "null"]},
        }
    )


def _closed_object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _value_schema(parameter: Parameter) -> dict[str, Any]:
    kind = parameter.type if parameter.type in ("integer", "number", "boolean") else "string"
    if parameter.type == "enum":
        return {"type": ["string", "null"], "enum": [*parameter.values, None]}
    return {"type": [kind, "null"]}


def render(marks: Iterable[Mark], *, flat: bool = False) -> str:
    """Marks as an answer in the schema's form, or ``flat``: the agent's, without evidence and assent."""
    if flat:
        value: Any = [{mark.status.value: mark.name, **mark.params} for mark in marks]
    else:
        value = {"actions": [_entry(mark) for mark in marks]}
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _entry(mark: Mark) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": mark.name,
        "status": mark.status.value,
        "params": mark.params,
        "evidence": mark.evidence,
    }
    return entry if mark.assent is None else {**entry, "assent": mark.assent or None}
