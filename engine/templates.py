"""Jinja templates that others wrote: sandboxed, and bounded in steps, time and text.

A template comes with a model's folder or a config, and is a program. Jinja's sandbox keeps it from Python's
internals and from changing what it is given. Here it can also neither run on nor fill the memory: items of
loops, calls, filters and operators spend of a budget (`template_limits`), and what they read and make is
weighed.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Mapping, Sequence, Sized
from functools import wraps
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from proactor.engine.template_limits import (
    bounded,
    budget,
    check_format,
    check_made,
    check_operation,
    check_percent,
    counted,
    joined,
    metered,
    spend,
    weigh,
)
from proactor.engine.types import EngineError, one_line

LONGEST_SOURCE = 2**18
"""Characters of a template."""
LONGEST_DATE_FORM = 200
"""Characters of the argument of ``strftime_now``."""

_COUNTED, _BOUNDED, _WEIGHED = "items counted", "text bounded", "value weighed"  # no template can write these
_SHALLOW = frozenset(
    {
        *("length", "count", "list", "first", "last", "default", "d", "reverse", "items", "batch", "slice"),
        *("map", "select", "reject", "selectattr", "rejectattr", "attr", "random", "safe"),
    }
)
"""Filters that neither compare what they are given nor turn it to text."""
_COMPARING = frozenset(
    {
        *("==", "eq", "equalto", "!=", "ne", ">", "gt", "greaterthan", ">=", "ge", "<", "lt", "lessthan"),
        *("<=", "le", "in", "lower", "upper"),
    }
)
"""Tests that do."""
_NO_METHODS = frozenset({"encode", "expandtabs", "translate"})
"""Methods of a text that no template needs and that would have to be bounded one by one."""


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
            with budget():  # Jinja computes what is constant
                self._template = (_chat_environment() if chat else _environment()).from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise TemplateError(f"line {error.lineno}: {one_line(error)}") from None
        except ValueError as error:  # a number with more digits than Python reads
            raise TemplateError(one_line(error)) from error
        except (RecursionError, SyntaxError, MemoryError) as error:  # of Python's compiler
            raise TemplateError("nested too deeply") from error

    def render(self, **values: Any) -> str:
        """The text for these values. Raises TemplateError for whatever the template raises."""
        try:
            with budget():
                return self._template.render(values)
        except jinja2.TemplateError as error:
            raise TemplateError(one_line(error)) from error
        except Exception as error:  # a template is a program: its expressions may raise anything
            raise TemplateError(f"{type(error).__name__}: {one_line(error)}") from error


class _Formatter(SandboxedFormatter):
    """``text.format``, bounded."""

    def convert_field(self, value: Any, conversion: Any) -> Any:
        weigh(value)
        return super().convert_field(value, conversion)

    def format_field(self, value: Any, format_spec: str) -> Any:
        weigh(value)
        check_format(format_spec)
        return bounded(super().format_field(value, format_spec))


def _limited(name: str, filter_: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that costs a step, and one for each item of the list that it takes."""

    @wraps(filter_)  # with Jinja's marks for what the filter is passed first
    def limited(*values: Any, **options: Any) -> Any:
        passed = [metered(value) for value in values]
        given = [v for v in (*passed, *options.values()) if not isinstance(v, _PASSED)]
        spend(1 + sum(len(v) for v in given if isinstance(v, Sized) and not isinstance(v, str | Mapping)))
        check_made(name, given)
        if name == "format":
            check_percent(given[0], tuple(given[1:]))
        if name not in _SHALLOW:
            for value in given:
                weigh(value)
        return bounded(filter_(*passed, **options))

    return limited


def _weighing(test: Callable[..., Any]) -> Callable[..., Any]:
    """A test whose operands are weighed."""

    @wraps(test)
    def weighing(*values: Any) -> Any:
        for value in values:
            weigh(value)
        return test(*values)

    return weighing


_PASSED = (Context, nodes.EvalContext, jinja2.Environment)
"""What Jinja passes to some filters before their own arguments."""


def _weighed(value: Any) -> Any:
    """``value``, which is about to be compared or turned to text."""
    weigh(value)
    return value


class _Bounds(NodeTransformer):
    """Puts filters that count around what loops go through, and filters that weigh around what is compared,
    put together, cut out or used as a key.
    """

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered(node.iter, _COUNTED)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        node.nodes = [_filtered(part, _WEIGHED) for part in node.nodes]
        return _filtered(node, _BOUNDED)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        node.expr = _filtered(node.expr, _WEIGHED)
        for operand in node.ops:
            operand.expr = _filtered(operand.expr, _WEIGHED)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filtered(node, _BOUNDED) if isinstance(node.arg, nodes.Slice) else node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _filtered(node.key, _WEIGHED)
        return node


def _filtered(node: Any, name: str) -> nodes.Expr:
    """The node within a filter of ours; a constant as it is."""
    if isinstance(node, nodes.Const):
        return node
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)


class _Environment(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "*", "**", "%"})
    concat = staticmethod(joined)

    def __init__(self, **options: Any) -> None:
        super().__init__(finalize=_weighed, **options)
        self.filters = {name: _limited(name, f) for name, f in self.filters.items()}
        self.filters |= {_COUNTED: counted, _BOUNDED: bounded, _WEIGHED: _weighed}
        tests: dict[str, Any] = self.tests
        tests |= {name: _weighing(tests[name]) for name in _COMPARING}
        del self.globals["lipsum"]  # makes text of any length

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Bounds().visit(super()._parse(source, name, filename))
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Not so are `_NO_METHODS` either."""
        return super().is_safe_attribute(obj, attr, value) and not (
            isinstance(obj, str) and attr in _NO_METHODS
        )

    def getitem(self, obj: Any, argument: Any) -> Any:
        """``obj[argument]``: a tuple is read when it is a key."""
        if isinstance(argument, tuple):
            weigh(argument)
        return super().getitem(obj, argument)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``text.format`` and ``text.format_map``, bounded."""
        if super().wrap_str_format(value) is None:
            return None
        text, formatter = value.__self__, _Formatter(self)
        if value.__name__ == "format":
            return lambda *values, **options: formatter.vformat(text, values, options)
        return lambda values: formatter.vformat(text, (), values)

    def call(self, context: Context, function: Any, /, *values: Any, **options: Any) -> Any:
        spend()
        given: Sequence[Any] = (*values, *options.values())
        owner = getattr(function, "__self__", None)
        if isinstance(owner, str | list | tuple):  # a method that reads all of it
            given = (owner, *given)
        check_made(getattr(function, "__name__", ""), given)
        if isinstance(function, LoopContext) and values:  # a recursive loop goes through these
            values = (counted(values[0]), *values[1:])
        else:
            values = tuple(metered(value) for value in values)
            for value in given:
                if not isinstance(value, Namespace):  # a macro may take one
                    weigh(value)
        return bounded(super().call(context, function, *values, **options))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        spend()
        check_operation(operator, left, right)
        if operator == "%":
            weigh(right)
        return bounded(super().call_binop(context, operator, left, right))


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
    if len(form) > LONGEST_DATE_FORM:
        raise jinja2.TemplateError(f"a date's form of {len(form)} characters, at most {LONGEST_DATE_FORM}")
    return datetime.datetime.now().strftime(form)
