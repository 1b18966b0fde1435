"""Jinja templates that others wrote: sandboxed, and bounded in steps and text.

A template comes with a model's folder or a config, and is a program. Jinja's sandbox keeps it from Python's
internals and from changing what it is given. Here it can also neither run on nor fill the memory: items of
loops, calls, filters and operators count as steps, and a text longer than `LONGEST_TEXT` as made by any of
them is refused.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from contextvars import ContextVar
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from proactor.engine.types import EngineError, one_line

MOST_STEPS = 1_000_000
"""Steps of one rendering: a second or so."""
LONGEST_TEXT = 2**24
"""Characters of a text, and items of a list, that a template makes."""
LONGEST_SOURCE = 2**20
"""Characters of a template."""
TEXT_STEP = 1024
"""Characters, or items of a list, that cost one step."""

_WIDTHS = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "indent", "batch", "slice"})
"""Methods and filters with a number of characters or items among their arguments."""
_WIDE = re.compile(r"[%).+ #-]\d{8,}[hlLdiouxXeEfFgGcrsa]")
"""A width or precision in a %-format, above `LONGEST_TEXT`."""
_STARRED = re.compile(r"[%).+#0-]\*")
"""One that is among the values."""
_COUNTED, _BOUNDED = "items counted", "text bounded"  # no template can write these names

_steps: ContextVar[int] = ContextVar("_steps", default=MOST_STEPS)


class TemplateError(EngineError):
    """A template that does not work, or does not end; the message is one line and says what fails."""


class Template:
    """A template's source, ready to be rendered; ``chat``: with what templates of chat models rely on.

    Unknown names are an error, or empty text for ``chat``. Raises TemplateError naming the line where the
    source is no template.
    """

    def __init__(self, source: str, *, chat: bool = False) -> None:
        if not isinstance(source, str):
            raise TemplateError(f"should be a text, not {source!r:.60}")
        if len(source) > LONGEST_SOURCE:
            raise TemplateError(f"{len(source)} characters, at most {LONGEST_SOURCE} are read")
        try:
            self._template = (_chat_environment() if chat else _environment()).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {one_line(error)}") from None
        except ValueError as error:  # a number with more digits than Python reads
            raise TemplateError(one_line(error)) from error
        except (RecursionError, SyntaxError, MemoryError) as error:  # of Python's compiler
            raise TemplateError("nested too deeply") from error

    def render(self, **values: Any) -> str:
        """The text for these values. Raises TemplateError for whatever the template raises."""
        token = _steps.set(MOST_STEPS)
        try:
            return self._template.render(values)
        except jinja2.TemplateError as error:
            raise TemplateError(one_line(error)) from error
        except Exception as error:  # a template is a program: its expressions may raise anything
            raise TemplateError(f"{type(error).__name__}: {one_line(error)}") from error
        finally:
            _steps.reset(token)


def _spend(steps: int = 1) -> None:
    left = _steps.get() - steps
    if left < 0:
        raise SecurityError(f"more than {MOST_STEPS} steps: does it end?")
    _steps.set(left)


def _bounded(value: Any) -> Any:
    """``value``, if it is not too long; its length costs steps."""
    if isinstance(value, str | bytes | list | tuple):
        if len(value) > LONGEST_TEXT:
            raise SecurityError(f"a text or list of {len(value)}, at most {LONGEST_TEXT} is allowed")
        _spend(len(value) // TEXT_STEP)
    return value


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _spend()
        yield item


def _joined(pieces: Iterable[str]) -> str:
    """The pieces of a template, macro or block as one text."""
    kept, length = [], 0
    for piece in pieces:
        length += len(piece)
        if length > LONGEST_TEXT:
            raise SecurityError(f"a text of more than {LONGEST_TEXT} characters")
        kept.append(piece)
    _spend(1 + length // TEXT_STEP)
    return "".join(kept)


def _check_widths(name: str, values: Iterable[object]) -> None:
    if name in _WIDTHS and any(isinstance(v, int) and abs(v) > LONGEST_TEXT for v in values):
        raise SecurityError(f"{name} to more than {LONGEST_TEXT}")


def _percent(text: object, values: object) -> None:
    """Refuse ``text % values`` with a width or precision above `LONGEST_TEXT`."""
    if not isinstance(text, str):
        return
    widths = values if isinstance(values, tuple) and _STARRED.search(text) else ()
    if _WIDE.search(text) or any(isinstance(v, int) and abs(v) > LONGEST_TEXT for v in widths):
        raise SecurityError(f"% to more than {LONGEST_TEXT}")


class _Formatter(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        if any(int(digits) > LONGEST_TEXT for digits in re.findall(r"\d+", format_spec)):
            raise SecurityError(f"format to more than {LONGEST_TEXT}")
        return super().format_field(value, format_spec)


def _limited(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that costs a step, and one for each item of the list that it takes."""

    @wraps(filter_)  # with Jinja's marks for what the filter is passed first
    def limited(*values: Any, **options: Any) -> Any:
        _check_widths(name, (*values, *options.values()))
        if name == "format":
            _percent(values[0], values[1:])
        _spend(1 + sum(len(v) for v in values if isinstance(v, Sized) and not isinstance(v, str | Mapping)))
        return _bounded(filter_(*values, **options))

    return limited


class _Bounds(NodeTransformer):
    """Puts filters that count around what loops go through, and filters that measure around ``a ~ b``."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = nodes.Filter(node.iter, _COUNTED, [], [], None, None, lineno=node.lineno)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return nodes.Filter(node, _BOUNDED, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(_joined)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: _limited(name, f) for name, f in self.filters.items()}
        self.filters |= {_COUNTED: _counted, _BOUNDED: _bounded}
        del self.globals["lipsum"]  # makes text of any length

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``text.format`` and ``text.format_map``, bounded."""
        if super().wrap_str_format(value) is None:
            return None
        text, formatter = value.__self__, _Formatter(self)
        if value.__name__ == "format":
            return lambda *values, **options: formatter.vformat(text, values, options)
        return lambda values: formatter.vformat(text, (), values)

    def call(self, context: Context, function: Any, /, *values: Any, **options: Any) -> Any:
        _spend()
        _check_widths(getattr(function, "__name__", ""), (*values, *options.values()))
        if isinstance(function, LoopContext) and values:  # a recursive loop goes through these
            values = (_counted(values[0]), *values[1:])
        return _bounded(super().call(context, function, *values, **options))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        _spend()
        if operator == "%":
            _percent(left, right)
        if operator in ("*", "**") and _size(operator, left, right) > LONGEST_TEXT:
            raise SecurityError(f"{operator} makes more than {LONGEST_TEXT} digits or characters")
        return _bounded(super().call_binop(context, operator, left, right))


def _size(operator: str, left: object, right: object) -> int:
    """About how many bits, characters or items a product or power has."""
    if isinstance(left, int) and isinstance(right, int):
        size = left.bit_length()
        return size * max(right, 0) if operator == "**" else size + right.bit_length()
    for text, times in ((left, right), (right, left)):
        if isinstance(text, Sized) and isinstance(times, int):
            return len(text) * times
    return 0


def _environment() -> jinja2.Environment:
    return _Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)


def _chat_environment() -> jinja2.Environment:
    """The dialect of transformers' `apply_chat_template`: its settings, tags, filters and functions."""
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _limited("tojson", _to_json)
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment


class _Generation(Extension):
    """``{% generation %}…{% endgeneration %}`` marks what an assistant says; the text is what is inside."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own annotation)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _refuse(message: object) -> None:
    raise jinja2.TemplateError(str(message))


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
