"""The log of actions in a transcript: values as text, triggers on user turns, tools that there are."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.catalog import Catalog, Tool
from proactor.sources import messages
from proactor.sources.base import Malformed, last_user_turn

KINDS = ("references", "withdrawn")
"""Keys of a record that hold actions."""

_WHOLE = re.compile(r"([+-]?\d+)\.0+")


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
    listed = []
    for number, mark in enumerate(marks, start=1):
        trigger = mark.get("observed_trigger") if isinstance(mark, dict) else None
        if places[-1] < len(places) - 1 and isinstance(mark, dict) and mark.get("coverage") is not None:
            raise Malformed(
                "a turn (of system or tool, or empty) cannot be left out: the windows count on it"
            )
        if not isinstance(mark, dict) or not isinstance(trigger, int) or not 0 <= trigger < len(places):
            listed.append({"id": f"a{number}", **mark} if isinstance(mark, dict) else mark)
            continue
        user = last_user_turn(turns, places[trigger])
        if user is None:
            counters["actions_before_user"] += 1
            losses.append(f"{mark.get('name')}: run at turn {trigger}, before the user spoke")
            continue
        counters["triggers_moved"] += user != places[trigger]
        listed.append({"id": f"a{number}", **mark, "observed_trigger": user})
    return listed


def fitted(
    dialogue: Dialogue, catalog: Catalog, file: Path, drop: bool, counters: Counter[str], losses: list[str]
) -> Dialogue:
    """``dialogue`` with actions as the tools of ``file`` have them.

    Raises Malformed for a tool that is not there, unless ``drop`` leaves its actions out (`unknown_tools`).
    Values of parameters that the tool does not have are counted (`unknown_parameters`); a whole number with a
    fraction of zero ("4411.0") loses it where the parameter is an integer.
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
    actions = {kind: tuple(_whole(m, catalog[m.name]) for m in listed) for kind, listed in kept.items()}
    tools = tuple(name for name in dialogue.tools if name in catalog)
    return dialogue.model_copy(update={**actions, "tools": tools})


def _whole(mark: Reference, tool: Tool) -> Reference:
    integers = {p.name for p in tool.parameters if p.type == "integer"}
    found = {name: _WHOLE.fullmatch(value) for name, value in mark.params.items() if name in integers}
    whole = {name: match[1] for name, match in found.items() if match}
    return mark.model_copy(update={"params": mark.params | whole}) if whole else mark
