"""The page that reviewers work in: one HTML text with its styles and scripts, the same for all windows.

It holds no data; its script asks this server for them and writes every text as text. The content policy
allows the one style and the one script by their hashes, requests to this server only, and no HTML made from
strings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import jinja2

from proactor.report.inline import TEMPLATES as OF_REPORTS
from proactor.report.inline import joined, policy_hash

TEMPLATES = Path(__file__).parent / "templates"
STYLES = ("frame.css", "stage.css", "inspector.css", "narrow.css")
SCRIPTS = ("elements.js", "store.js", "bands.js", "drag.js", "stage.js", "inspector.js", "list.js", "keys.js")


@dataclass(frozen=True, slots=True)
class Page:
    """``policy``: the content security policy that goes with ``html``."""

    html: str
    policy: str


def build_page() -> Page:
    """The page, and its policy."""
    style = joined([OF_REPORTS / "colours.css", *(TEMPLATES / name for name in STYLES)])
    script = joined(TEMPLATES / name for name in SCRIPTS)
    policy = (
        f"default-src 'none'; style-src '{policy_hash(style)}'; script-src '{policy_hash(script)}'; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )
    html = environment.get_template("review.html.j2").render(style=style, script=script)
    return Page(html, policy)
