"""Detects the format of a file, a folder or a module spec of tools by a feature that only that format has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

from proactor.catalogs import proactor
from proactor.catalogs.base import CatalogError, json_files, json_value
from proactor.catalogs.openai import SCHEMA_KEYS, WRAPPERS
from proactor.catalogs.python import PREFIX

Format = Literal["proactor", "openai", "jsonschema", "sgd", "star", "python"]


def detect(source: str | Path) -> Format:
    """The format of ``source``. Raises CatalogError when nothing in it looks like tools."""
    path = Path(source)
    if str(source).startswith(PREFIX) or path.suffix == ".py":
        return "python"
    if not path.exists():
        raise CatalogError(f"{path}: no such file or folder")
    format = _of_folder(path) if path.is_dir() else _of_value(json_value(path))
    if format is None:
        raise CatalogError(f"{path}: cannot tell what format its tools are in; name it (--format)")
    return format


def _of_folder(folder: Path) -> Format | None:
    if (folder / proactor.NAME).is_file():
        return "proactor"
    if (folder / "apis.json").is_file():
        return "star"
    if any(folder.glob("schema*.json")) or any(folder.glob("*/schema.json")):
        return "sgd"
    files = json_files(folder)
    return _of_value({file.stem: json_value(file) for file in files[:1]}) if files else None


def _of_value(value: Any) -> Format | None:
    if isinstance(value, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(value.get(key), list)), None)
        if wrapper == "tools" and not any(_is_openai(tool) for tool in value[wrapper]):
            return "proactor"
        if wrapper is not None:
            return "openai"
    if isinstance(value, list):
        kinds: tuple[tuple[Format, Callable[[Any], bool]], ...] = (
            ("sgd", lambda one: isinstance(one, Mapping) and "service_name" in one),
            ("openai", _is_openai),
            ("jsonschema", _is_schema),
            ("openai", lambda one: isinstance(one, Mapping) and "name" in one),
        )
        return next((kind for kind, test in kinds if any(test(one) for one in value)), None)
    if not isinstance(value, Mapping) or not value:
        return None
    if any(isinstance(api, Mapping) and isinstance(api.get("input"), list) for api in value.values()):
        return "star"
    if _is_openai(value):
        return "openai"
    by_name = any(isinstance(one, Mapping) and _is_schema(one) for one in value.values())
    return "jsonschema" if _is_schema(value) or by_name else None


def _is_openai(tool: Any) -> bool:
    """Our own tools have a list of parameters; OpenAI's have an object schema under one of `SCHEMA_KEYS`."""
    if not isinstance(tool, Mapping):
        return False
    has_schema = any(isinstance(tool.get(key), Mapping) for key in SCHEMA_KEYS)
    return (
        tool.get("type") == "function"
        or isinstance(tool.get("function"), Mapping)
        or ("name" in tool and has_schema)
    )


def _is_schema(value: Any) -> bool:
    if not isinstance(value, Mapping):
        return False
    return value.get("type") == "object" or any(
        key in value for key in ("properties", "$ref", "$defs", "allOf")
    )
