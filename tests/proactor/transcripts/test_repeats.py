"""Conversations that come twice, or in parts over several files."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.sources import load
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


def rows(*times: str, speaker: str = "user") -> str:
    return "id,at,who,text\n" + "".join(f"c1,{at},{speaker},said {at}\n" for at in times)


ORDER = ("--columns", "speaker=who,order=at", "--option", "one_speaker=keep")


def joined(folder: Path, *files: Path) -> tuple[list[str], dict[str, int]]:
    """The turns of the one conversation in files, and what was counted."""
    report = imported(folder, *files, *ORDER, "--same-id", "join")[1]
    (dialogue,) = load("jsonl", folder / "out", one_speaker="keep").dialogues
    return [turn.text for turn in dialogue.turns], report["counters"]


@pytest.mark.parametrize(
    "parts",
    [
        [("10:03", "10:04"), ("10:01", "10:02")],
        [("10:01", "10:02"), ("10:03", "10:04")],
        [("10:01", "10:03"), ("10:02", "10:04")],
        [("10:03",), ("10:04", "10:02"), ("10:01",)],
    ],
)
def test_parts_come_in_the_order_of_their_turns(tmp_path: Path, parts: list[tuple[str, ...]]) -> None:
    files = [put(tmp_path / f"{i}.csv", rows(*times)) for i, times in enumerate(parts)]
    texts, counters = joined(tmp_path, *files)
    listed = [at for times in parts for at in times]
    assert texts == [f"said {at}" for at in sorted(listed)]
    assert ("turns_reordered" in counters) == (listed != sorted(listed))


def test_parts_that_follow_within_a_minute_stay_as_they_stand(tmp_path: Path) -> None:
    one, two = (
        put(tmp_path / "1.csv", rows("10:01", "10:02")),
        put(tmp_path / "2.csv", rows("10:02", "10:03")),
    )
    texts, counters = joined(tmp_path, one, two)
    assert [text[-1] for text in texts] == ["1", "2", "2", "3"] and "turns_reordered" not in counters


@pytest.mark.parametrize(
    ("first", "second", "fault"),
    [
        (("1", "2"), ("1", "2"), "both have a turn at '1': which comes first is not known"),
        (("1", "2"), ("10:01",), "not in one order: turn 3 has '10:01' after '2'"),
    ],
)
def test_parts_without_a_common_order_are_refused(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    first: tuple[str, ...],
    second: tuple[str, ...],
    fault: str,
) -> None:
    files = put(tmp_path / "1.csv", rows(*first)), put(tmp_path / "2.csv", rows(*second, speaker="agent"))
    said = refusal(capsys, "import", *files, *ORDER, "--same-id", "join", "--dry-run")
    assert f"2.csv:2: conversation 'c1' continues {files[0]}:2, " in said and fault in said


def test_one_word_said_at_two_times_is_two_parts(tmp_path: Path) -> None:
    files = [put(tmp_path / f"{at}.csv", f"id,at,who,text\nc1,{at},user,ok\n") for at in (1, 2, 3)]
    assert joined(tmp_path, *files)[0] == ["ok"] * 3


def test_parts_bring_their_tools(tmp_path: Path) -> None:
    turns = [says("user", "hi"), says("assistant", "yes")]
    find, book = ({"name": name, "description": name, "parameters": {}} for name in ("find", "book"))
    parts = [chat("a", *turns, tools=[find]), chat("a", says("user", "bye"), tools=[find, book])]
    corpus, _ = imported(tmp_path, put(tmp_path / "x.jsonl", lines(*parts)), "--same-id", "join")
    assert corpus.dialogues[0].tools == corpus.catalog.names == ("find", "book")
    assert corpus.catalog["book"].description == "book"
