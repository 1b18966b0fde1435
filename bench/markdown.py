"""Markdown for the documentation checks: text without code or comments, and the anchors of headings."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

FENCE = re.compile(r"^( *)(`{3,}|~{3,})[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)")
COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)
HEADING = re.compile(r"^#{1,6} +(.*?) *#*$", re.MULTILINE)


def blank(text: str, pattern: re.Pattern[str]) -> str:
    """``text`` with every match of ``pattern`` replaced by spaces. Lines and offsets stay."""
    return pattern.sub(lambda match: re.sub(r"[^\n]", " ", match.group()), text)


def line_of(text: str, offset: int) -> int:
    """Number of the line that holds ``offset``, from 1."""
    return text.count("\n", 0, offset) + 1


def anchors(file: Path) -> set[str]:
    """Anchors of a file's headings by GitHub's rules: lower case, punctuation dropped, spaces to hyphens; a
    heading that occurs again gets ``-1``, ``-2`` and so on.
    """
    slugs: Counter[str] = Counter()
    names = set()
    for heading in HEADING.findall(blank(file.read_text(encoding="utf-8"), FENCE)):
        words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
        names.add(f"{slug}-{slugs[slug]}" if slugs[slug] else slug)
        slugs[slug] += 1
    return names
