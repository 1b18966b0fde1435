"""The tools behind a log of calls: as the conversations define them, else as they were called [INFERRED].

A tool that is only called has the parameters of its calls, in the order of their first use. One is required
where every call gives it, and is an integer, a number or a boolean where every value reads as one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from proactor.catalogs.openai import read_tool
from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.catalog import Catalog, Parameter, ParameterType, Tool
from proactor.sources.base import Record
from proactor.sources.messages import tool_name
from proactor.transcripts.entries import Tally

_TYPES: tuple[tuple[ParameterType, re.Pattern[str]], ...] = (
    ("boolean", re.compile(r"true|false", re.IGNORECASE)),
    ("integer", re.compile(r"-?(0|[1-9]\d{0,17})")),  # a longer one, or one with a leading zero, is a name
    ("number", re.compile(r"-?(0|[1-9]\d{0,17})(\.\d+)?")),
)


def tools_of(records: Iterable[Record], dialogues: Sequence[Dialogue], tally: Tally) -> Catalog:
    """The tools that the conversations define, offer or call, effects unset. A second definition that differs
    is counted (`tools_redefined`), and so is what a catalog cannot hold exactly, by the kind of its `Remark`.
    Raises CatalogError, naming the place, for a definition that is none.
    """
    tools: dict[str, Tool] = {}
    given: dict[str, Any] = {}
    for record in records:
        listed = record.value.get("tools")
        for definition in listed if isinstance(listed, list) else ():
            name = tool_name(definition)
            if not isinstance(definition, dict) or not isinstance(name, str):
                continue
            if name not in given:
                reading = read_tool(definition, record.where)
                given[name], tools[name] = definition, reading.catalog[name]
                tally.counters.update(reading.counters)
            tally.counters["tools_redefined"] += definition != given[name]
    calls: dict[str, list[Reference]] = {}
    for dialogue in dialogues:
        for name in dialogue.tools:
            calls.setdefault(name, [])
        for reference in (*dialogue.references, *dialogue.withdrawn):
            calls.setdefault(reference.name, []).append(reference)
    seen = (_seen_tool(name, made) for name, made in calls.items() if name not in tools)
    return Catalog(tools=(*tools.values(), *seen))


def _seen_tool(name: str, calls: Sequence[Reference]) -> Tool:
    names = dict.fromkeys(parameter for call in calls for parameter in call.params)
    parameters = []
    for parameter in names:
        values = [call.params[parameter] for call in calls if parameter in call.params]
        parameters.append(Parameter(name=parameter, type=_type(values), required=len(values) == len(calls)))
    return Tool(name=name, parameters=tuple(parameters))


def _type(values: Sequence[str]) -> ParameterType:
    return next((kind for kind, form in _TYPES if all(map(form.fullmatch, values))), "string")
