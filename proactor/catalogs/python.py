"""Tools from a Python module, one per public function: types from annotations, descriptions from docstrings.

Annotations become types through pydantic's JSON Schema, so all that pydantic understands works: Literal and
Enum, date and time, Optional, Annotated with Field, dataclasses and models (flattened by one level). The
module is imported, so its code runs: `catalogs.read` asks for leave. A function may carry `effect` and
`confirm` as attributes.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticUserError

from proactor.catalogs.base import CatalogError, Reading, Remark, Tools, declared_fields
from proactor.catalogs.schema import SchemaReader, Spot
from proactor.dialogue.catalog import Parameter, Tool

PREFIX = "module:"
_SECTION = re.compile(r"^[ \t]*(\w[\w ]*):[ \t]*$|^[ \t]*-{3,}[ \t]*$", re.MULTILINE)
_ARGUMENTS = re.compile(
    r"^[ \t]*(?:Args|Arguments|Parameters|Params):[ \t]*\n((?:[ \t]+\S.*\n?|[ \t]*\n)*)", re.MULTILINE
)
_ENTRY = re.compile(r"^\*{0,2}(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")
_SPHINX = re.compile(r"^[ \t]*:param\s+(?:[^:\n]*\s)?(\w+):[ \t]*(.*)$", re.MULTILINE)


def read(source: str | Path) -> Reading:
    """The tools of `path.py`, ``module:path.py`` or ``module:package.name``."""
    spec = str(source).removeprefix(PREFIX)
    module = _from_file(Path(spec)) if spec.endswith(".py") else _from_name(spec)
    file = Path(getattr(module, "__file__", None) or spec)  # built-in modules have none
    _refuse_doubles(file)
    collected = Tools()
    for name, function in _functions(module):
        _add(collected, name, function, f"{file}:{inspect.unwrap(function).__code__.co_firstlineno}")
    return collected.reading(spec, "python")


@contextmanager
def _importable(*folders: Path) -> Iterator[None]:
    """Put folders in front of `sys.path`: it lacks the working directory in a console script."""
    added = [str(folder) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def _from_name(name: str) -> ModuleType:
    with _importable(Path.cwd()):
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:  # whatever the module's own code raises
            raise CatalogError(f"{PREFIX}{name}: {_describe(error)}") from error


def _from_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise CatalogError(f"{file}: no such file")
    name = f"proactor_tools_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise CatalogError(f"{file}: not a Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # annotations given as text are resolved there, also later
    with _importable(file.resolve().parent, Path.cwd()):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:  # whatever the module's own code raises
            del sys.modules[name]
            line = _line(error, file)
            raise CatalogError(f"{file}{f':{line}' if line else ''}: {_describe(error)}") from error
    return module


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".replace("\n", " ")


def _line(error: BaseException, file: Path) -> int | None:
    """The line of ``file`` that an import failed at."""
    if isinstance(error, SyntaxError):
        return error.lineno
    return next(
        (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(file)),
        None,
    )


def _refuse_doubles(file: Path) -> None:
    """A second function of a name silently replaces the first when Python runs the module."""
    if file.suffix != ".py":
        return
    seen: dict[str, int] = {}
    for node in ast.parse(file.read_bytes()).body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
            continue
        if any("overload" in ast.unparse(decorator) for decorator in node.decorator_list):
            continue
        if node.name in seen:
            raise CatalogError(
                f"{file}:{node.lineno}: tool {node.name!r} is defined twice (first in line {seen[node.name]})"
            )
        seen[node.name] = node.lineno


def _functions(module: ModuleType) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Public functions: those in `__all__`, or those that the module itself defines, in its order."""
    listed = getattr(module, "__all__", None)
    if not isinstance(listed, list | tuple | set | None):
        raise CatalogError(f"{module.__name__}: __all__ is {listed!r}, not a list of names")
    for name, value in vars(module).items():
        if not inspect.isfunction(value):
            continue
        if listed is not None:
            public = name in listed
        else:
            defined_here = value.__module__ == module.__name__ and value.__name__ == name
            public = defined_here and not name.startswith("_")
        if public:
            yield name, value


def _add(collected: Tools, name: str, function: Callable[..., Any], where: str) -> None:
    described, words = _docstring(inspect.getdoc(function) or "")
    hints = _hints(function, f"{where}: tool {name!r}")
    attributes = {
        f"x-{key}": getattr(function, key) for key in ("effect", "confirm") if hasattr(function, key)
    }

    def build() -> Tool:
        parameters: list[Parameter] = []
        for argument in inspect.signature(function).parameters.values():
            if argument.kind in (argument.VAR_POSITIONAL, argument.VAR_KEYWORD):
                collected.remarks.append(Remark(name, argument.name, "variadic_left_out"))
                continue
            about = f"{where}: tool {name!r}, parameter {argument.name!r}"
            schema = _schema(hints.get(argument.name, Any), about)
            schema = {"description": words.get(argument.name, ""), **schema}
            reader = SchemaReader(name, lambda place: where, collected.remarks)
            required = argument.default is argument.empty
            parameters += reader.parameter(argument.name, Spot(schema, schema), required)
        return Tool(
            name=name,
            description=described,
            parameters=tuple(parameters),
            **declared_fields(where, name, attributes),
        )

    collected.add(where, name, build)


def _hints(function: Callable[..., Any], about: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (Exception, SystemExit) as error:  # an annotation is code of the module's own
        raise CatalogError(f"{about}: an annotation cannot be resolved ({error})") from error


def _schema(annotation: Any, about: str) -> dict[str, Any]:
    """pydantic's JSON Schema of an annotation; a text in Annotated is the description."""
    description = ""
    if get_origin(annotation) is Annotated:
        description = next((extra for extra in get_args(annotation)[1:] if isinstance(extra, str)), "")
    try:
        schema = TypeAdapter(annotation).json_schema()
    except PydanticUserError as error:
        raise CatalogError(f"{about}: unknown type {annotation!r} ({str(error).splitlines()[0]})") from None
    except (Exception, SystemExit) as error:  # the schema of a class of the module's own
        raise CatalogError(f"{about}: type {annotation!r}: {_describe(error)}") from error
    return {**schema, "description": description} if description else schema


def _docstring(text: str) -> tuple[str, dict[str, str]]:
    """(text before the first section, description by parameter), in the forms of Google and Sphinx."""
    words = {name: " ".join(description.split()) for name, description in _SPHINX.findall(text)}
    if section := _ARGUMENTS.search(text):
        words |= _entries(section[1])
    text = _SPHINX.split(text, maxsplit=1)[0]
    head = _SECTION.search(text)
    before = text[: head.start()] if head else text
    if head and not head[1]:  # an underlined title: the title is its section's, not ours
        before = before.rstrip().rpartition("\n")[0]
    return " ".join(before.split()), words


def _entries(body: str) -> dict[str, str]:
    """Descriptions by name, from entries ``name (type): words`` with further lines indented more."""
    lines = [line for line in body.splitlines() if line.strip()]
    indent = min((len(line) - len(line.lstrip()) for line in lines), default=0)
    words: dict[str, str] = {}
    name = ""
    for line in lines:
        entry = _ENTRY.match(line.strip()) if len(line) - len(line.lstrip()) == indent else None
        if entry:
            name = entry[1]
            words[name] = entry[2].strip()
        elif name:
            words[name] = f"{words[name]} {line.strip()}".strip()
    return words
