"""Timelines: what is drawn is what the metrics count."""

from __future__ import annotations

from collections import Counter

import pytest

from proactor.dialogue import Reference
from proactor.dialogue.matching import SIMILAR
from proactor.dialogue.parse import parse
from proactor.report.timeline import MASKED, MISSED, classify_replay, timeline
from proactor.scoring.metrics import score_dialogue
from proactor.sources import load
from tests.proactor.dialogues import ready, users, worked_example
from tests.proactor.report.agents import agent, evaluation


@pytest.mark.parametrize("skill", [0.0, 0.5, 1.0])
def test_counts_agree_with_the_sums_behind_first_fire_f1(skill: float) -> None:
    dialogues = load("synthetic", limit=60, seed=5).dialogues
    texts = agent(dialogues, 7, skill)
    seen: Counter[str] = Counter()
    for dialogue in dialogues:
        actions = {turn: parse(text).actions for turn, text in texts[dialogue.id].items()}
        counts, sums = (
            classify_replay(dialogue, actions).counts(dialogue),
            score_dialogue(dialogue, actions).sums,
        )
        fires = sum(counts[k] for k in ("on_time", "early", "late", "false", "repeat"))
        assert counts["on_time"] == sums["first_on_time"]
        assert counts["on_time"] + counts["early"] == sums["first_hits"]
        assert fires == sums["first_fires"]
        assert counts["on_time"] + counts["early"] + counts["late"] + counts[MISSED] == sums["references"]
        seen.update(counts)
    assert seen["on_time"]
    assert skill == 1.0 or (seen["early"] and seen["false"] and seen["repeat"] and seen[MASKED])


def test_bands_and_marks_of_the_worked_example() -> None:
    dialogue, outputs = worked_example()
    replay = evaluation([dialogue], {}).replays[0]
    replay.actions = outputs
    drawn = timeline(dialogue, {"before": replay, "after": replay})
    assert drawn.lanes == 2  # A and B overlap at turns 3 and 4
    assert [row.cells[0].band for row in drawn.rows] == ["cover", "ready", "ready", "cover"]
    assert [row.cells[1].band for row in drawn.rows] == ["", "", "cover", "ready"]
    assert [row.cells[0].letter for row in drawn.rows] == ["A", "", "", ""]
    similar = timeline(dialogue, {"after": replay}, SIMILAR)
    assert [[m.kind for m in row.cells[0].marks.get("after", [])] for row in similar.rows] == [
        ["early"],
        ["masked"],
        [],
        ["masked"],
    ]
    assert (drawn.rows[2].cells[1].opens, drawn.rows[3].cells[1].closes) == (True, True)
    lane_a = [[m.kind for m in row.cells[0].marks.get("after", [])] for row in drawn.rows]
    assert lane_a == [["false"], ["on_time"], [], ["repeat"]]  # at 1 the date is missing
    assert [m.kind for m in drawn.rows[3].cells[1].marks["before"]] == ["on_time"]
    assert {e.letter: e.outcome["after"].words for e in drawn.entries} == {
        "A": "on time at turn 2",
        "B": "on time at turn 4",
    }


def test_references_that_do_not_overlap_share_a_lane_and_a_false_fire_stands_apart() -> None:
    dialogue = users(
        6,
        Reference(id="x", name="book", coverage=(1, 2), ready=(2, 2)),
        Reference(id="y", name="book", coverage=(3, 4), ready=(4, 4)),
        Reference(id="z", name="mail", null_reason="no_call"),
        withdrawn=(Reference(id="w", name="call", coverage=(5, 6)),),
    )
    replay = evaluation([dialogue], {}).replays[0]
    replay.actions = {6: (ready("call"), ready("mail"))}
    drawn = timeline(dialogue, {"after": replay})
    assert drawn.lanes == 1
    assert [row.cells[0].band for row in drawn.rows] == [
        "cover",
        "ready",
        "cover",
        "ready",
        "withdrawn",
        "withdrawn",
    ]
    assert [m.kind for m in drawn.rows[5].cells[-1].marks["after"]] == ["false", "masked"]
    assert [e.kind for e in drawn.entries] == ["known", "known", "withdrawn", "unknown"]
    assert drawn.entries[3].window == "window unknown (no_call): not counted"
    assert drawn.entries[0].outcome["after"].kind == MISSED
    assert not drawn.entries[2].outcome


def test_wrong_values_and_unreadable_outputs_are_kept() -> None:
    reference = Reference(
        id="x", name="book", params={"day": "Monday", "time": "9"}, coverage=(1, 2), ready=(1, 2)
    )
    dialogue = users(2, reference)
    texts = {1: '[{"READY":"book","day":"monday","time":"10"}]', 2: "sorry ["}
    drawn = timeline(dialogue, {"after": evaluation([dialogue], {"d": texts}).replays[0]})
    proposal = drawn.rows[0].proposals["after"][0]
    assert [(v.name, v.right) for v in proposal.values] == [("day", True), ("time", False)]
    assert "value that the action needs is wrong" in proposal.mark.words
    assert (proposal.letter, proposal.mark.kind) == ("A", "false")
    assert drawn.rows[1].unread == {"after": "sorry ["}


def test_references_that_share_a_turn_have_lanes_of_their_own() -> None:
    first = Reference(id="x", name="book", coverage=(1, 2), ready=(2, 2))
    second = Reference(id="y", name="book", coverage=(2, 3), ready=(3, 3))
    dialogue = users(3, first, second)
    drawn = timeline(dialogue, {"after": evaluation([dialogue], {}).replays[0]})
    assert [[cell.band for cell in row.cells[:-1]] for row in drawn.rows] == [
        ["cover", ""],
        ["ready", "cover"],
        ["", "ready"],
    ]
