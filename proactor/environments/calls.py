"""A call as UserRL's environments take it: a text with the verb in brackets, or the one tool for all of them.

Where the two forms meet is confirmed by UserRL's code (``verl/tools/interact_tool.py``, ``eval/eval.py``): a
verb that the tool does not offer leaves the content as it is, so that the environment answers that it cannot
read it, unless the content brings a verb of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from proactor.environments.protocol import Call, ToolDefinition

VERBS = ("action", "answer", "search")
"""What the tool offers."""
FINISH = "finish"
"""The verb that ends an episode; the tool does not offer it, a text may hold it."""

INTERACT: ToolDefinition = {
    "type": "function",
    "function": {
        "name": "interact_with_env",
        "description": "Take one step in the environment that the system message describes.",
        "parameters": {
            "type": "object",
            "properties": {
                "choice": {"type": "string", "enum": list(VERBS), "description": "What to do."},
                "content": {"type": "string", "description": "The action, the answer or the search."},
            },
            "required": ["choice", "content"],
        },
    },
}
"""One tool for every environment, named as UserRL's; the descriptions are ours."""

_VERB = re.compile(rf"\[({'|'.join((*VERBS, FINISH))})\]")


def read_call(name: str, arguments: Mapping[str, Any]) -> Call:
    """A tool call as a `Call`: ``choice`` and ``content`` of `INTERACT`, missing ones as "", others as text.
    Another tool's name becomes the verb, which the environment answers as one that it does not know.
    """
    if name != INTERACT["function"]["name"]:
        return Call(name, arguments=arguments)
    choice, content = (str(arguments.get(key, "")) for key in ("choice", "content"))
    return Call(choice, content, arguments)


def to_text(call: Call) -> str:
    """The text that an environment of UserRL takes: ``[verb] content``."""
    if call.verb in VERBS and not call.content.startswith(f"[{call.verb}]"):
        return f"[{call.verb}] {call.content}"
    return f"[{FINISH}]" if call.verb == FINISH else call.content


def from_text(text: str) -> Call:
    """The call that a text in brackets holds; the verb is "" where it begins with none that there is."""
    text = text.strip()
    found = _VERB.match(text)
    return Call(found[1], text[found.end() :].strip()) if found else Call("", text)


def plain(call: Call) -> Call:
    """The call as an environment that reads texts would understand it: a verb that the content brings counts
    where the call's own is none, white space around the content does not.
    """
    return from_text(to_text(call))


def canonical(call: Call) -> tuple[str, str, str]:
    """Equal for calls that differ in case, white space or the order of arguments alone, at any depth.

    The arguments of a call with content are that content again (`read_call`).
    """
    if call.content:
        return call.verb, _canonical(call.content), ""
    return call.verb, "", repr(sorted((key, _canonical(value)) for key, value in call.arguments.items()))


def _canonical(value: Any) -> Any:
    if isinstance(value, str):
        return " ".join(value.casefold().split())
    if isinstance(value, Mapping):
        return {key: _canonical(value[key]) for key in sorted(value, key=str)}
    return [_canonical(one) for one in value] if isinstance(value, list | tuple) else value
