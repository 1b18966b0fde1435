"""The dialogues of a page: all of them packed, searched and filtered by its script, a first page without."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import zlib
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Reference
from proactor.report.anatomy import classify_replays
from proactor.report.talks import FIRST_PAGE, OUTCOMES, talks
from proactor.sources import load
from tests.proactor.dialogues import users
from tests.proactor.report.agents import agent, evaluation
from tests.proactor.report.test_page import AFTER, BEFORE, DIALOGUES, HOSTILE, Page, report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
BOOK = Reference(id="r", name="book", params={"day": "monday", "time": "9"}, coverage=(1, 4), ready=(2, 3))


def unpacked(text: str) -> list[dict[str, Any]]:
    """The rows that the page's script reads."""
    packed = re.search(r'id="packed">([^<]*)<', text)
    assert packed is not None
    rows: list[dict[str, Any]] = json.loads(zlib.decompress(base64.b64decode(packed[1])))
    return rows


FALSE = min(
    o.split()[1] for row in unpacked(report()) for o in row["outcomes"]["before"] if o.startswith("false ")
)
"""A tool that the agent of before called for nothing."""


def answer(day: str, status: str = "READY") -> str:
    return json.dumps([{"name": "book", "status": status, "params": {"day": day, "time": "9"}}])


def outcomes_of(texts: dict[int, str]) -> list[tuple[str, str]]:
    dialogue = users(5, BOOK)
    replay = classify_replays([dialogue], evaluation([dialogue], {"d": texts}))["d"]
    return sorted(replay.outcomes(dialogue))


def test_every_outcome_that_can_be_asked_for() -> None:
    monday = answer("monday")
    assert outcomes_of({2: monday}) == [("book", "on_time")]
    assert outcomes_of({1: monday}) == [("book", "early")]
    assert outcomes_of({4: monday}) == [("book", "late")]
    assert outcomes_of({}) == [("book", "missed")]
    assert outcomes_of({2: answer("friday")}) == [("book", "missed"), ("book", "wrong_value")]
    assert outcomes_of({2: monday, 3: monday}) == [("book", "on_time"), ("book", "repeat")]
    other = '[{"name": "call", "status": "READY", "params": {}}]'
    assert outcomes_of({2: monday, 3: other}) == [("book", "on_time"), ("call", "false")]
    assert {"on_time", "early", "late", "missed", "wrong_value", "repeat", "false"} == OUTCOMES.keys()


def test_all_dialogues_are_in_the_page_the_greatest_change_first() -> None:
    text = report()
    rows = unpacked(text)
    assert len(rows) == len(DIALOGUES)
    changes = [abs(row["gain"][0]) for row in rows]
    assert changes == sorted(changes, reverse=True) and changes[0] > 0
    for dialogue in DIALOGUES:
        (row,) = [row for row in rows if f"<bdi>{dialogue.id}</bdi>" in row["html"]]
        assert all(turn.text.lower() in row["text"] for turn in dialogue.turns)
        assert {r.name for r in dialogue.references} <= set(row["tools"])
        drawn = Page(row["html"]).text
        assert all(" ".join(turn.text.split()) in drawn for turn in dialogue.turns)


def test_the_first_page_stands_without_a_script_right_below_the_table() -> None:
    text = report()
    plain = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    shown = re.findall(r'<details class="talk"( open)?>\s*<summary><b><bdi>([^<]*)', plain)
    assert len(shown) == FIRST_PAGE < len(DIALOGUES)
    assert [opened for opened, _ in shown] == [" open", *[""] * (FIRST_PAGE - 1)]
    first = [re.search(r"<bdi>([^<]*)</bdi>", row["html"]) for row in unpacked(text)]
    assert [name for _, name in shown] == [found[1] for found in first[:FIRST_PAGE] if found]
    assert f"The {FIRST_PAGE} of {len(DIALOGUES)} dialogues" in Page(plain).text
    assert '<form id="filters" hidden>' in text, "without the script there is nothing to filter with"
    places = [text.index(f'id="{name}"') for name in ("metrics", "dialogues", "fires", "run")]
    assert places == sorted(places)


def test_a_packed_dialogue_is_as_safe_as_the_page() -> None:
    dialogue = users(2, id=HOSTILE, domain=HOSTILE)
    runs = [evaluation([dialogue], {HOSTILE: {1: text}}) for text in (HOSTILE, "[]")]
    (row,) = unpacked(report(dialogues=[dialogue], before=runs[0], after=runs[1], trivial={}))
    known = set().union(*(Page(row["html"]).tags for row in unpacked(report())))
    assert Page(row["html"]).tags <= known and HOSTILE.lower() in row["text"]


def test_different_rewards_count_for_no_gain() -> None:
    replays = {s: classify_replays(DIALOGUES, e) for s, e in (("before", BEFORE), ("after", AFTER))}
    found = talks(DIALOGUES, BEFORE, AFTER, replays, one_reward=False)
    assert {talk.gain[1] for talk in found} == {0.0}
    assert any(talk.gain[1] for talk in talks(DIALOGUES, BEFORE, AFTER, replays))


@pytest.mark.slow
def test_three_hundred_dialogues_stay_a_small_page() -> None:
    dialogues = load("synthetic", limit=300, seed=4).dialogues
    before, after = (evaluation(dialogues, agent(dialogues, s, skill)) for s, skill in ((1, 0.1), (2, 0.9)))
    text = report(dialogues=dialogues, before=before, after=after, trivial={}, history=[])
    drawn = sum(len(row["html"]) for row in unpacked(text))
    assert len(unpacked(text)) == 300
    assert len(text) < 150_000 + 1_000 * 300 and len(text) < drawn / 5


def browse(page: Path, profile: Path, asked: str, section: str = "dialogues") -> str:
    """The page as a browser's script leaves it, for one address: what is asked for in a section."""
    assert BROWSER is not None
    done = subprocess.run(
        [
            BROWSER,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={profile}",
            "--virtual-time-budget=10000",
            "--dump-dom",
            f"{page.as_uri()}#{section}?{asked}",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")
@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("", lambda row: True),
        ("change=gained", lambda row: row["gain"][0] > 0),
        ("outcome=missed", lambda row: any(o.startswith("missed ") for o in row["outcomes"]["after"])),
        (
            f"outcome=false&system=before&tool={FALSE}",
            lambda row: f"false {FALSE}" in row["outcomes"]["before"],
        ),
        ("tool=set_reminder&order=worst", lambda row: "set_reminder" in row["tools"]),
        ("q=remind+ME", lambda row: "remind" in row["text"] and "me" in row["text"]),
        ("q=no-such-word", lambda row: False),
    ],
)
def test_the_script_finds_what_is_asked_for(tmp_path: Path, asked: str, wanted: Any) -> None:
    text = report()
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    seen = browse(tmp_path / "page.html", tmp_path / "profile", asked)
    rows = [row for row in unpacked(text) if wanted(row)]
    assert f">{len(rows)} of {len(DIALOGUES)} dialogues." in seen
    shown = re.findall(r'<details class="talk"[^>]*>\s*<summary><b><bdi>([^<]*)', seen)
    names = [found[1] for row in rows if (found := re.search(r"<bdi>([^<]*)</bdi>", row["html"]))]
    assert sorted(shown) == sorted(names)
    if "order=worst" in asked:
        after = {name: row["after"] for name, row in zip(names, rows, strict=True)}
        assert [after[name] for name in shown] == sorted(after.values())
    assert '<form id="filters">' in seen
