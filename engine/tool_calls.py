"""What a reply says and which tools it calls: the text of a model, read in one pass.

Two forms. ``hermes`` (Hermes, Qwen2.5, Qwen3, SmolLM2): JSON between ``<tool_call>`` tags, an object with
``name`` and ``arguments``, or a list of such. ``llama3``: JSON objects with ``name`` and ``parameters``,
wherever they stand, with or without ``<|python_tag|>``. Both take either name of the arguments, an
OpenAI-like ``function`` around them, and arguments written as a JSON text.

Whatever is not part of a call stays in the reply's content, broken calls too, and each has a `Problem`.
Reading is linear in the length of the text: what one JSON value was read from is not read again for the next.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

Form = Literal["hermes", "llama3"]
FORMS: Final[tuple[Form, ...]] = ("hermes", "llama3")

Kind = Literal[
    "broken_json", "too_deep", "repeated_key", "bad_number", "bad_text", "not_an_object", "empty_list",
    "no_name", "arguments_not_an_object", "text_inside", "stray_close", "unclosed", "extra_keys",
    "unclosed_thinking",
]  # fmt: skip
"""What is wrong. ``bad_number``: NaN, infinite, or too long to be read; ``bad_text``: half of a surrogate
pair. A call is made all the same where its tag is only ``unclosed``, or where it has ``extra_keys``.
"""

_TAG: Final = re.compile(r"<(/?)tool_call>")
_SPACE: Final = re.compile(r"\s*")
_PYTHON_TAG: Final = "<|python_tag|>"
_CALL_LIKE: Final = re.compile(r'\{\s*"(?:name|type|function|parameters|arguments)"')
_SEPARATORS: Final = re.compile(r"[\s;,\[\]]*")
_THINK: Final = "<think>"
_THOUGHT: Final = "</think>"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of the tool ``name``. ``arguments`` by name, as JSON reads them."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with ``text``, a part of a reply."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, read. ``content``: the text outside of calls, as it is where there is no call, else stripped
    piece by piece and joined by newlines. ``thinking``: what stood before ``</think>``.
    """

    content: str
    calls: tuple[ToolCall, ...] = ()
    problems: tuple[Problem, ...] = ()
    thinking: str = ""

    def counts(self) -> Counter[str]:
        """``replies``, ``calls``, ``text_around`` (replies with text beside their calls) and each problem."""
        counts = Counter({"replies": 1, "calls": len(self.calls)})
        counts["text_around"] = int(bool(self.calls and self.content))
        counts.update(problem.kind for problem in self.problems)
        return +counts


def read_reply(text: str, form: Form = "hermes") -> Reply:
    """The calls in ``text`` and what is around them."""
    thinking, said, problems = _split_thinking(text)
    outside, calls, found = _read_tags(said) if form == "hermes" else _read_objects(said)
    problems += found
    if not calls:
        return Reply("".join(outside), (), tuple(problems), thinking)
    if form == "llama3" and _SEPARATORS.fullmatch("".join(outside)):
        outside = []
    content = "\n".join(piece for text in outside if (piece := text.strip()))
    return Reply(content, tuple(calls), tuple(problems), thinking)


def _split_thinking(text: str) -> tuple[str, str, list[Problem]]:
    """(thinking, the rest, problems). Thinking begins at the start, or in the prompt."""
    opened = text.lstrip().startswith(_THINK)
    before, thought, after = text.partition(_THOUGHT)
    if thought and (opened or not _TAG.search(before)):
        return before.lstrip().removeprefix(_THINK).strip("\n"), after.lstrip("\n"), []
    if opened:
        return text, "", [Problem("unclosed_thinking", text)]
    return "", text, []


def _read_tags(text: str) -> tuple[list[str], list[ToolCall], list[Problem]]:
    """(pieces outside of calls, calls, problems) of the form ``hermes``."""
    tags, reader = list(_TAG.finditer(text)), _Reader(text)
    outside: list[str] = []
    calls: list[ToolCall] = []
    problems: list[Problem] = []
    at, done = 0, 0  # the next tag; text up to here is dealt with
    while at < len(tags):
        tag, at = tags[at], at + 1
        if tag[1]:
            problems.append(Problem("stray_close", tag[0]))
            continue
        outside.append(text[done : tag.start()])
        value, end, fault = reader.read(tag.end())
        close = at
        if fault is None:
            while close < len(tags) and tags[close].start() < end:  # tags inside of texts
                close += 1
        limit = tags[close].start() if close < len(tags) else len(text)
        if fault is None and text[end:limit].strip():
            fault, close = "text_inside", at
            limit = tags[close].start() if close < len(tags) else len(text)
        closed = close < len(tags) and bool(tags[close][1])
        done, at = (tags[close].end(), close + 1) if closed else (limit, close)
        made = _calls(value) if fault is None else fault
        whole = text[tag.start() : done]
        if isinstance(made, str):
            problems.append(Problem(made, whole))
            outside.append(whole)
            continue
        calls += [call for call, _ in made]
        problems += [Problem("extra_keys", whole) for _, extra in made if extra]
        if not closed:
            problems.append(Problem("unclosed", whole))
    outside.append(text[done:])
    return outside, calls, problems


def _read_objects(text: str) -> tuple[list[str], list[ToolCall], list[Problem]]:
    """(pieces outside of calls, calls, problems) of the form ``llama3``."""
    text = text.replace(_PYTHON_TAG, "", 1) if text.lstrip().startswith(_PYTHON_TAG) else text
    reader = _Reader(text)
    outside: list[str] = []
    calls: list[ToolCall] = []
    problems: list[Problem] = []
    done, at = 0, text.find("{")
    while at >= 0:
        value, end, fault = reader.read(at)
        if fault is not None or _looks_like_call(value):
            made = _calls(value) if fault is None else fault
            if not isinstance(made, str):
                outside.append(text[done:at])
                done = end
                calls += [call for call, _ in made]
                problems += [Problem("extra_keys", text[at:end]) for _, extra in made if extra]
            elif _CALL_LIKE.match(text, at):
                problems.append(Problem(made, text[at:end]))
        at = text.find("{", end)
    outside.append(text[done:])
    return outside, calls, problems


def _looks_like_call(value: Any) -> bool:
    return "name" in value or isinstance(value.get("function"), Mapping)


def _calls(value: Any) -> list[tuple[ToolCall, bool]] | Kind:
    """The calls that a JSON value holds, each with whether it has unread keys; or what is wrong."""
    if value == []:
        return "empty_list"
    made = []
    for item in value if isinstance(value, list) else [value]:
        call = _call(item)
        if isinstance(call, str):
            return call
        made.append(call)
    return made


def _call(value: Any) -> tuple[ToolCall, bool] | Kind:
    if not isinstance(value, Mapping):
        return "not_an_object"
    inner = value.get("function")
    if isinstance(inner, Mapping):
        known, value = value.keys() <= {"function", "type", "id"}, inner
    else:
        known = True
    name = value.get("name")
    if not isinstance(name, str) or not name:
        return "no_name"
    key = "arguments" if "arguments" in value else "parameters"
    arguments = value.get(key)
    if isinstance(arguments, str):
        written = arguments or "{}"
        arguments, end, fault = _Reader(written).read(0)
        if fault is not None or written[end:].strip():
            return fault or "text_inside"
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        return "arguments_not_an_object"
    return ToolCall(name, arguments), not (known and value.keys() <= {"name", key, "type", "id"})


class _Document(str):
    """A text whose places have no line numbers: each of JSON's errors would count the lines before it."""

    __slots__ = ()

    def count(self, *_: object) -> int:
        """No line breaks."""
        return 0

    def rfind(self, *_: object) -> int:
        """Nowhere."""
        return -1


class _Reader:
    """Reads JSON values from one text.

    What JSON readers pass over in silence does not end the reading, so that the value's end is known; the
    first of it is noted as ``fault``.
    """

    def __init__(self, text: str) -> None:
        self.fault: Kind | None = None
        self._text = _Document(text)
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_int=self._integer,
            parse_float=self._float,
        )

    def read(self, at: int) -> tuple[Any, int, Kind | None]:
        """(value, end, what is wrong) of the JSON at ``at``; a broken one ends where reading stopped."""
        self.fault, begin = None, _SPACE.match(self._text, at).end()  # type: ignore[union-attr]
        try:
            value, end = self._decoder.raw_decode(self._text, begin)
        except json.JSONDecodeError as error:
            return None, max(error.pos, at + 1), "broken_json"
        except RecursionError:
            return None, len(self._text), "too_deep"
        if self.fault is None and "\\ud" in self._text[begin:end].lower() and not _encodable(value):
            self.fault = "bad_text"
        return value, end, self.fault

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            self.fault = self.fault or "repeated_key"
        return value

    def _constant(self, name: str) -> float:
        self.fault = self.fault or "bad_number"
        return float(name)

    def _float(self, digits: str) -> float:
        number = float(digits)
        return self._constant(digits) if math.isinf(number) else number

    def _integer(self, digits: str) -> int:
        try:
            return int(digits)
        except ValueError:  # more digits than Python reads
            return int(self._constant("0"))


def _encodable(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True
