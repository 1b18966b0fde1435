"""Messages and tool definitions in OpenAI's form, checked, and in the form that chat templates take.

Templates want texts as contents and a call's arguments as a mapping, where OpenAI's form has lists of parts
and a JSON text. A template that knows no tools gets them as text (`in_words`): definitions in the system
message, calls between ``<tool_call>`` tags, results between ``<tool_response>`` tags in a message of the
user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from proactor.engine.chat_template import ChatError, Message

ROLES: Final = ("system", "user", "assistant", "tool")
_KEPT: Final = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content")
_INSTRUCTION: Final = """\
# Tools

You may call one or more functions. These are their signatures:
<tools>
{tools}
</tools>

For each call, write a JSON object with the function's name and its arguments between tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""


def read_messages(messages: Any) -> list[dict[str, Any]]:
    """Messages as templates take them, new dictionaries.

    A message is a mapping, or an object with ``model_dump`` (those of OpenAI's client). ``content`` is a
    text, a list of text parts (joined by newlines), or None beside ``tool_calls``. The role ``developer`` is
    ``system``. Raises ChatError, naming the message, for anything else, and for keys that would be lost.
    """
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise ChatError(f"messages should be a list of messages, not a {type(messages).__name__}")
    read = [_message(message, f"message {i + 1}") for i, message in enumerate(messages)]
    called: dict[str, str] = {}
    for message in read:  # some templates want to know which tool a result is of
        called |= {call.get("id", ""): call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool" and (name := called.get(message.get("tool_call_id", ""))):
            message.setdefault("name", name)
    return read


def read_tools(tools: Any) -> list[dict[str, Any]]:
    """Tool definitions as ``{"type": "function", "function": {"name": …}}``; the inner mapping alone will do.

    Raises ChatError, naming the tool, for anything else and for a name that stands twice.
    """
    if isinstance(tools, str | bytes | Mapping) or not isinstance(tools, Sequence):
        raise ChatError(f"tools should be a list of tool definitions, not a {type(tools).__name__}")
    read: list[dict[str, Any]] = []
    for i, tool in enumerate(tools):
        inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
        if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str) or not inner["name"]:
            raise ChatError(f"tool {i + 1}: should be a mapping with a function's name, not {tool!r:.80}")
        if any(inner["name"] == other["function"]["name"] for other in read):
            raise ChatError(f"tool {i + 1}: there are two with the name {inner['name']!r}")
        read.append({"type": "function", "function": dict(inner)})
    return read


def in_words(
    messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], system: bool
) -> list[dict[str, Any]]:
    """Messages without tools, calls and results, which are written out; results in a row become one message.

    ``system``: whether the template takes system messages; else definitions stand before the first message.
    """
    written: list[dict[str, Any]] = []
    for i, message in enumerate(messages):
        if message["role"] == "tool":
            text = f"<tool_response>\n{message['content']}\n</tool_response>"
            if i and messages[i - 1]["role"] == "tool":
                written[-1]["content"] += f"\n{text}"
            else:
                written.append({"role": "user", "content": text})
        else:
            thought = message.get("reasoning_content")
            pieces = [f"<think>\n{thought}\n</think>\n" if thought else "", message["content"]]
            pieces += map(_call_text, message.get("tool_calls", ()))
            written.append({"role": message["role"], "content": "\n".join(p for p in pieces if p)})
    if tools:
        listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        instruction = _INSTRUCTION.format(tools=listed)
        if written and written[0]["role"] == ("system" if system else "user"):
            pieces = [written[0]["content"], instruction]
            written[0]["content"] = "\n\n".join(p for p in (pieces if system else pieces[::-1]) if p)
        else:
            written.insert(0, {"role": "system" if system else "user", "content": instruction})
    return written


def _call_text(call: Mapping[str, Any]) -> str:
    called = {key: call["function"][key] for key in ("name", "arguments")}
    return f"<tool_call>\n{json.dumps(called, ensure_ascii=False)}\n</tool_call>"


def _message(message: Any, what: str) -> dict[str, Any]:
    if hasattr(message, "model_dump"):
        message = message.model_dump()
    if not isinstance(message, Mapping):
        raise ChatError(
            f"{what}: should be a mapping with 'role' and 'content', not a {type(message).__name__}"
        )
    if lost := [key for key, value in message.items() if key not in _KEPT and value not in (None, [], "")]:
        raise ChatError(f"{what}: no template takes its key {lost[0]!r}")
    role = "system" if message.get("role") == "developer" else message.get("role")
    if role not in ROLES:
        raise ChatError(f"{what}: role {role!r:.40} is none of {', '.join(ROLES)}")
    read = {key: message[key] for key in _KEPT if message.get(key) is not None}
    read["role"], read["content"] = role, _text(message.get("content"), role, what)
    if calls := message.get("tool_calls"):
        if role != "assistant" or isinstance(calls, str | Mapping) or not isinstance(calls, Sequence):
            raise ChatError(f"{what}: tool_calls should be a list, in a message of the assistant")
        read["tool_calls"] = [_tool_call(call, f"{what}: call {i + 1}") for i, call in enumerate(calls)]
    else:
        read.pop("tool_calls", None)  # templates ask whether there is the key
    for key in ("name", "tool_call_id", "reasoning_content"):
        if not isinstance(read.get(key, ""), str):
            raise ChatError(f"{what}: {key} should be a text, not {read[key]!r:.40}")
    return read


def _text(content: Any, role: str, what: str) -> str:
    if content is None and role == "assistant":
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise ChatError(
            f"{what}: content should be a text or a list of parts, not a {type(content).__name__}"
        )
    texts = []
    for part in content:
        if (
            not isinstance(part, Mapping)
            or part.get("type") != "text"
            or not isinstance(part.get("text"), str)
        ):
            raise ChatError(f"{what}: only parts of type 'text' are read, not {part!r:.60}")
        texts.append(part["text"])
    return "\n".join(texts)


def _tool_call(call: Any, what: str) -> dict[str, Any]:
    inner = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(inner, Mapping) or not isinstance(inner.get("name"), str):
        raise ChatError(f"{what}: should be a mapping with a function's name and arguments, not {call!r:.80}")
    arguments = inner.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            raise ChatError(f"{what}: arguments are no JSON: {arguments!r:.60}") from None
    if not isinstance(arguments, Mapping):
        raise ChatError(f"{what}: arguments should be a mapping, not {arguments!r:.60}")
    read = {"type": "function", "function": {"name": inner["name"], "arguments": dict(arguments)}}
    return {"id": call["id"], **read} if isinstance(call.get("id"), str) else read
