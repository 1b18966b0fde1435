"""The table of the documentation is the one that the command prints."""

from __future__ import annotations

from pathlib import Path

from bench.memory_budgets import CARDS, SIZES, table


def test_the_documented_table(repo_root: Path) -> None:
    text = (repo_root / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert table() in text, "put what `python -m bench.memory_budgets` prints into docs/architecture.md"
    assert len(table().splitlines()) == 2 + len(SIZES) and table().count("GB |") >= len(CARDS)
