"""Finds the JSON values in what a model wrote, in one pass over the text.

All readers of model output use it, so that they tolerate the same things: text and code fences around the
values, several values, Python's spelling (single quotes, ``True``, ``None``), missing and trailing commas,
and values that are cut off or broken, of which the complete items remain. No value is read twice: after a
broken one, the search goes on where it broke.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from proactor.files import valid_utf8

DEEPEST = 64
"""Lists and objects inside each other that are read; what lies deeper is no answer."""

Failure = Literal["", "truncated", "bad_json", "too_deep"]

_BRACKET = re.compile(r"[\[{]")
_OPENING = re.compile(r"""\[\s*(?:[\[{"'\]]|$)|\{\s*(?:["'}]|$)""")
# Possessive quantifiers: no position is tried twice.
_TOKEN = re.compile(
    r"""\s*+(?:
        (?P<mark>[\[\]{},:])
        | "(?P<double>(?:[^"\\]++|\\.)*+)"
        | '(?P<single>(?:[^'\\]++|\\.)*+)'
        | (?P<number>-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+)(?![\w.])
        | (?P<word>true|false|null|True|False|None|NaN|-?Infinity)\b
    )""",
    re.VERBOSE | re.DOTALL,
)
_SPACE = re.compile(r"\s*+")
_CUT_NUMBER = re.compile(r"-?[0-9]*+\.?[0-9]*+[eE]?[+-]?\Z")
_WORDS = {"true": True, "false": False, "null": None, "True": True, "False": False, "None": None}
_ALL_WORDS = (*_WORDS, "NaN", "Infinity", "-Infinity")
_ESCAPE = re.compile(
    r"\\(?:(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U(000[0-9a-fA-F]{5}|0010[0-9a-fA-F]{4}))|(.))", re.DOTALL
)
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "\n": ""} | {c: c for c in "\"'\\/"}


class Number(str):
    """A JSON number as it was written, so that a reader can tell ``5`` from ``"5"``."""

    __slots__ = ()


class JsonObject(dict[str, Any]):
    """An object; ``repeated``: the keys that were given several values, of which the last one stayed."""

    __slots__ = ("repeated",)

    def __init__(self, pairs: Iterable[tuple[str, Any]]) -> None:
        super().__init__()
        repeated = set()
        for key, value in pairs:
            key = clean(key)
            value = clean(value) if type(value) is str else value
            if key in self and self[key] != value:
                repeated.add(key)
            self[key] = value
        self.repeated: frozenset[str] = frozenset(repeated)


@dataclass(frozen=True, slots=True)
class Found:
    """A list or an object, ``text[start:end]``.

    ``failure``: why it is not complete; then ``value`` has the complete items of its list (of the list that
    is the value of the last key, for an object), or is None. ``loose``: it is no strict JSON.
    """

    value: Any
    start: int
    end: int
    failure: Failure = ""
    loose: bool = False


def clean(text: str) -> str:
    """``text`` as all readers of model output give it: lone surrogates become question marks. Control
    characters, NUL included, are text, which JSON escapes wherever it is written.
    """
    return text if text.isascii() else valid_utf8(text)


def find_values(text: str) -> list[Found]:
    """The outermost lists and objects in ``text``, in order. Total; time is linear in the length.

    Numbers are `Number`, so that none is rounded or too long; NaN and infinities are text. Brackets in prose
    are passed over. Nothing is read after a value that is too deep.
    """
    found: list[Found] = []
    position = 0
    while (match := _BRACKET.search(text, position)) is not None:
        start = match.start()
        value = (_read_strict(text, start) if not position else None) or read_value(text, start)
        position = max(value.end, start + 1)
        if value.failure and not _OPENING.match(text, start):
            continue
        found.append(value)
        if value.failure == "too_deep":
            break
    return found


def _read_strict(text: str, start: int) -> Found | None:
    """The value at ``start`` if it is strict JSON, read in C; for the first one of a text only, because a
    failure costs a look at the whole text.
    """
    if text.count("[") + text.count("{") > DEEPEST:
        return None
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError:
        return None
    return Found(value, start, end)


def read_value(text: str, start: int = 0) -> Found:
    """The list or object that begins at ``start``, where ``text`` has a bracket."""
    outer = _Open(text[start])
    stack = [outer]
    position = start + 1
    while (token := _TOKEN.match(text, position)) is not None:
        mark = token["mark"]
        top = stack[-1]
        if mark in ("[", "{") and top.takes_value and len(stack) == DEEPEST:
            return Found(_complete_items(stack), start, token.end(), "too_deep")
        if not _take(stack, token):
            # A string in the wrong place is passed over whole: nothing is looked at twice.
            end = token.end() if mark is None else token.start("mark")
            return Found(_complete_items(stack), start, end, "bad_json")
        position = token.end()
        if not stack:
            return _spelled(text, start, position, outer.close())
    space = _SPACE.match(text, position)
    at = position if space is None else space.end()
    if _is_cut_off(text, at):
        return Found(_complete_items(stack), start, len(text), "truncated")
    return Found(_complete_items(stack), start, at, "bad_json")


class _Open:
    """A list, or an object (``items`` are pairs), that is being read; ``key`` waits for its value."""

    __slots__ = ("colon", "is_list", "items", "key")

    def __init__(self, bracket: str) -> None:
        self.is_list = bracket == "["
        self.items: list[Any] = []
        self.key: str | None = None
        self.colon = False

    @property
    def takes_value(self) -> bool:
        return self.is_list or self.colon

    def add(self, value: object) -> None:
        self.items.append(value if self.is_list else (self.key, value))
        self.key, self.colon = None, False

    def close(self) -> Any:
        return self.items if self.is_list else JsonObject(self.items)


def _take(stack: list[_Open], token: re.Match[str]) -> bool:
    """Take ``token`` into what is open, if it may stand there. The last bracket leaves an empty stack."""
    top, kind = stack[-1], token.lastgroup
    if kind == "mark":
        return _take_mark(stack, token["mark"])
    if top.takes_value:
        top.add(_leaf(token))
        return True
    if top.key is None and kind in ("double", "single"):
        top.key = _unescape(token[kind])
        return True
    return False


def _take_mark(stack: list[_Open], mark: str) -> bool:
    top = stack[-1]
    if mark in "[{":
        if top.takes_value:
            stack.append(_Open(mark))
            return True
        return False
    if mark == ":":
        if top.is_list or top.key is None or top.colon:
            return False
        top.colon = True
        return True
    if top.key is not None or (mark != "," and top.is_list != (mark == "]")):
        return False  # a key without a value, or a bracket that closes nothing
    if mark != ",":  # commas may be too many or missing
        stack.pop()
        if stack:
            stack[-1].add(top.close())
    return True


def _leaf(token: re.Match[str]) -> Any:
    """A string, a number or a constant."""
    if (number := token["number"]) is not None:
        return Number(number)
    if (word := token["word"]) is not None:
        return _WORDS.get(word, word)
    return _unescape(token["double"] if token["double"] is not None else token["single"])


def _unescape(text: str) -> str:
    """The characters of a string; an unknown escape stays as it is written."""
    if "\\" not in text:
        return text
    text = _ESCAPE.sub(_unescape_one, text)
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")  # joins pairs


def _unescape_one(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    return chr(int(code, 16)) if code else _ESCAPED.get(escape[4], escape[0])


def _spelled(text: str, start: int, end: int, value: Any) -> Found:
    """The complete value at ``start:end``, with Python's own reading of it where it is strict JSON."""
    try:
        return Found(_DECODER.decode(text[start:end]), start, end)
    except json.JSONDecodeError:
        return Found(value, start, end, loose=True)


def _complete_items(stack: list[_Open]) -> Any:
    """The complete items of a broken value: of the outermost list, also where an object holds it."""
    if stack[0].is_list:
        return stack[0].items
    if len(stack) > 1 and stack[1].is_list:
        return {stack[0].key: stack[1].items}
    return None


def _is_cut_off(text: str, at: int) -> bool:
    """Whether what stands at ``at`` is no token only because the text ends."""
    rest = text[at : at + len("-Infinity")]
    ends = at + len(rest) == len(text)
    # A quote that begins no token is never closed.
    return rest[:1] in ("", '"', "'") or bool(
        (ends and any(word.startswith(rest) for word in _ALL_WORDS)) or _CUT_NUMBER.match(text, at)
    )


# strict=False: raw line breaks in strings.
_DECODER = json.JSONDecoder(
    parse_int=Number, parse_float=Number, parse_constant=str, object_pairs_hook=JsonObject, strict=False
)
