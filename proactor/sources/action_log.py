"""The log of actions in a transcript: values as text, triggers on user turns, tools that there are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.catalog import Catalog, Tool
from proactor.dialogue.literal import says
from proactor.sources import messages
from proactor.sources.base import Malformed, last_user_turn

KINDS = ("references", "withdrawn")
"""Keys of a record that hold actions."""

_NUMBER = re.compile(r"([+-]?\d+)\.(\d+)")
_TURN = re.compile(r"(\d{1,9})(\.0*)?")
_COUNTED = ("coverage", "value_turns", "values_seen")
"""Keys of an action, beside its trigger, that count turns."""


def values_as_text(record: Mapping[str, Any], counters: Counter[str]) -> dict[str, Any]:
    """A record whose actions have text as values; other things are left to validation."""

    def read(mark: Any) -> Any:
        if not isinstance(mark, dict) or not isinstance(mark.get("params"), dict):
            return mark
        return {**mark, "params": messages.params_as_text(mark["params"], counters)}

    listed = {kind: record[kind] for kind in KINDS if isinstance(record.get(kind), list)}
    return {**record, **{kind: [read(mark) for mark in marks] for kind, marks in listed.items()}}


def placed(
    marks: Sequence[Any],
    turns: Sequence[Turn],
    places: Sequence[int],
    counters: Counter[str],
    losses: list[str],
) -> list[Any]:
    """Actions with ids, and with triggers on user turns, as turns are counted now.

    ``places``: the number of ``turns`` up to each turn of the record. Raises Malformed where turns were left
    out on which a window counts.
    """
    left_out = places[-1] < len(places) - 1
    listed = []
    for number, mark in enumerate(marks, start=1):
        if not isinstance(mark, dict):
            listed.append(mark)  # validation refuses it
            continue
        if left_out and (key := next((key for key in _COUNTED if mark.get(key) not in (None, {})), None)):
            raise Malformed(f"a turn (of system or tool, or empty) cannot be left out: `{key}` counts on it")
        trigger = _turn(mark)
        if trigger is None or not 0 <= trigger < len(places):
            listed.append({"id": f"a{number}", **mark})
            continue
        user = last_user_turn(turns, places[trigger])
        if user is None:
            counters["actions_before_user"] += 1
            losses.append(f"{mark.get('name')}: run at turn {trigger}, before the user spoke")
            continue
        counters["triggers_moved"] += user != places[trigger]
        listed.append({"id": f"a{number}", **mark, "observed_trigger": user})
    return listed


def _turn(mark: Mapping[str, Any]) -> int | None:
    """The turn of an action's trigger. A column with gaps is often written as 4.0 or "4". Raises Malformed
    for what is no number of a turn.
    """
    value = mark.get("observed_trigger")
    if value is None or type(value) is int:
        return value
    if isinstance(value, float | str) and (match := _TURN.fullmatch(str(value).strip())):
        return int(match[1])
    raise Malformed(f"observed_trigger: {value!r} is not the number of a turn")


def fitted(
    dialogue: Dialogue, catalog: Catalog, file: Path, drop: bool, counters: Counter[str], losses: list[str]
) -> Dialogue:
    """``dialogue`` with actions as the tools of ``file`` have them.

    Raises Malformed for a tool that is not there, unless ``drop`` leaves its actions out (`unknown_tools`).
    Values of parameters that the tool does not have are counted (`unknown_parameters`). A number is spelled
    as its parameter and the dialogue have it (`_spelled`).
    """
    marks = (*dialogue.references, *dialogue.withdrawn)
    unknown = [name for name in (*(m.name for m in marks), *dialogue.tools) if name not in catalog]
    if unknown and not drop:
        raise Malformed(
            f"tool {unknown[0]!r} is not in {file}: add it there, or leave its actions out with the option "
            "unknown_tools=drop (--option unknown_tools=drop)"
        )
    counters["unknown_tools"] += len(unknown)
    losses += [f"{mark.name}: the tool is not in {file}" for mark in marks if mark.name not in catalog]
    for mark in marks:
        if mark.name in catalog:
            known = {parameter.name for parameter in catalog[mark.name].parameters}
            counters["unknown_parameters"] += len(mark.params.keys() - known)
    kept = {kind: [m for m in getattr(dialogue, kind) if m.name in catalog] for kind in KINDS}
    actions = {kind: tuple(_spelled(m, catalog[m.name], dialogue) for m in kept[kind]) for kind in KINDS}
    tools = tuple(name for name in dialogue.tools if name in catalog)
    return dialogue.model_copy(update={**actions, "tools": tools})


def _spelled(mark: Reference, tool: Tool, dialogue: Dialogue) -> Reference:
    """An action whose numbers are written as they are meant: a log has 50.0 for what is said as "50"."""
    types = {parameter.name: parameter.type for parameter in tool.parameters}
    changed = {}
    for name, value in mark.params.items():
        if (match := _NUMBER.fullmatch(value)) and types.get(name) in ("integer", "number"):
            changed[name] = _spelling(value, match, types[name], dialogue)
    return mark.model_copy(update={"params": mark.params | changed}) if changed else mark


def _spelling(value: str, match: re.Match[str], type: str, dialogue: Dialogue) -> str:
    """A number with a fraction: of an integer without one of zero; else as the dialogue says it, where it
    does: with cents (12.5 is "12.50"), or without a fraction of zero.
    """
    whole = match[1] if not match[2].strip("0") else value
    if type == "integer":
        return whole
    cents = f"{match[1]}.{match[2]:0<2}"
    said = (form for form in (value, cents) if any(says(turn.text, form) for turn in dialogue.turns))
    return next(said, whole)
