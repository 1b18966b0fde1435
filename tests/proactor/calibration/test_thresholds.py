"""Thresholds on score tables: replays, and the choice against an exhaustive search within the budget."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.calibration.score_table import ScoreTable, ToolScore, replay
from proactor.calibration.thresholds import (
    NEVER,
    OUTCOME,
    Thresholds,
    choose,
    choose_common,
    outcome,
    steps,
    wrong_fire_limit,
    wrong_fires,
)
from proactor.dialogue import Action, Dialogue, Reference
from tests.proactor.dialogues import ready, users

BOOK = Reference(
    id="b", name="book", params={"day": "Monday"}, coverage=(1, 6), ready=(3, 5), observed_trigger=5
)


def score(turn: int, probability: float, tool: str = "book", dialogue: str = "d", **values: str) -> ToolScore:
    return ToolScore(dialogue=dialogue, turn=turn, tool=tool, probability=probability, values=values)


def sums(dialogue: Dialogue, outputs: dict[int, tuple[Action, ...]], *assent: str) -> dict[str, float]:
    return {k: v for k, v in zip(OUTCOME, outcome(dialogue, outputs, frozenset(assent))) if v}


def test_a_replay_fires_at_the_first_decision_and_never_the_same_again() -> None:
    rows = [
        score(1, 0.3, day="Monday"),
        score(2, 0.9, day="Monday"),
        score(3, 0.9, day="monday."),
        score(4, 0.9, day="Tuesday"),
    ]
    rows.append(score(4, 0.95, "call"))
    fired = replay(rows, Thresholds(default=0.5).admits)
    monday, tuesday = ready("book", day="Monday"), ready("book", day="Tuesday")
    assert fired == {2: (monday,), 4: (ready("call"), tuesday)}
    assert replay(rows, Thresholds(default=0.5, tools={"call": NEVER, "book": 0.2}).admits) == {
        1: (monday,),
        4: (tuesday,),
    }
    assert replay(rows, Thresholds().admits) == {}


FIRE = ready("book", day="Monday")


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        ({3: (FIRE,)}, {"fires": 1, "right": 1, "on_time": 1, "saved": 1, "saved_turns": 2}),
        ({5: (FIRE,)}, {"fires": 1, "right": 1, "on_time": 1, "lead": -2, "saved": 1}),
        ({1: (FIRE,)}, {"fires": 1, "right": 1, "lead": 2, "early_turns": 4}),
        ({6: (FIRE,)}, {"fires": 1, "late": 1}),
        (
            {3: (FIRE,), 4: (FIRE,)},
            {"fires": 2, "right": 1, "on_time": 1, "saved": 1, "saved_turns": 2, "false": 1},
        ),
        ({3: (ready("fly"),)}, {"fires": 1, "false": 1}),
    ],
)
def test_outcomes(outputs: dict[int, tuple[Action, ...]], expected: dict[str, float]) -> None:
    assert sums(users(6, BOOK), outputs) == expected


def test_outcomes_of_tools_that_need_assent_and_of_late_humans() -> None:
    assert sums(users(6, BOOK), {1: (FIRE,)}, "book") == {"fires": 1, "before_assent": 1}
    assert sums(users(6, BOOK), {3: (FIRE,)}, "book")["saved_turns"] == 2
    slow = BOOK.model_copy(update={"observed_trigger": 4})
    assert sums(users(6, slow), {5: (FIRE,)}) == {"fires": 1, "right": 1, "on_time": 1, "lead": -2}
    unlogged = BOOK.model_copy(update={"observed_trigger": None})
    assert "saved" not in sums(users(6, unlogged), {3: (FIRE,)})


@st.composite
def scored_dialogues(draw: st.DrawFn) -> tuple[list[Dialogue], ScoreTable]:
    """A few dialogues of two tools, with rows at coarse probabilities so that ties happen."""
    dialogues, rows = [], []
    for i in range(draw(st.integers(1, 4))):
        references = []
        for tool in draw(st.lists(st.sampled_from("ab"), max_size=3)):
            o, s, e, c = sorted(draw(st.lists(st.integers(1, 4), min_size=4, max_size=4)))
            values = {"x": draw(st.sampled_from("12"))}
            number = str(len(references))
            references.append(
                Reference(
                    id=number,
                    name=tool,
                    params=values,
                    coverage=(o, c),
                    ready=(s, e),
                    observed_trigger=draw(st.integers(e, 4)),
                )
            )
        dialogues.append(users(4, *references, id=str(i)))
        cells = draw(st.lists(st.tuples(st.integers(1, 4), st.sampled_from("ab")), max_size=5, unique=True))
        for turn, tool in sorted(cells):
            p = draw(st.sampled_from([0.2, 0.4, 0.6, 0.8]))
            rows.append(score(turn, p, tool, str(i), x=draw(st.sampled_from("12"))))
    return dialogues, ScoreTable(dialogues=tuple(d.id for d in dialogues), rows=tuple(rows))


def total(
    dialogues: list[Dialogue], table: ScoreTable, thresholds: Thresholds, assent: frozenset[str]
) -> np.ndarray:
    fired = thresholds.replay(table)
    return np.sum([outcome(d, fired[d.id], assent) for d in dialogues], axis=0)


def worth(counts: np.ndarray) -> tuple[float, float, float]:
    named = dict(zip(OUTCOME, counts))
    return named["saved_turns"], named["right"], -float(wrong_fires(counts))


LEVELS = (0.2, 0.4, 0.6, 0.8, NEVER)


@given(
    scored_dialogues(),
    st.sampled_from([0.0, 50.0, 100.0, 200.0]),
    st.sampled_from([frozenset[str](), frozenset("a")]),
)
@settings(max_examples=50, deadline=None)
def test_choices_are_the_best_of_all(
    case: tuple[list[Dialogue], ScoreTable], budget: float, assent: frozenset[str]
) -> None:
    dialogues, table = case
    all_steps = steps(table, dialogues, assent)
    room = wrong_fire_limit(budget, len(dialogues))
    at, levels = all_steps.levels()
    for level, row in zip(at, levels):  # the curve is what replays give
        assert row == pytest.approx(total(dialogues, table, Thresholds(default=float(level)), assent))
    common = choose_common(all_steps, budget)
    chosen = choose(all_steps, budget)
    fits = lambda t: wrong_fires(total(dialogues, table, t, assent)) <= room  # noqa: E731
    every = [Thresholds(tools={"a": a, "b": b}) for a, b in itertools.product(LEVELS, LEVELS)]
    best = max(worth(total(dialogues, table, t, assent)) for t in every if fits(t))
    assert fits(chosen) and worth(total(dialogues, table, chosen, assent)) == best
    alike = [Thresholds(default=level) for level in LEVELS]
    best = max(worth(total(dialogues, table, t, assent)) for t in alike if fits(t))
    assert (
        fits(Thresholds(default=common))
        and worth(total(dialogues, table, Thresholds(default=common), assent)) == best
    )
    assert chosen.default == common


@given(
    st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from([0.1, 0.3, 0.5, 0.7]), st.sampled_from("123")),
        max_size=8,
    )
)
def test_false_fires_rise_as_the_threshold_falls_where_nothing_is_called_for(
    cells: list[tuple[int, float, str]],
) -> None:
    rows = [score(turn, p, x=value) for turn, p, value in cells]
    table = ScoreTable(dialogues=("d",), rows=tuple(rows))
    at, levels = steps(table, [users(6)]).levels()
    assert list(at) == sorted(at, reverse=True)
    assert np.all(np.diff(wrong_fires(levels)) >= 0) and np.array_equal(
        wrong_fires(levels), levels[:, OUTCOME.index("fires")]
    )


def test_a_budget_is_rounded_down_to_whole_fires() -> None:
    assert [wrong_fire_limit(1.0, n) for n in (64, 99, 100, 250)] == [0, 0, 1, 2]
    assert wrong_fire_limit(2.9, 100) == 2 and wrong_fire_limit(29.0, 100) == 29
    with pytest.raises(ValueError, match="negative"):
        wrong_fire_limit(-1.0, 10)


def test_a_dialogue_that_was_not_scored_is_named() -> None:
    with pytest.raises(ValueError, match="'d' was not scored"):
        steps(ScoreTable(dialogues=()), [users(2)])
    assert choose(steps(ScoreTable(dialogues=("d",)), [users(2)])) == Thresholds(dialogues=1)


def test_thresholds_survive_json() -> None:
    chosen = Thresholds(default=NEVER, tools={"a": 0.25}, budget=2.0, dialogues=7)
    assert Thresholds.model_validate_json(chosen.model_dump_json()) == chosen
