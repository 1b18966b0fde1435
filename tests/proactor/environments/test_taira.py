"""TAIRA's scores on worked cases, what its plans may be, what an answer is worth, and its players."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.environments.errors import GymError
from proactor.environments.gyms.items import KINDS, catalogue
from proactor.environments.gyms.players import players
from proactor.environments.gyms.taira import PlanError, Step, TairaGym, read_plan, retrieve
from proactor.environments.gyms.taira_scores import OPEN, Scores, score_lists
from proactor.environments.protocol import Call, Outcome
from proactor.environments.scripted import play

GYM = TairaGym(train=1, test=60)


def world_with(**wanted: Any) -> Any:
    """The world of the first test task whose request has these values."""
    for name in GYM.tasks("test"):
        request = GYM.task(name).request
        if all(getattr(request, key) == value for key, value in wanted.items()):
            return GYM.make(name)
    raise AssertionError(f"no request with {wanted}")


def act(world: Any, plan: str) -> Outcome:
    outcome: Outcome = world.step(Call("action", plan))
    return outcome


# -- scores ---


def test_the_worked_case() -> None:
    """One list of two wanted; upstream prints an MRR of 0.5."""
    found = score_lists([[0, 1, 0, 2, 0, 0, 0, 0, 0, 0]], [True], 2)
    dcg, ideal = 1 / math.log2(3) + 2 / math.log2(5), 2 + 1 / math.log2(3)
    assert found.hit == pytest.approx(0.15) and found.mrr == pytest.approx(0.25)
    assert found.ndcg == pytest.approx(dcg / ideal / 2) == pytest.approx(0.2836, abs=5e-5)
    assert found.success


@pytest.mark.parametrize(
    ("lists", "valid", "wanted", "hit", "success"),
    [
        ([[2] * 10, [2] * 10], [True, False], 2, 1.0, False),  # half of the lists is not more than half
        ([[2] * 10, [1], [1]], [True, True, False], 1, 0.7, True),  # more lists than wanted divide
        ([[2]], [True], OPEN, 0.1, False),  # open: two lists at least
        ([[2], [0]], [True, True], OPEN, 0.1, True),
        ([[0] * 10], [True], 1, 0.0, False),
        ([[0] * 10 + [2]], [True], 1, 0.0, False),  # the eleventh is not looked at
        ([], [], 1, 0.0, False),
    ],
)
def test_what_divides_and_what_fails(
    lists: list[list[int]], valid: list[bool], wanted: int, hit: float, success: bool
) -> None:
    found = score_lists(lists, valid, wanted)
    assert (found.hit, found.success) == (pytest.approx(hit), success)


@given(
    lists=st.lists(st.lists(st.sampled_from([0, 1, 2]), max_size=12), max_size=4), wanted=st.integers(1, 3)
)
def test_scores_lie_in_their_ranges_and_order_matters(lists: list[list[int]], wanted: int) -> None:
    valid = [True] * len(lists)
    found = score_lists(lists, valid, wanted)
    best = score_lists([sorted(one[:10], reverse=True) for one in lists], valid, wanted)
    assert 0 <= found.hit <= 2 and best.hit == found.hit
    assert 0 <= found.ndcg <= best.ndcg + 1e-12 and best.ndcg <= 1 + 1e-12
    assert 0 <= found.mrr <= best.mrr <= 1
    assert (found.mrr > 0) == (found.ndcg > 0) == (found.hit > 0)


def test_scores_refuse_what_is_no_case() -> None:
    with pytest.raises(ValueError, match="0 lists wanted"):
        score_lists([], [], 0)
    with pytest.raises(ValueError, match="shorter"):
        score_lists([[1]], [], 1)


# -- plans ---


def test_a_plan_is_read() -> None:
    assert read_plan("Searcher rain > ItemRetriever coat-red > Planner") == [
        Step("Searcher", ("rain",)),
        Step("ItemRetriever", ("coat", "red")),
        Step("Planner"),
    ]


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ("ItemRetriever coat > Searcher rain", "ends in Planner or Interactor, not in Searcher"),
        ("Interactor > ItemRetriever coat > Interactor", "Planner and Interactor end a plan"),
        ("Buyer coat > Interactor", "no agent 'Buyer'"),
        ("ItemRetriever shoe > Interactor", "does not know 'shoe'"),
        ("Searcher > Planner", "needs one occasion"),
        (" > ", "a plan has steps"),
    ],
)
def test_a_plan_that_is_none_is_not_carried_out(plan: str, said: str) -> None:
    with pytest.raises(PlanError, match=said):
        read_plan(plan)
    world = world_with()
    outcome = act(world, plan)
    assert said in outcome.observation and "\n" not in outcome.observation and not outcome.ended
    assert (outcome.info["refused"], outcome.info["calls"], world.lists) == (1, 0, [])


# -- what an answer is worth ---


def test_a_list_begins_with_what_fits_best() -> None:
    listed = retrieve(catalogue(copies=4), ["hat", "blue", "silk"])
    assert [(i.kind, i.material) for i in listed] == [("hat", "silk")] * 10
    assert [i.colour == "blue" for i in listed] == [True] * 4 + [False] * 6


def test_the_answer_is_judged_by_what_the_user_takes() -> None:
    """Four items with all that is wanted and six in another colour: hit (4 * 2 + 6) / 10, best order."""
    world = world_with(open=False, occasion="rain")
    request = world.task.request
    told = act(world, "Searcher rain > Planner").observation
    assert told == f"Found: {request.material}" and request.material not in request.text
    lists = [f"ItemRetriever {kind}-{request.colour}-{request.material}" for kind in request.kinds]
    outcome = act(world, " > ".join([*lists, "Interactor"]))
    calls = 2 + len(lists) + 1
    assert outcome.info["hit"] == pytest.approx(1.4) and outcome.info["ndcg"] == outcome.info["mrr"] == 1
    assert outcome.terminated and outcome.reward == pytest.approx(0.5 + 0.25 * 1.4 - 0.1 * calls / 10)
    assert outcome.info["score"] == outcome.reward and outcome.info["solved"]


def test_the_interpreter_hands_on_what_was_found() -> None:
    world = world_with(open=False, occasion="work")
    request = world.task.request
    lists = " > ".join(f"ItemRetriever {kind}-{request.colour}" for kind in request.kinds)
    outcome = act(world, f"Searcher work > Interpreter > {lists} > Interactor")
    assert outcome.info["hit"] == pytest.approx(1.4)
    world.reset(0)
    assert act(world, f"Searcher work > {lists} > Interactor").info["hit"] != pytest.approx(1.4)


def test_a_kind_that_was_not_wanted_or_comes_twice_is_no_valid_list() -> None:
    world = world_with(open=False, occasion="", kinds=("coat",))
    words = f"{world.task.request.colour}-{world.task.request.material}"
    other = act(world, f"ItemRetriever hat-{words} > Interactor")
    assert other.reward == 0 and not other.info["solved"]
    world.reset(0)
    twice = act(world, f"ItemRetriever coat-{words} > ItemRetriever coat-{words} > Interactor")
    assert twice.info["hit"] == pytest.approx(0.7) and not twice.info["solved"] and twice.reward == 0


def test_an_open_request_wants_two_lists() -> None:
    world = world_with(open=True, occasion="")
    words = f"{world.task.request.colour}-{world.task.request.material}"
    assert "anything" in world.task.request.text and world.task.request.lists == OPEN
    assert not act(world, f"ItemRetriever hat-{words} > Interactor").info["solved"]
    world.reset(0)
    two = " > ".join(f"ItemRetriever {kind}-{words}" for kind in KINDS[:2])
    assert act(world, f"{two} > Interactor").info["hit"] == pytest.approx(1.4)


def test_more_than_ten_calls_fail() -> None:
    world = world_with()
    nine = " > ".join(["Interpreter"] * 8)
    assert not act(world, f"{nine} > Planner").ended
    outcome = act(world, "ItemRetriever coat > Interactor")
    assert outcome.terminated and outcome.reward == 0 and outcome.info["calls"] == 10
    assert "failed" in outcome.observation


# -- players and options ---


def test_the_scripted_players() -> None:
    scores = {
        name: [play(GYM, task, script(task)).episode for task in GYM.tasks("test")]
        for name, script in players(GYM).items()
    }
    assert all(e.solves() and e.info["ndcg"] == 1 for e in scores["expert"])
    assert {len(e.turns) for e in scores["expert"]} == {1, 2}
    mean = {name: sum(e.score for e in episodes) / 60 for name, episodes in scores.items()}
    assert mean["expert"] > 0.8 > 0.7 > mean["hasty"] > 0.2 > 0.1 > mean["random"]
    assert sum(e.info["refused"] for e in scores["random"]) == 0


def test_tasks_are_drawn_by_the_seed() -> None:
    again, other = TairaGym(train=1, test=60), TairaGym(train=1, test=60, seed=1)
    tasks = [GYM.task(name) for name in GYM.tasks("all")]
    assert tasks == [again.task(name) for name in again.tasks("all")]
    assert tasks != [other.task(name) for name in other.tasks("all")]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": 0}, "taira: train=0 is no number from 1"),
        ({"copies": 1.5}, "copies=1.5 is no number"),
        ({"hit_weight": 0.5}, "ndcg_weight \\+ 2 hit_weight is 1 at most"),
        ({"call_price": -1}, "none is below 0"),
    ],
)
def test_what_is_refused(options: Any, said: str) -> None:
    with pytest.raises(GymError, match=said):
        TairaGym(**options)


@pytest.mark.parametrize("name", ["test-60", "train-1", "dev-0", "test--1", "test-01", "test-", "0"])
def test_tasks_that_there_are_not(name: str) -> None:
    with pytest.raises(GymError, match=f"taira: no task '{name}'"):
        GYM.make(name)
    with pytest.raises(GymError, match="no split 'dev'"):
        GYM.tasks("dev")


def test_failures_have_no_scores() -> None:
    assert score_lists([[2]], [False], 1) == Scores(0.0, 0.0, 0.0, False)
