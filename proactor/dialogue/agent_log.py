"""What an agent at work decides, and the log of its conversations: JSON lines, one event each, as they came.

The events of one conversation name it and need not stand together. A log is read again as transcripts with
their actions by `sources.agent_log`, and drawn by `proactor report`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError

from proactor.dialogue.dialogue import Speaker
from proactor.files import LONGEST_INTEGER, SourceError, first_problem, parse_json, read_bytes, valid_utf8

Kind = Literal["wait", "ask", "fire"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Act(_Frozen):
    """An action of a decision: ``fire`` it now, or ``ask`` the user for assent. ``id``: its name within the
    conversation, for `Agent.confirm`, `reject` and `result`. ``probability``, ``threshold``: of a calibrated
    agent.
    """

    id: str
    kind: Literal["ask", "fire"]
    name: str
    params: dict[str, str] = Field(default_factory=dict)
    probability: float | None = None
    threshold: float | None = None


class Near(_Frozen):
    """A tool that was near and does not act, and ``why``. ``missing``: its required parameters without a
    value.
    """

    name: str
    params: dict[str, str] = Field(default_factory=dict)
    probability: float | None = None
    threshold: float | None = None
    missing: tuple[str, ...] = ()
    why: str = ""


class Decision(_Frozen):
    """What to do now, after ``turn`` (from 1): the strongest ``kind`` of its ``actions``, with the reason.

    ``decided``: False after a turn of the agent's own, when nothing is decided. ``wait``: the probability of
    waiting. ``budget``: wrong fires in 100 dialogues that the thresholds were chosen for; None where there
    are none, and the model's greedy ``answer`` decides. ``dropped``: turns that it no longer reads.
    """

    conversation: str
    turn: int
    kind: Kind = "wait"
    actions: tuple[Act, ...] = ()
    near: tuple[Near, ...] = ()
    reason: str = ""
    decided: bool = True
    wait: float | None = None
    budget: float | None = None
    answer: str = ""
    dropped: int = 0
    seconds: float = 0.0

    @property
    def action(self) -> Act | None:
        """The first action; None where it waits."""
        return next(iter(self.actions), None)

    @property
    def fires(self) -> tuple[Act, ...]:
        """The actions to run now."""
        return tuple(act for act in self.actions if act.kind == "fire")

    @property
    def asks(self) -> tuple[Act, ...]:
        """The actions that the user is to be asked about."""
        return tuple(act for act in self.actions if act.kind == "ask")

    @property
    def calibrated(self) -> bool:
        """Whether thresholds decided."""
        return self.budget is not None


def _loggable(value: Any) -> Any:
    """A value that a program gave, with text in place of bytes, of integers that `parse_json` refuses, and of
    what is nested too deeply to be written.
    """
    try:
        return _plain(value, DEEPEST)
    except RecursionError:
        return f"{type(value).__name__}, nested too deeply"


def _plain(value: Any, levels: int) -> Any:
    if not levels:
        raise RecursionError
    if isinstance(value, Mapping):
        return {
            _plain(key, levels) if isinstance(key, bytes | int | str) else key: _plain(v, levels - 1)
            for key, v in value.items()
        }
    if isinstance(value, list | tuple):
        return [_plain(item, levels - 1) for item in value]
    if isinstance(value, bytes | bytearray):
        return repr(value)
    if isinstance(value, str):
        return valid_utf8(value)
    return hex(value) if isinstance(value, int) and abs(value) >= _TOO_LONG else value


DEEPEST = 200
"""Levels of lists and mappings in a value that is logged; pydantic writes some 250."""
_TOO_LONG = 10 ** (LONGEST_INTEGER - 1)
Loggable = Annotated[Any, BeforeValidator(_loggable)]


class _Event(_Frozen):
    """``agent``: which one wrote it; several may write to one log."""

    agent: str = ""
    at: str = Field(default_factory=lambda: time.strftime("%Y-%m-%dT%H:%M:%S%z"))


class Started(_Event):
    """An agent begins. ``thresholds``: by tool, ``default`` for others, chosen for ``budget`` on
    ``dialogues``; all None or 0 without calibration.
    """

    event: Literal["started"] = "started"
    run: str
    adapter: str
    version: str
    thresholds: dict[str, float] | None = None
    default: float | None = None
    budget: float | None = None
    dialogues: int = 0


class Opened(_Event):
    """A conversation begins. ``tools``: those on offer, empty for all of the catalog."""

    event: Literal["opened"] = "opened"
    conversation: str
    tools: tuple[str, ...] = ()


class Said(_Event):
    """A turn."""

    event: Literal["turn"] = "turn"
    conversation: str
    turn: int
    speaker: Speaker
    text: str


class Decided(_Event):
    """A decision after a user turn."""

    event: Literal["decision"] = "decision"
    conversation: str
    decision: Decision


class Answered(_Event):
    """What people, or the tool, made of an action: confirmed or rejected by a person, or run."""

    event: Literal["confirm", "reject", "result"]
    conversation: str
    act: str
    ok: bool = True
    content: Loggable = None


class Refused(_Event):
    """Something given that could not be used, as it was given."""

    event: Literal["refused"] = "refused"
    conversation: str
    error: str
    given: Loggable = None


class LeftOut(_Event):
    """An instruction, or a tool's result: no turn."""

    event: Literal["left_out"] = "left_out"
    conversation: str
    speaker: str
    text: str


class Closed(_Event):
    """A conversation ends. ``idle``: by itself, because nothing came for long."""

    event: Literal["closed"] = "closed"
    conversation: str
    idle: bool = False


Event = Started | Opened | Said | Decided | Answered | Refused | LeftOut | Closed
_EVENT: TypeAdapter[Event] = TypeAdapter(Annotated[Event, Field(discriminator="event")])


def read_events(file: Path) -> Iterator[tuple[int, Event]]:
    """(line, event) of a log. Raises SourceError, naming the line, for one that is none."""
    for number, line in enumerate(read_bytes(file).splitlines(), start=1):
        if line.strip():
            try:
                yield number, _EVENT.validate_python(parse_json(line, file, number))
            except ValidationError as error:
                raise SourceError(f"{file}:{number}: {first_problem(error, top='event')}") from None


def is_log(first: bytes) -> bool:
    """Whether a file that begins with the line ``first`` is a log."""
    return first.lstrip().startswith((b'{"event":', b'{"event" :'))
