"""What a SMCalFlow program asks for: tool calls with parameters in plain words, their assent or withdrawal.

The program of a user turn is parsed, not run. The mapping is [INFERRED] from the programs and the agent's
answers to them: the corpus has no list of tools.

- ``CreateCommitEventWrapper``, ``UpdateCommitEventWrapper``, ``DeleteCommitEventWrapper``,
  ``EventAttendance`` and ``ForwardEventWrapper`` ask for a change; the outermost find, weather, place or
  person query is a look-up, and queries inside another call are its arguments;
- ``ReviseConstraint`` and ``NewClobber`` change the values of the call before; ``ConfirmAndReturnAction`` and
  the ``Choose…Event`` functions assent to it; ``DoNotConfirm`` and a new change withdraw it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from proactor.sources import lispress
from proactor.sources.lispress import Node

Kind = Literal["change", "look", "revise", "assent", "choose", "withdraw"]
Parts = tuple[str, ...]
"""A value as the words said for it, one a part: "tomorrow", "8 pm"."""

CHANGES = {
    "CreateCommitEventWrapper": "create_event",
    "UpdateCommitEventWrapper": "update_event",
    "DeleteCommitEventWrapper": "delete_event",
    "EventAttendance": "respond_to_event",
    "ForwardEventWrapper": "forward_event",
}
LOOKS = {
    "FindEventWrapperWithDefaults": "find_events",
    "FindNumNextEvent": "find_events",
    "FindLastEvent": "find_events",
    "WeatherQueryApi": "get_weather",
    "FindPlace": "find_place",
    "FindPlaceMultiResults": "find_place",
    "FindPlaceAtHere": "find_place",
    "FindManager": "find_person",
    "FindReports": "find_person",
    "FindTeamOf": "find_person",
    "PersonFromRecipient": "find_person",
}
_CHOICES = frozenset(
    {
        "ChooseCreateEvent",
        "ChooseCreateEventFromConstraint",
        "ChooseUpdateEvent",
        "ChooseUpdateEventFromConstraint",
    }
)
_FIELDS = {"showAs": "show_as", "id": "event"}
_OF_EVENTS = frozenset({"update_event", "respond_to_event", "forward_event"})
# Functions whose words say nothing: references to what was said before, and their arguments.
_SILENT = frozenset({"EmptyStructConstraint", "AlwaysTrueConstraint", "Here", "roleConstraint", "Path.apply"})
# Functions that move a value by an amount: without the value, the amount alone says nothing.
_SHIFTS = frozenset({"adjustByPeriod", "adjustByPeriodDuration", "addDurations", "subtractDurations"})
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?L?\Z")


@dataclass(frozen=True, slots=True)
class Step:
    """One request. ``tool``: of a change or look-up, else "". ``params``: the parts of each value."""

    kind: Kind
    tool: str
    params: dict[str, Parts]


def steps(program: Node) -> list[Step]:
    """What the program asks for, in the order of evaluation."""
    asked: list[Step] = []
    bound: dict[str, Node] = {}
    looked: list[Step] = []  # look-ups bound by `let`
    todo: list[tuple[Node, list[Step]]] = [(program, asked)]
    while todo:
        node, into = todo.pop()
        name, args = lispress.call(node)
        if name == "let" and args and isinstance(args[0], tuple):
            pairs = args[0]
            bound |= {k: v for k, v in zip(pairs[::2], pairs[1::2], strict=False) if isinstance(k, str)}
            todo += [(n, into) for n in reversed(args[1:])]
            todo += [(n, looked) for n in reversed(pairs[1::2])]
        elif (step := _step(name, node, args, bound)) is not None:
            (asked if step.kind != "look" else into).append(step)
        elif isinstance(node, tuple):
            todo += [(n, into) for n in reversed(args if name else node)]
    # A query bound by `let` is an argument of the change that uses it, and a look-up of its own otherwise.
    return asked if any(step.kind == "change" for step in asked) else [*asked, *looked]


def _step(name: str, node: Node, args: tuple[Node, ...], bound: dict[str, Node]) -> Step | None:
    if name in CHANGES or name in LOOKS:
        tool = CHANGES.get(name) or LOOKS[name]
        return Step("change" if name in CHANGES else "look", tool, _params(tool, name, args, bound))
    if name in ("ReviseConstraint", "NewClobber"):
        return Step("revise", "", _params("", name, args, bound, empty=True))
    if "ConfirmAndReturnAction" in (name, node):
        return Step("assent", "", {})
    if name in _CHOICES:
        return Step("choose", "", _params("", name, args[:1], bound))
    return Step("withdraw", "", {}) if name == "DoNotConfirm" else None


def _params(
    tool: str, function: str, args: tuple[Node, ...], bound: dict[str, Node], empty: bool = False
) -> dict[str, Parts]:
    """``empty``: keep parameters without words, since a revision "by two hours" voids the value before it."""
    params: dict[str, list[str]] = {}

    def add(slot: str, node: Node) -> None:
        for part in words(node, bound):
            if part not in params.setdefault(slot, []):
                params[slot].append(part)
        if empty:
            params.setdefault(slot, [])

    if tool == "get_weather":
        for slot, arg in zip(("place", "time"), args, strict=False):
            add(slot, arg)
    elif tool in ("find_place", "find_person"):
        for arg in args:
            add(tool.removeprefix("find_"), arg)
    else:
        if function == "FindNumNextEvent" and len(args) > 1:
            add("number", args[1])
            args = args[:1]
        for slot, node in _constraints(args, bound, which="event_" if tool in _OF_EVENTS else ""):
            add(slot, node)
    return {slot: tuple(parts) for slot, parts in params.items() if parts or empty}


def _constraints(args: tuple[Node, ...], bound: dict[str, Node], which: str) -> Iterator[tuple[str, Node]]:
    """(parameter, value) of an event's constraints, such as ``Event.subject_?`` or ``EventOnDate``.

    Constraints inside `Event.id` say which event is meant; their parameters begin with ``which``.
    """
    todo = [(node, "") for node in reversed(args)]
    opened: set[tuple[str, str]] = set()
    while todo:
        node, prefix = todo.pop()
        if isinstance(node, str):
            if node in bound and (node, prefix) not in opened:
                opened.add((node, prefix))
                todo.append((bound[node], prefix))
            continue
        name, inner = lispress.call(node)
        if name == "Event.id":
            todo += [(n, which) for n in reversed(inner)]
        elif name.startswith("Event.") and name.endswith("?"):
            slot = name.removeprefix("Event.").rstrip("?").rstrip("_")
            yield from ((prefix + _FIELDS.get(slot, slot), value) for value in inner)
        elif name.startswith("ResponseStatusType."):
            yield "response", node
        elif name == "RecipientWithNameLike":
            yield f"{prefix}attendees", node
        elif name == "LocationKeyphrase.apply":
            yield f"{prefix}location", node
        elif name.startswith("Event") and "." not in name:
            parts = [value for value in inner if not _is_constraint(value)]
            yield from ((f"{prefix}start", value) for value in parts)
            todo += [(value, prefix) for value in reversed(inner) if value not in parts]
        elif name == "FindNumNextEvent" and len(inner) > 1:
            yield f"{prefix}number", inner[1]
            todo.append((inner[0], prefix))
        elif name not in _SILENT or name == "refer":
            todo += [(n, prefix) for n in reversed(inner)]


def _is_constraint(node: Node) -> bool:
    name = lispress.call(node)[0]
    return name.startswith("Event") or name == "&" or name in _SILENT


def words(node: Node, bound: dict[str, Node] | None = None) -> Parts:
    """The value in plain words: ``(NumberPM 8L)`` -> "8 pm", ``(NextDOW (Friday))`` -> "friday"; a mere
    reference has none.
    """
    bound = bound or {}
    if isinstance(node, str):
        if (quoted := lispress.text(node)) is not None:
            return (" ".join(quoted.split()),) if quoted.strip() else ()
        if _NUMBER.match(node):
            return (node.rstrip("L"),)
        # Without the name itself, so that a binding which refers to itself ends.
        return words(bound[node], {k: v for k, v in bound.items() if k != node}) if node in bound else ()
    name, args = lispress.call(node)
    if name == "TimeAfterDateTime":
        args = args[-1:]
    if name == "refer":
        return tuple(part for arg in args for part in _people(arg))
    if name in _SHIFTS and len(args) > 1 and not words(args[0], bound):
        return ()
    if name in _SILENT or LOOKS.get(name) == "find_events" or name.startswith("Event."):
        return ()
    flat = tuple(part for arg in args for part in words(arg, bound))
    if name == "Date.month" and flat == ("today",):
        return ("this month",)
    if name in _PHRASES and len(flat) == len(args):
        if name.startswith("HourMinute") and len(flat) == 2:
            flat = (flat[0], flat[1].zfill(2))
        return (_PHRASES[name].format(*flat),)
    if name == "negate" and flat:
        return ("not " + " ".join(flat),)
    if flat or args or not name:
        return flat
    return (_CAMEL.sub(" ", name.rsplit(".", 1)[-1].removesuffix("List")).lower(),)


def _people(node: Node) -> Iterator[str]:
    """The names in a reference: ``(refer (… (PersonName.apply "Dan")))`` is about Dan."""
    name, args = lispress.call(node)
    if name == "PersonName.apply":
        yield from (part for arg in args for part in words(arg))
    else:
        for arg in args:
            yield from _people(arg)


_PHRASES = {
    "NumberPM": "{} pm",
    "NumberAM": "{} am",
    "HourMinutePm": "{}:{} pm",
    "HourMinuteAm": "{}:{} am",
    "HourMinuteMilitary": "{}:{}",
    "MD": "{1} {0}",
    "MDY": "{1} {0} {2}",
    "toHours": "{} hours",
    "toMinutes": "{} minutes",
    "toDays": "{} days",
    "toWeeks": "{} weeks",
    "toMonths": "{} months",
    "nextMonthDay": "{1} {2}",
    "previousMonthDay": "{1} {2}",
    "FullMonthofMonth": "{}",
}


_TIME = re.compile(
    r"\d{1,2}(?::\d\d)? [ap]m|\d{1,2}:\d\d|(?:early |late )?(?:morning|afternoon|evening|night)"
    r"|noon|midnight|breakfast|lunch|dinner"
)


def revise_time(before: Parts, after: Parts) -> Parts:
    """A date and time after a revision of one or both: (monday, 8 am), (10 am) -> (monday, 10 am)."""
    timed = [_TIME.fullmatch(part) is not None for part in after]
    if not after or any(timed) != all(timed):
        return after
    return (*(part for part in before if (_TIME.fullmatch(part) is not None) != timed[0]), *after)


def spellings(part: str) -> Parts:
    """Spellings of a part: "8 pm" is also 8pm, 8:00 pm and 8:00pm; "1 hours" is also 1 hour and an hour."""
    if match := re.fullmatch(r"(\d+)(:\d\d)? ([ap]m)", part):
        hour, minutes, half = match[1], match[2] or ":00", match[3]
        dotted = f"{half[0]}.m."
        forms = [
            f"{hour}{minutes} {half}",
            f"{hour}{minutes}{half}",
            f"{hour}{minutes}",
            f"{hour}{minutes} {dotted}",
        ]
        return tuple(forms) if match[2] else (part, f"{hour}{half}", f"{hour} {dotted}", *forms, hour)
    if match := re.fullmatch(r"1 (hour|minute|day|week|month)s", part):
        unit = match[1]
        return (part, f"1 {unit}", f"one {unit}", f"an {unit}", f"a {unit}")
    if match := re.fullmatch(r"([a-z]+) (\d{1,2})", part):
        month, day = match[1], match[2]
        end = "th" if day in ("11", "12", "13") else {"1": "st", "2": "nd", "3": "rd"}.get(day[-1], "th")
        return (
            part,
            f"{month} {day}{end}",
            f"{day}{end} of {month}",
            f"{day} {month}",
            f"{day}{end} {month}",
        )
    return (part,)
