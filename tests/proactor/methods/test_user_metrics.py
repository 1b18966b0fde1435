"""Pass@U-k, user involvement and hypervolume: worked values, invariants, paired intervals."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.engine import ProactorError
from proactor.environments.episode import Ending
from proactor.methods import user_metrics
from proactor.methods.user_metrics import (
    Outcome,
    hypervolume,
    hypervolume_gain,
    intervals,
    paired_change,
    pass_at_u,
)
from tests.proactor.methods.episodes import episode, failed

near = pytest.approx


def outcome(solved: bool = True, user: int = 1, actions: int = 4, task: str = "t", run: int = 0) -> Outcome:
    return Outcome(task, float(solved), solved, user, actions, run=run)


def metrics(outcomes: list[Outcome]) -> dict[str, float]:
    sums = np.sum([o.sums for o in outcomes], axis=0)
    return {key: float(value) for key, value in user_metrics.metrics_of(sums).items()}


def test_pass_at_u() -> None:
    three = [outcome(user=1), outcome(user=2), outcome(False, user=0)]
    assert [pass_at_u(three, k) for k in (0, 1, 2, 5)] == near([0, 1 / 3, 2 / 3, 2 / 3])
    found = metrics(three)
    assert [found[f"pass_u{k}"] for k in (1, 2, 3)] == near([1 / 3, 2 / 3, 2 / 3])


def test_user_involvement_by_action_and_by_episode() -> None:
    seven = Outcome.of(episode([0.0] * 6 + [1.0], "euueuuu"))
    assert (seven.user_actions, seven.solved) == (5, True)
    assert metrics([seven])["user_rate"] == near(5 / 7)
    both = [seven, Outcome.of(episode([0.5], "e"))]
    found = metrics([*both, Outcome.of(episode([]))])
    assert found["user_rate"] == near(5 / 8) and found["user_rate_macro"] == near(5 / 14)
    assert found["score"] == near(0.5) and found["user_actions"] == near(5 / 3)
    assert found["tokens"] == near(16 / 3)  # observations are not the agent's


def test_actions_are_calls_and_not_turns() -> None:
    """Several calls in one reply are so many actions; those that did not run are none."""
    one = episode([0.0, 1.0], "eu")
    one.turns = [replace(one.turns[0], ran=1), replace(one.turns[1], ran=6, user_involved=5)]
    assert (one.user_actions, one.actions) == (5, 7) and Outcome.of(one).actions == 7
    assert metrics([Outcome.of(one)])["user_rate"] == near(5 / 7) and pass_at_u([Outcome.of(one)], 4) == 0


@pytest.mark.parametrize("ending", ["error", "timeout", "cancelled"])
def test_an_environment_that_failed_says_nothing_of_the_agent(ending: Ending) -> None:
    lost = Outcome.of(failed(ending))
    assert lost.failed and not outcome().failed
    kept = [outcome(), outcome(False)]
    assert user_metrics.metrics([*kept, lost]) == user_metrics.metrics(kept)
    assert pass_at_u([*kept, lost], 1) == 0.5 and user_metrics.metrics([lost])["score"] == 0


def test_a_task_that_failed_on_one_side_is_left_out_of_both() -> None:
    before = [outcome(False, task=f"t{i}") for i in range(3)]
    after = [outcome(task="t0"), outcome(False, task="t1"), replace(outcome(False, task="t2"), failed=True)]
    assert paired_change(before, after)["solved"].estimate == near(0.5)
    assert intervals(after)["solved"].estimate == near(0.5)
    assert [len(side) for side in user_metrics.without_failed(before, after)] == [2, 2]
    with pytest.raises(ProactorError, match="in each task an environment failed"):
        intervals(after[2:])


def test_the_environment_may_name_its_own_success() -> None:
    judged = episode([0.4, 0.4])
    judged.info["score"] = 1.0
    assert Outcome.of(judged).solved and not Outcome.of(episode([0.4, 0.4])).solved
    assert Outcome.of(episode([0.4, 0.4]), success=0.4).solved
    judged.info["solved"] = False
    assert Outcome.of(judged).score == 1.0 and not Outcome.of(judged).solved


def test_hypervolume() -> None:
    points = [(0.5, 1.0), (0.7, 3.0)]
    area = lambda more: float(hypervolume(np.array([*points, *more]), 5.0))  # noqa: E731
    assert area([]) == near(2.4)
    assert area([(0.6, 2.0)]) == near(2.5)
    assert area([(0.4, 2.0), (0.5, 1.5), (0.7, 3.0), (0.0, 0.0), (1.0, 5.0), (1.0, 9.0)]) == near(2.4)


levels = st.integers(0, 10).map(lambda i: i / 10)
some_points = st.lists(st.tuples(levels, st.integers(0, 6).map(float)), min_size=1, max_size=6)


@given(some_points, st.tuples(levels, st.integers(0, 6).map(float)), st.randoms())
def test_hypervolume_is_the_area_covered(
    points: list[tuple[float, float]], more: tuple[float, float], random: object
) -> None:
    """On a grid of cells, each is covered where a point has its score or more and its U or less."""
    cells = itertools.product(range(10), range(5))
    covered = [any(s >= (i + 1) / 10 - 1e-9 and u <= j for s, u in points) for i, j in cells]
    area = float(hypervolume(np.array(points), 5.0))
    assert area == near(sum(covered) / 10, abs=1e-9)
    larger = float(hypervolume(np.array([*points, more]), 5.0))
    assert larger >= area - 1e-12
    if any(s >= more[0] and u <= more[1] for s, u in points):
        assert larger == near(area, abs=1e-12)
    assert float(hypervolume(np.array(points[::-1]), 5.0)) == near(area)


@given(st.lists(st.builds(outcome, st.booleans(), st.integers(0, 5)), max_size=8), st.integers(0, 5))
def test_more_questions_allowed_solve_no_fewer_tasks(outcomes: list[Outcome], k: int) -> None:
    assert pass_at_u(outcomes, k) <= pass_at_u(outcomes, k + 1) <= 1


def arm(rate: float, user: int, seed: int, runs: int = 4, tasks: int = 20) -> list[Outcome]:
    """Outcomes whose luck depends on run and task, shared by all arms of a seed."""
    luck = np.random.default_rng(seed).random((runs, tasks))
    return [
        outcome(bool(luck[r, t] < rate), user, task=f"task {t}", run=r)
        for r in range(runs)
        for t in range(tasks)
    ]


def test_intervals_hold_the_estimate_and_widen_with_fewer_runs() -> None:
    many, few = intervals(arm(0.5, 2, 0)), intervals(arm(0.5, 2, 0, tasks=5))
    assert many["score"].low < many["score"].estimate < many["score"].high
    assert few["score"].high - few["score"].low > many["score"].high - many["score"].low
    assert many["user_actions"].low == many["user_actions"].high == 2.0


def test_runs_are_drawn_too() -> None:
    """Tasks all alike, runs all different: a bootstrap over tasks alone would have no width."""
    outcomes = [outcome(run < 2, task=f"task {t}", run=run) for run in range(4) for t in range(10)]
    score = intervals(outcomes, ["score"])["score"]
    assert score.low == 0.0 and score.high == 1.0


def test_a_change_is_paired_by_task() -> None:
    before = [outcome(i % 2 == 0, user=2, task=f"t{i}") for i in range(8)]
    after = [outcome(i % 2 == 0, user=1, task=f"t{i}") for i in reversed(range(8))]
    change = paired_change(before, after)
    for key, expected in (("solved", 0.0), ("user_actions", -1.0), ("user_rate", -0.25)):
        assert (change[key].estimate, change[key].low, change[key].high) == (expected,) * 3, key
    with pytest.raises(ProactorError, match="before has no episode of task 't0'"):
        paired_change(before[1:], after)


def test_a_gain_in_hypervolume_is_paired() -> None:
    sweep = {"w 0": arm(0.5, 3, 0), "w 0.1": arm(0.4, 2, 0)}
    same = hypervolume_gain(sweep, sweep, 15.0, resamples=200)
    assert (same.estimate, same.low, same.high) == (0.0, 0.0, 0.0)
    better = hypervolume_gain({"BAO": arm(0.6, 2, 0)}, sweep, 15.0, resamples=500)
    points = [(np.mean([o.score for o in outcomes]), u) for outcomes, u in zip(sweep.values(), (3, 2))]
    own = np.mean([o.score for o in arm(0.6, 2, 0)]) * 13
    assert better.estimate == near(own - hypervolume(np.array(points), 15.0))
    assert better.low > 0  # luck is shared, so pairing shows it
    apart = hypervolume_gain({"BAO": arm(0.6, 2, 1)}, sweep, 15.0, resamples=500)
    assert apart.high - apart.low > better.high - better.low


def test_a_dominated_arm_adds_nothing() -> None:
    base = {"good": arm(0.6, 2, 0)}
    gain = hypervolume_gain({**base, "worse": arm(0.3, 4, 0)}, base, 15.0, resamples=100)
    assert (gain.estimate, gain.low, gain.high) == (0.0, 0.0, 0.0)


def test_what_cannot_be_paired_is_refused() -> None:
    with pytest.raises(ProactorError, match="old b has no episode of task 'task 19' in run 3"):
        hypervolume_gain({"a": arm(0.5, 1, 0)}, {"b": arm(0.5, 1, 0)[:-1]}, 15.0)
    with pytest.raises(ProactorError, match="user metrics: no episodes"):
        intervals([])
