"""Lispress: the s-expressions of SMCalFlow's programs, parsed to a tree and written back.

A node is a symbol or a tuple of nodes. A quoted text is a symbol that keeps its quotes (`text` removes them);
``^type`` is the pair ``("^", type)``. The reader macro ``#`` of Lispress 1.0 is dropped: ``#(String "a")``
reads as ``(String "a")``. The reader is total: any string gives one node or a `LispressError`. The grammar is
that of the release's notes on the format [CODE].
"""

from __future__ import annotations

import json
import re
from typing import TypeAlias

from proactor.engine import ProactorError

Node: TypeAlias = "str | tuple[Node, ...]"

META = "^"
MAX_DEPTH = 200
"""Lists nested deeper are refused, so that code may recurse over a tree; real programs reach 30."""

_TOKEN = re.compile(r'\s*(?:("(?:[^"\\]|\\.)*")|([()^#])|([^\s()"^#]+))', re.DOTALL)
_END = re.compile(r"\s*\Z")


class LispressError(ProactorError):
    """A program that is not one s-expression; the message names the position."""


def read(program: str) -> Node:
    """The one node of ``program``."""
    stack: list[list[Node]] = [[]]
    position = 0
    while not _END.match(program, position):
        token = _TOKEN.match(program, position)
        if token is None:
            raise LispressError(f"position {position}: a text without its end")
        quoted, mark, symbol = token.groups()
        if mark == "(":
            if len(stack) > MAX_DEPTH:
                raise LispressError(f"position {position}: lists nested deeper than {MAX_DEPTH}")
            stack.append([])
        elif mark == "^":
            stack[-1].append(META)
        elif mark == ")":
            if len(stack) == 1:
                raise LispressError(f"position {position}: ')' without '('")
            if stack[-1][-1:] == [META]:
                raise LispressError(f"position {position}: '^' without a type")
            node = tuple(stack.pop())
            _add(stack[-1], node)
        elif quoted or symbol:
            _add(stack[-1], _quote(quoted, position) if quoted else symbol)
        position = token.end()
    if len(stack) > 1:
        raise LispressError(f"position {position}: {len(stack) - 1} '(' without ')'")
    if len(stack[0]) != 1 or stack[0][0] == META:
        raise LispressError(f"position {position}: {len(stack[0])} expressions instead of one")
    return stack[0][0]


def _add(parent: list[Node], node: Node) -> None:
    while parent[-1:] == [META]:
        parent.pop()
        node = (META, node)
    parent.append(node)


def _quote(token: str, position: int) -> str:
    """The quoted text in one spelling of its escapes."""
    try:
        return json.dumps(json.loads(token, strict=False), ensure_ascii=False)
    except ValueError:
        raise LispressError(f"position {position}: a text with a bad escape") from None


def write(node: Node) -> str:
    """A node on one line; ``read(write(node)) == node`` for any node from `read`."""
    parts: list[str] = []
    pending: list[Node] = [node]
    while pending:
        current = pending.pop()
        if isinstance(current, str):
            if parts and parts[-1] not in ("(", META) and current != ")":
                parts.append(" ")
            parts.append(current)
        elif current[:1] == (META,) and len(current) == 2:
            pending += [current[1], META]
        else:
            pending += [")", *reversed(current), "("]
    return "".join(parts)


def text(node: Node) -> str | None:
    """The content of a quoted text, None for any other node."""
    if isinstance(node, str) and node.startswith('"'):
        return str(json.loads(node, strict=False))
    return None


def call(node: Node) -> tuple[str, tuple[Node, ...]]:
    """(function, arguments) of a list, without types and argument names; ("", ()) for a symbol."""
    if isinstance(node, str):
        return "", ()
    items = [n for n in node if not (isinstance(n, tuple) and n[:1] == (META,))]
    if not items or not isinstance(items[0], str):
        return "", tuple(items)
    return items[0], tuple(n for n in items[1:] if not (isinstance(n, str) and n.startswith(":")))
