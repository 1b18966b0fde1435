"""The templates of pages: their environment, and the one script that a page may run."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from proactor.report import marks
from proactor.report.comparison import Sides
from proactor.report.inline import TEMPLATES, joined, policy_hash
from proactor.report.numbers import number, signed_number


def environment(sides: Sides) -> jinja2.Environment:
    """The environment of a page's templates; ``sides`` names the systems in the tooltips of marks."""
    made = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"number": number, "signed_number": signed_number}
    names = {"before": sides.before, "after": sides.after}

    def mark(kind: str, system: str, words: str = "", count: int = 1) -> Markup:
        return marks.mark(kind, system, words, count, names.get(system, system))

    made.globals |= {"mark": mark, "symbols": marks.symbols, "number": number, "sides": sides}
    return made


def script(*names: str) -> dict[str, Any]:
    """The files ``names`` as the page's script, and the hash by which its content policy allows it."""
    text = joined(TEMPLATES / name for name in names)
    return {"script": text, "script_hash": policy_hash(text)}


def pack(rows: Sequence[dict[str, Any]]) -> Markup:
    """Rows for the page's script, the drawn HTML of each among them: JSON, deflated (zlib), in base64."""
    text = base64.b64encode(zlib.compress(json.dumps(rows).encode(), 9)).decode()
    return Markup(text)  # nosec B704 # base64 holds nothing that could be a tag
