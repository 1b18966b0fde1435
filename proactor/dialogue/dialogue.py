"""Dialogues, the actions an agent proposes, and the reference actions it is scored against.

Turns count from 1 and intervals include both ends. A decision point lies after every user turn `u`: the agent
has seen turns 1..u and has not answered yet. An action "ready at u" may fire before the agent's next turn.
"""

from __future__ import annotations

import re
import unicodedata
from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Speaker = Literal["user", "agent"]
Interval = tuple[int, int]

_MARKS = r"[\"'`.,;!?()\[\]。、「」『』،؛؟“”‘’«»¿¡]"
# A run is looked at from its first mark only, and without going back.
_PUNCTUATION = re.compile(rf"(?<!{_MARKS}){_MARKS}++(?=\s|$)|(?<!\S){_MARKS}++")


class Status(StrEnum):
    """Status of an action [NOTES], in any case. The paper's READY_TO_TRIGGER reads as READY."""

    PENDING = "PENDING"
    READY = "READY"
    TRIGGERED = "TRIGGERED"

    @classmethod
    def _missing_(cls, value: object) -> Status | None:
        if not isinstance(value, str):
            return None
        spelling = value.strip().upper().replace(" ", "_").replace("-", "_")
        return {"READY_TO_TRIGGER": cls.READY}.get(spelling) or cls.__members__.get(spelling)

    @property
    def rank(self) -> int:
        """0, 1, 2 for PENDING, READY, TRIGGERED: duplicates collapse to the highest."""
        return tuple(Status).index(self)


def normalise(value: str) -> str:
    """A parameter value as it is compared: `fold`, single spaces, no punctuation around words [INFERRED].

    "Dr. Morgan" equals "dr morgan"; "11:30" does not equal "1130", since punctuation inside a word stays.
    """
    return " ".join(_PUNCTUATION.sub("", fold(value)).split())


def fold(text: str) -> str:
    """``text`` without differences of case and of form: casefolded, in Unicode's NFKC (full-width letters and
    digits are plain ones, and a letter with a combining mark is one character where there is one).
    """
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


class Turn(BaseModel):
    """One message. ``index`` is 1-based."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    index: int = Field(ge=1)
    speaker: Speaker
    text: str


class Action(BaseModel):
    """An action proposed at a decision point; parameters may be partial while PENDING."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    params: dict[str, str] = Field(default_factory=dict)
    status: Status


class Reference(BaseModel):
    """An action that the dialogue calls for, and when.

    ``coverage`` (o, c): the turns at which it is listed at all. ``ready`` (s, e): the turns at which it may
    fire; None is an unknown window, which is masked and counted (``null_reason`` says why).
    ``observed_trigger``: the last turn that the logged agent had seen when it acted. ``value_turns``: per
    parameter, the first turn at which its value had been said (absent: never said literally).
    ``values_seen``: the first turn at which all of them had been said, None when one never was. ``variants``:
    other spellings of a value in the dialogue that count as equal to the one in ``params``.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    name: str = Field(min_length=1)
    params: dict[str, str] = Field(default_factory=dict)
    coverage: Interval | None = None
    ready: Interval | None = None
    observed_trigger: int | None = None
    value_turns: dict[str, int] = Field(default_factory=dict)
    values_seen: int | None = None
    variants: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    null_reason: str = ""

    @model_validator(mode="after")
    def _check_intervals(self) -> Reference:
        if self.coverage is not None and not 1 <= self.coverage[0] <= self.coverage[1]:
            raise ValueError(
                f"reference {self.id!r}: coverage {self.coverage} is reversed or starts before turn 1"
            )
        if self.ready is None:
            return self
        if self.coverage is None:
            raise ValueError(f"reference {self.id!r}: a ready window {self.ready} without coverage")
        if not self.coverage[0] <= self.ready[0] <= self.ready[1] <= self.coverage[1]:
            raise ValueError(
                f"reference {self.id!r}: ready {self.ready} is reversed or outside coverage {self.coverage}"
            )
        return self

    def accepts(self, parameter: str, value: str) -> bool:
        """Whether ``value``, after `normalise`, equals the value of ``parameter`` or one of its variants."""
        if parameter not in self.params:
            return False
        spellings = (self.params[parameter], *self.variants.get(parameter, ()))
        return normalise(value) in map(normalise, spellings)


class Dialogue(BaseModel):
    """One logged conversation: its turns, the actions it calls for, and the names of the tools on offer.

    ``withdrawn``: actions that the user began and took back before they were ready. They are not called for,
    so a fire on one is false. They are kept because during their `coverage` they look like any pending
    action, and a policy that does not wait for assent fires on them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str = Field(min_length=1)
    turns: tuple[Turn, ...]
    references: tuple[Reference, ...] = ()
    withdrawn: tuple[Reference, ...] = ()
    tools: tuple[str, ...] = ()
    domain: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _check(self) -> Dialogue:
        if not self.turns:
            raise ValueError(f"dialogue {self.id!r} has no turns")
        if any(turn.index != position for position, turn in enumerate(self.turns, start=1)):
            raise ValueError(f"dialogue {self.id!r}: turn indices are not 1..{len(self.turns)}")
        seen: set[str] = set()
        for reference in (*self.references, *self.withdrawn):
            if reference.id in seen:
                raise ValueError(f"dialogue {self.id!r}: reference {reference.id!r} appears twice")
            seen.add(reference.id)
            if reference.coverage is not None and reference.coverage[1] > len(self.turns):
                raise ValueError(
                    f"dialogue {self.id!r}: reference {reference.id!r} covers turn {reference.coverage[1]} "
                    f"of {len(self.turns)}"
                )
            if (outside := _outside(reference, len(self.turns))) is not None:
                name, turn = outside
                raise ValueError(
                    f"dialogue {self.id!r}: reference {reference.id!r} has {name} at turn {turn} of "
                    f"{len(self.turns)}"
                )
            if self.tools and reference.name not in self.tools:
                raise ValueError(
                    f"dialogue {self.id!r}: reference {reference.id!r} uses {reference.name!r}, not offered"
                )
        return self

    @property
    def decision_turns(self) -> tuple[int, ...]:
        """The turns after which the agent decides: every user turn, 1-based."""
        return tuple(turn.index for turn in self.turns if turn.speaker == "user")


def _outside(reference: Reference, turns: int) -> tuple[str, int] | None:
    """(field, turn) of a reference, windows aside, that lies outside a dialogue of ``turns`` turns."""
    trigger = reference.observed_trigger
    if trigger is not None and not 0 <= trigger <= turns:  # 0: the agent acted before any turn
        return "observed_trigger", trigger
    places = {"values_seen": reference.values_seen}
    places |= {f"value_turns.{name}": turn for name, turn in reference.value_turns.items()}
    return next(((name, at) for name, at in places.items() if at is not None and not 1 <= at <= turns), None)
