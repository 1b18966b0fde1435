"""What acts are worth: each cost where it belongs, and the same sum as a turn reward, as a dialogue's utility
and as a metric.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.dialogue import Action, Dialogue, Reference, Turn
from proactor.dialogue.board import EMPTY
from proactor.dialogue.catalog import Catalog, Tool
from proactor.dialogue.parse import Parsed, parse
from proactor.scoring.metrics import aggregate, score_dialogue
from proactor.scoring.utility import (
    CostTable,
    ToolCosts,
    needs_assent,
    total,
    turn_parts,
    turn_utility,
    utility,
)
from tests.proactor.dialogues import pending, ready, scored_dialogues, users, worked_example

BOOK = Reference(
    id="b", name="book", params={"day": "Monday"}, coverage=(1, 6), ready=(3, 5), observed_trigger=5
)
FIRE = ready("book", day="Monday")
COSTS = ToolCosts(benefit_per_turn=1, false_cost=10, miss_cost=100, interrupt_cost=1000)
TALK = users(6, BOOK)
ASSENT = CostTable(default=COSTS, assent=frozenset({"book"}))


@pytest.mark.parametrize(
    ("outputs", "worth"),
    [
        ({3: (FIRE,)}, 2),  # two turns before the window ends
        ({5: (FIRE,)}, 0),  # at the last good moment
        ({1: (FIRE,)}, 0),  # early: neither won nor missed
        ({1: (FIRE,), 4: (FIRE,)}, 0),  # masked after an early fire
        ({3: (FIRE,), 4: (FIRE,)}, 2 - 10),  # a repeat is false
        ({6: (FIRE,)}, -100),  # late: missed
        ({}, -100),
        ({3: (FIRE, ready("fly"))}, 2 - 10),
        ({2: (pending("book"),), 3: (FIRE,)}, 2 - 1000),  # announced without a value: similarity 0
        ({2: (pending("book", day="Monday"),), 3: (FIRE,)}, 2),  # announced after it was begun
        ({2: (pending("fly"),), 3: (FIRE,)}, 2 - 1000),
    ],
)
def test_every_cost_where_it_belongs(outputs: dict[int, tuple[Action, ...]], worth: float) -> None:
    assert utility(TALK, outputs, COSTS) == worth


def test_acting_before_the_assent_is_acting_without_it() -> None:
    assert utility(TALK, {1: (FIRE,)}, ASSENT) == -10
    assert utility(TALK, {3: (FIRE,)}, ASSENT) == 2
    tools = Catalog(tools=(Tool(name="book", confirm=True), Tool(name="look")))
    assert needs_assent(tools) == {"book"}
    assert CostTable(default=COSTS).with_assent(tools) == ASSENT
    with pytest.raises(ValueError, match="no tool 'fly' in the catalog"):
        CostTable(tools={"fly": COSTS}).with_assent(tools)


def test_costs_of_a_tool_go_before_the_default() -> None:
    table = CostTable(default=COSTS, tools={"book": ToolCosts(benefit_per_turn=7, miss_cost=3)})
    assert utility(TALK, {3: (FIRE,)}, table) == 14
    assert utility(TALK, {}, table) == -3
    assert utility(TALK, {3: (FIRE, ready("fly"))}, table) == 14 - 10


def test_unread_output_and_unknown_windows() -> None:
    assert turn_utility(TALK, 3, parse("Sure thing!"), EMPTY, COSTS) == -1000
    unknown = users(6, Reference(id="u", name="book", params={"day": "Monday"}))
    assert utility(unknown, {3: (FIRE,)}, COSTS) == 0.0


def test_a_window_without_a_decision_cannot_be_missed() -> None:
    turns = tuple(Turn(index=i, speaker="agent" if i == 2 else "user", text="x") for i in (1, 2, 3))
    silent = Dialogue(
        id="d",
        turns=turns,
        references=(BOOK.model_copy(update={"coverage": (1, 3), "ready": (2, 2), "observed_trigger": 2}),),
    )
    assert utility(silent, {}, COSTS) == 0.0


def test_the_logged_agent_that_acts_at_the_last_moment_is_the_zero() -> None:
    dialogue, _ = worked_example()
    full = ready("book", dest="SFO", date="Mon")
    assert utility(dialogue, {3: (full,), 4: (ready("email", to="x"),)}, COSTS) == 0.0


@given(scored_dialogues(), st.sampled_from([frozenset[str](), frozenset("a")]))
@settings(max_examples=60)
def test_reward_dialogue_and_metric_agree(
    play: tuple[Dialogue, dict[int, tuple[Action, ...]]], assent: frozenset[str]
) -> None:
    dialogue, outputs = play
    costs = CostTable(default=COSTS, assent=assent)
    board, summed = EMPTY, 0.0
    for turn in dialogue.decision_turns:
        parts = turn_parts(dialogue, turn, Parsed(outputs[turn]), board, costs)
        assert all(value >= 0 for value in parts.values())
        summed += total(parts)
        board = board.after(dialogue, turn, outputs[turn])
    assert utility(dialogue, outputs, costs) == pytest.approx(summed)
    assert aggregate([score_dialogue(dialogue, outputs, costs=costs)])["utility"] == pytest.approx(summed)
