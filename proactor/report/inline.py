"""Files of this package inside a page, and the hashes by which its content policy allows them."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from pathlib import Path

from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def joined(files: Iterable[Path]) -> Markup:
    """The text of files of this package, one after the other, as it goes into a page."""
    return Markup("".join(file.read_text(encoding="utf-8") for file in files))  # nosec B704


def policy_hash(text: str) -> str:
    """The hash by which a page's content policy allows a script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
