"""Chat messages in OpenAI's format, read as a transcript with its log of actions.

- ``user`` and ``assistant`` messages with text are turns.
- ``tool_calls`` (and the older ``function_call``) of an assistant are actions: references whose trigger is
  the last user turn before the call. Arguments that are no JSON object, and calls before the user spoke, are
  left out, counted (`unreadable_calls`, `actions_before_user`) and named in `Corpus.losses`.
- ``system`` and ``developer`` messages are instructions, ``tool`` and ``function`` messages are results: no
  turns, counted as `system_messages` and `tool_messages`.
- Of a message in parts, the text is kept and other parts are counted (`parts_without_text`). A message
  without text or calls is left out (`empty_turns`).

``references`` and ``withdrawn`` beside messages are not read, since nothing says what their triggers count
(`ignored_keys`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from proactor.files import valid_utf8
from proactor.sources.base import Malformed

INSTRUCTIONS = frozenset({"system", "developer"})
RESULTS = frozenset({"tool", "function"})
KEYS = {"role", "content", "tool_calls", "function_call", "tool_call_id"}
"""What is read of a message; the last one only ties a result to its call."""
_UNREAD = frozenset({"references", "withdrawn"})


def is_chat(record: Mapping[str, Any]) -> bool:
    """Whether a record holds chat messages rather than turns."""
    return "messages" in record and "turns" not in record


def as_transcript(
    record: Mapping[str, Any],
    counters: Counter[str],
    losses: list[str],
    is_user: Callable[[str], bool] = lambda role: role.strip().casefold() == "user",
) -> dict[str, Any]:
    """``record`` with ``turns`` and ``references`` in place of its messages. ``losses`` gets a line for each
    call that is left out; ``is_user`` knows the user by role. Raises Malformed.
    """
    messages = record["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise Malformed("`messages` is not a list of objects")
    turns: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    spoken = 0
    for number, message in enumerate(messages, start=1):
        role = message.get("role")
        if not isinstance(role, str):
            raise Malformed(f"message {number}: no role (found {role!r})")
        kind = role.strip().casefold()
        if kind in INSTRUCTIONS or kind in RESULTS:
            counters["system_messages" if kind in INSTRUCTIONS else "tool_messages"] += 1
            continue
        calls = list(_calls(message, number))
        text = _text(message.get("content"), number, counters)
        if text is not None:
            turns.append({"speaker": role, "text": text})
        elif not calls:
            counters["empty_turns"] += 1
        if text is not None and is_user(role):
            spoken = len(turns)
        for name, arguments in calls:
            if (params := _arguments(arguments)) is None:
                counters["unreadable_calls"] += 1
                losses.append(f"message {number}: {name}: its arguments are no JSON object")
            elif not spoken:
                counters["actions_before_user"] += 1
                losses.append(f"message {number}: {name}: called before the user spoke")
            else:
                reference = {"id": f"a{len(references) + 1}", "name": name, "params": params}
                references.append(reference | {"observed_trigger": spoken})
    counters["ignored_keys"] += len(record.keys() & _UNREAD)
    result = {k: v for k, v in record.items() if k != "messages" and k not in _UNREAD}
    return {**result, "turns": turns, "references": references}


def _text(content: object, number: int, counters: Counter[str]) -> str | None:
    """The text of a message's content; None for a message without any."""
    if content is None or isinstance(content, str):
        return content if content and content.strip() else None
    if not isinstance(content, list):
        raise Malformed(f"message {number}: content is neither text nor a list of parts (found {content!r})")
    texts = [part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)]
    counters["parts_without_text"] += len(content) - len(texts)
    return "\n".join(texts) if any(text.strip() for text in texts) else None


def _calls(message: Mapping[str, Any], number: int) -> Iterator[tuple[str, object]]:
    """(tool, arguments) of the calls in a message."""
    listed = message.get("tool_calls") or []
    if not isinstance(listed, list):
        raise Malformed(f"message {number}: `tool_calls` is not a list")
    functions = [call.get("function", call) if isinstance(call, dict) else call for call in listed]
    if message.get("function_call") is not None:
        functions.append(message["function_call"])
    for function in functions:
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(name, str) or not name:
            raise Malformed(f"message {number}: a tool call without a name")
        yield name, function.get("arguments")


def _arguments(arguments: object) -> dict[str, Any] | None:
    """The arguments of a call, which are JSON text or an object; None when they are neither."""
    if isinstance(arguments, str):
        if not arguments.strip():
            return {}
        try:  # numbers keep their spelling
            arguments = json.loads(arguments, parse_int=str, parse_float=str)
        except (ValueError, RecursionError):
            return None
    if arguments is None:
        return {}
    return arguments if isinstance(arguments, dict) else None


def tool_name(tool: object) -> object:
    """The name of a tool on offer, given as a name or as a definition."""
    if not isinstance(tool, dict):
        return tool
    function = tool.get("function", tool)
    return function.get("name") if isinstance(function, dict) else function


def tool_names(tools: Sequence[object]) -> list[object]:
    """The names of tools on offer, each once."""
    names = [tool_name(tool) for tool in tools]
    return [name for i, name in enumerate(names) if name not in names[:i]]


def params_as_text(params: Mapping[str, Any], counters: Counter[str]) -> dict[str, str]:
    """The values of an action as text: a number as it is written, a list by its items, an object as JSON.

    Values that are null were not given. Neither were blank texts, empty lists and empty objects, which are
    counted (`values_empty`). Others that were no text are counted (`values_as_text`), and so are those with
    half of a surrogate pair, which becomes a question mark (`broken_characters`).
    """
    texts: dict[str, str] = {}
    for name, value in params.items():
        if value is None:
            continue
        text = value if isinstance(value, str) else value_text(value)
        if not text.strip() or value == {}:
            counters["values_empty"] += 1
            continue
        texts[name] = valid_utf8(text)
        counters["broken_characters"] += texts[name] != text
        counters["values_as_text"] += not isinstance(value, str)
    return texts


def value_text(value: object) -> str:
    """A value of JSON as text: a number as it is written, a list by its items, an object as JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return ", ".join(item if isinstance(item, str) else value_text(item) for item in value)
    return json.dumps(value, ensure_ascii=False)
