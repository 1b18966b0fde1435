"""Conversations that come twice, or in parts over several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proactor.commands.calls import refusal
from tests.proactor.transcripts.exports import CSV, NAMES, WANTED, chat, imported, lines, put, says, words


def test_duplicates_are_counted_under_any_id(tmp_path: Path) -> None:
    turns = [says("user", "hi"), says("assistant", "yes")]
    records = [
        chat("a", *turns),
        chat("a", *turns),
        chat("b", *turns),
        chat("c", *turns[:1], says("assistant", "no")),
    ]
    file = put(tmp_path / "x.jsonl", lines(*records))
    corpus, report = imported(tmp_path, file)
    assert sorted(words(corpus)) == ["a", "c"] and report["counters"]["duplicates"] == 2
    assert "'b' is the same as 'a'" in report["left_out"][1]
    corpus, _ = imported(tmp_path, file, "--option", "duplicates=keep", "--same-id", "rename", "--force")
    assert sorted(words(corpus)) == ["a", "a-2", "b", "c"]


def test_a_conversation_split_over_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, *rows = CSV.splitlines(keepends=True)
    one = put(tmp_path / "1.csv", head + "".join(rows[:3]))
    two = put(tmp_path / "2.csv", head + rows[3])
    said = refusal(capsys, "import", one, two, *NAMES, "--dry-run")
    assert "2.csv:2: conversation 'c2' appears twice (first in " in said and "--same-id join" in said
    corpus, report = imported(tmp_path, one, two, *NAMES, "--same-id", "join")
    assert words(corpus) == WANTED and report["counters"]["conversations_joined"] == 1


@pytest.mark.parametrize("same_id", ["join", "rename"])
def test_a_part_that_comes_again_is_a_duplicate(tmp_path: Path, same_id: str) -> None:
    first = chat("a", says("user", "hi"), says("assistant", "yes"))
    second = chat("a", says("user", "and"), says("assistant", "no"))
    file = put(tmp_path / "x.jsonl", lines(first, second, first, second))
    corpus, report = imported(tmp_path, file, "--same-id", same_id)
    one, two = [("user", "hi"), ("agent", "yes")], [("user", "and"), ("agent", "no")]
    assert words(corpus) == ({"a": one + two} if same_id == "join" else {"a": one, "a-2": two})
    assert report["counters"]["duplicates"] == 2
    assert "x.jsonl:4: 'a' is the same as" in report["left_out"][1] and "x.jsonl:2" in report["left_out"][1]
