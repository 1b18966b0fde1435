"""The rule judge: its order of answers is the rubric's, and what the dialogue calls for is never beaten."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest

from proactor.dialogue import Action, Reference, Status
from proactor.dialogue.board import EMPTY, Board, draw_board
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.matching import Timing
from proactor.dialogue.parse import render
from proactor.dialogue.prompt import target
from proactor.evaluation.policies import always, values_seen
from proactor.ruler import RuleJudge, Ruler, RulerError, ruler_scores
from proactor.ruler.rule_judge import grade_custom, grade_general
from proactor.sources import load
from tests.proactor.dialogues import pending, ready, users
from tests.proactor.ruler.judged import CATALOG, FULL, PART, group, run


def custom_of(*answers: str | Sequence[Action], turn: int, board: Board = EMPTY) -> list[float]:
    candidates = group(*answers, turn=turn, board=board)
    return [grade_custom(candidates, i)["score"] for i in range(len(candidates))]


def general_of(*answers: str | Sequence[Action], turn: int, board: Board = EMPTY) -> list[float]:
    candidates = group(*answers, turn=turn, board=board)
    return [grade_general(candidates, i)["score"] for i in range(len(candidates))]


def falling(values: list[float]) -> bool:
    return all(a > b + 1e-9 for a, b in pairwise(values))


BOOK = ready("book", dest="SFO", date="Mon")
"""Covered in turns 1 to 4, ready in 2 and 3."""


def test_before_the_window_announcing_beats_waiting_beats_early_beats_false() -> None:
    early = (ready("book", dest="SFO", date="Mon"),)
    order = custom_of((pending("book", dest="SFO"),), "[]", early, (ready("email", to="x"),), turn=1)
    assert falling(order) and order[0] == 1.0 and order[-1] == 0.0
    assert order[1] - order[2] < 0.2 < order[2] - order[3], "early costs a little, false much"


def test_inside_the_window_acting_beats_announcing_beats_waiting_beats_false() -> None:
    order = custom_of((BOOK,), (pending("book", dest="SFO", date="Mon"),), "[]", (ready("refund"),), turn=2)
    assert falling(order) and order[0] == 1.0
    due = custom_of((BOOK,), (pending("book", dest="SFO", date="Mon"),), "[]", (ready("refund"),), turn=3)
    assert falling(due) and due[1] < order[1] and due[2] < order[2], "the last chance to act costs more"


def test_late_is_worse_than_on_time_and_waiting_is_right_when_nothing_is_open() -> None:
    assert custom_of((BOOK,), turn=4)[0] < custom_of((BOOK,), turn=3)[0]
    done = Board((BOOK,), {"A": Timing.ON_TIME})
    assert falling(custom_of("[]", (pending("book"),), turn=2, board=done))
    assert custom_of("[]", (BOOK,), turn=2, board=done) == [1.0, 0.0], (
        "what is triggered is not to be repeated"
    )


def test_values_missing_heard_elsewhere_or_invented_cost_more_and_more() -> None:
    spoken = users(
        3,
        Reference(id="A", name="book", params={"dest": "SFO", "date": "Mon"}, coverage=(1, 3), ready=(1, 3)),
    )
    answers = [
        (BOOK,),
        (ready("book", dest="SFO"),),
        (ready("book", dest="SFO", date="turn"),),
        (ready("book", dest="SFO", date="Fri"),),
    ]
    candidates = Candidates(spoken, 2, tuple(render(a) for a in answers), CATALOG)
    parts = [grade_custom(candidates, i) for i in range(4)]
    assert [p["correctness"] for p in parts] == [1.0, 0.5, 0.5, 0.0]
    assert parts[0]["score"] > parts[1]["score"] and parts[2]["score"] > parts[3]["score"]


def test_a_pending_action_may_lack_its_values_but_not_have_wrong_ones() -> None:
    assert custom_of((pending("book"),), turn=1) == [1.0]
    assert falling(
        custom_of((pending("book"),), (pending("book", dest="LAX"),), (pending("refund"),), turn=1)
    )


def test_more_than_is_called_for_and_what_cannot_be_read_cost() -> None:
    order = custom_of((BOOK,), (BOOK, pending("refund")), (BOOK, ready("refund"), ready("email")), turn=2)
    assert falling(order)
    assert custom_of(FULL, "hello", FULL[:-1] + ",7]", turn=2)[1] == 0.0
    assert falling(custom_of(FULL, FULL[:-1] + ",7]", "hello", turn=2))


def test_general_looks_at_the_goal_and_not_at_the_clock() -> None:
    assert general_of(FULL, PART, "[]", turn=1) == general_of(FULL, PART, "[]", turn=2) == [1.0, 0.5, 0.0]
    assert general_of((pending("book", dest="SFO", date="Mon"),), (BOOK, ready("refund")), turn=2) == [
        0.5,
        0.5,
    ]
    done = Board((BOOK,), {"A": Timing.ON_TIME})
    assert general_of("[]", FULL, turn=2, board=done) == [1.0, 0.0]


def test_what_is_called_for_is_never_beaten_under_custom_and_acting_early_wins_under_general() -> None:
    corpus = load("synthetic", split="train", limit=12)
    sums = {"custom": [0.0, 0.0], "general": [0.0, 0.0]}
    for dialogue in corpus.dialogues:
        for turn in dialogue.decision_turns:
            board = draw_board(dialogue, turn, seed=1)
            wanted = target(dialogue, turn, board)
            hasty = tuple(a.model_copy(update={"status": Status.READY}) for a in wanted)
            answers = (
                wanted,
                hasty,
                (),
                always(dialogue)[turn],
                values_seen(dialogue)[turn],
                (*wanted, ready("zzz")),
            )
            candidates = Candidates(dialogue, turn, tuple(render(a) for a in answers), corpus.catalog, board)
            scores = [grade_custom(candidates, i)["score"] for i in range(len(answers))]
            assert max(scores) <= scores[0] + 1e-9
            for name, rule in (("custom", grade_custom), ("general", grade_general)):
                for i in range(2):
                    sums[name][i] += rule(candidates, i)["score"]
    assert sums["custom"][0] > sums["custom"][1] and sums["general"][0] < sums["general"][1]


def test_it_goes_the_way_of_every_judge() -> None:
    scores = run(Ruler(RuleJudge(), "custom").score(group(FULL, "[]", FULL)))
    assert scores is not None
    assert [set(f) for f in scores] == [{"ruler", "timing", "correctness", "restraint"}] * 3
    assert scores[0] == scores[2] and scores[0]["ruler"] == 1.0 and scores[1]["ruler"] == pytest.approx(0.6)
    general = run(Ruler(RuleJudge(), "general").score(group(FULL, "[]")))
    assert general == [{"ruler": 1.0}, {"ruler": 0.0}]


def test_it_refuses_what_it_cannot_grade() -> None:
    with pytest.raises(RulerError, match="message lists"):
        run(ruler_scores([[{"role": "user", "content": "a"}]], RuleJudge()))
    with pytest.raises(RulerError, match="general and custom"):
        run(Ruler(RuleJudge(), "be short please").score(group("[]")))
