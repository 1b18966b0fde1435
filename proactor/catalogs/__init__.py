"""Tools of any origin as one catalog: one reader per format, and proposed effects where a format has none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

from proactor.catalogs import jsonschema, openai, proactor, python, sgd, star
from proactor.catalogs.base import CatalogError, Reading, Remark
from proactor.catalogs.detect import Format, detect
from proactor.catalogs.proposal import Proposal, Suggestion, propose
from proactor.dialogue.catalog import Catalog
from proactor.engine import atomic_file

__all__ = [
    "FORMATS",
    "CatalogError",
    "Format",
    "Proposal",
    "Reading",
    "Remark",
    "Suggestion",
    "detect",
    "propose",
    "read",
    "read_catalog",
    "write_catalog",
]

FORMATS: tuple[Format, ...] = get_args(Format)

_READERS: dict[Format, Callable[[Path], Reading]] = {
    "proactor": proactor.read,
    "openai": openai.read,
    "jsonschema": jsonschema.read,
    "sgd": sgd.read,
    "star": star.read,
    "python": python.read,
}


def read(path: str | Path, format: Format | Literal["auto"] = "auto", *, trust_code: bool = False) -> Reading:
    """The tools of a file, a folder or a module (``module:path.py``, ``module:package.name``), with remarks
    on what did not fit. Reading a module runs its code: only with ``trust_code``.

    A tool without `effect` or `confirm` leaves the field unset (`Tool.model_fields_set`); see `propose`.

    Raises CatalogError, ``file:line: what``, naming the tool and the parameter, or the unknown format.
    """
    if format != "auto" and format not in FORMATS:
        raise CatalogError(f"format {format!r} is not one of auto, {', '.join(FORMATS)}")
    if format == "auto":
        format = detect(path)
    if format == "python" and not trust_code:
        raise CatalogError(f"{path}: reading a Python module runs its code; --trust-code allows it")
    if format != "python" and not Path(path).exists():
        raise CatalogError(f"{path}: no such file or folder")
    return _READERS[format](Path(path))


def read_catalog(
    path: str | Path, format: Format | Literal["auto"] = "auto", *, trust_code: bool = False
) -> Catalog:
    """The catalog of `read`."""
    return read(path, format, trust_code=trust_code).catalog


def write_catalog(catalog: Catalog, path: str | Path) -> None:
    """Write a catalog as the ``catalog.json`` that `read_catalog` reads and people edit. Atomic.

    Every field is written: a tool without an effect has one from then on.
    """
    text = json.dumps(catalog.model_dump(mode="json"), indent=2, ensure_ascii=False)
    atomic_file(path, f"{text}\n".encode())
