"""Several rewards as one: scales, weights, drops, and who is asked."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.rewards import GroupScores, Mixture, RewardError, Term, WeightedMetric
from proactor.rewards.components import MetricComponent
from proactor.rewards.mixture import Range, to_unit
from proactor.rewards.schedule import Constant, Linear, Rest, TrainingProgress
from proactor.rewards.weighted_metric import metric_range
from tests.proactor.rewards.group_rewards import CATALOG, FULL, HALF, WAIT, Given, group


def term(name: str, source: Any, weight: Any = 1.0, bounds: Range = (0.0, 1.0), key: str = "") -> Term:
    schedule = Constant(value=weight) if isinstance(weight, int | float) else weight
    return Term(name, source, key or name, schedule, bounds)


def score(mixture: Mixture, update: int = 0, total: int = 200) -> GroupScores:
    return asyncio.run(mixture.score(group(), TrainingProgress(update, total)))


def rewards(scored: GroupScores) -> list[float]:
    assert scored is not None
    return [parts["reward"] for parts in scored]


def three(name: str, *values: float, **options: Any) -> Given:
    return Given(*({name: v} for v in values), **options)


def test_adaptive_ruler() -> None:
    """T1.2: lambda_max .3, U_warm 100, metric .6, judge .9."""
    metric, judge = three("rac", 0.6, 0.6, 0.6), three("ruler", 0.9, 0.9, 0.9, costly=True)
    mixture = Mixture("m", [term("rac", metric, Rest()), term("ruler", judge, Linear(to=0.3, warm_up=0.5))])
    assert [rewards(score(mixture, u))[0] for u in (0, 50, 400)] == pytest.approx([0.6, 0.645, 0.69])
    assert mixture.coefficients(TrainingProgress(50, 200)) == pytest.approx({"rac": 0.85, "ruler": 0.15})
    assert judge.counters["asked"] == 2, "asked while its weight was 0"


def test_parts_come_to_one_scale_before_they_are_mixed() -> None:
    wide = term("wide", three("wide", 0, 5, 10), 0.5, (0, 10))
    low = term("low", three("low", 1, 0, -1), 0.5, (-1, 1))
    scored = score(Mixture("m", [wide, low]))
    assert scored == [
        {"reward": 0.5, "wide": 0.0, "low": 1.0},
        {"reward": 0.5, "wide": 0.5, "low": 0.5},
        {"reward": 0.5, "wide": 1.0, "low": 0.0},
    ]


def test_a_negative_weight_is_a_penalty() -> None:
    scored = score(
        Mixture("m", [term("good", three("good", 1, 1, 0)), term("bad", three("bad", 1, 0, 0), -0.25)])
    )
    assert rewards(scored) == pytest.approx([0.75, 1.0, 0.0])


@given(
    st.lists(st.tuples(st.floats(0, 1), st.floats(0.01, 100), st.floats(-50, 50)), min_size=1, max_size=4),
    st.data(),
)
def test_a_rescaled_part_changes_nothing(
    parts: list[tuple[float, float, float]], data: st.DataObject
) -> None:
    values = [data.draw(st.lists(st.floats(0, 1), min_size=3, max_size=3)) for _ in parts]
    plain = [
        term(f"p{i}", three(f"p{i}", *v), w)
        for i, (v, (w, _, _)) in enumerate(zip(values, parts, strict=True))
    ]
    moved = [
        term(f"p{i}", three(f"p{i}", *(low + size * x for x in v)), w, (low, low + size))
        for i, (v, (w, size, low)) in enumerate(zip(values, parts, strict=True))
    ]
    one, other = (rewards(score(Mixture("m", terms))) for terms in (plain, moved))
    assert one == pytest.approx(other, abs=1e-6)
    assert all(-1e-9 <= r <= sum(w for w, _, _ in parts) + 1e-9 for r in one)


def test_a_value_outside_its_range_is_named() -> None:
    with pytest.raises(RewardError, match=r"'m: odd' gave 1.2, outside its range 0 to 1: declare range"):
        score(Mixture("m", [term("odd", three("odd", 0.2, 1.2, 0.0))]))
    assert to_unit("x", 1 + 1e-9, (0, 1)) == 1.0


def test_a_group_that_one_judge_gives_up_is_dropped() -> None:
    silent = Given(None, costly=True, concurrent=True)
    terms = [term("rac", three("rac", 1, 0, 0)), term("ruler", silent, Linear(to=1.0, warm_up=1))]
    assert score(Mixture("m", terms), 1) is None
    assert score(Mixture("m", terms), 0) is not None, "a judge without weight has nothing to give up"


def test_what_else_a_judge_says_is_kept_under_its_name() -> None:
    judge = Given(*({"ruler": x, "timing": 1 - x} for x in (0.1, 0.2, 0.3)), costly=True)
    scored = score(Mixture("m", [term("custom_ruler", judge, key="ruler")]))
    assert scored is not None and scored[0] == {
        "reward": 0.1,
        "custom_ruler": 0.1,
        "custom_ruler/timing": 0.9,
    }


def test_equal_metrics_are_asked_once() -> None:
    class Counted(WeightedMetric):
        asked = 0

        def parts(self, *arguments: Any, **options: Any) -> dict[str, float]:
            Counted.asked += 1
            return super().parts(*arguments, **options)

    terms = [term(name, MetricComponent(Counted()), 0.3) for name in ("rac", "timing", "false")]
    mixture = Mixture("m", terms)
    assert len(mixture.components) == 1
    score(mixture)
    assert Counted.asked == 3
    scored = asyncio.run(mixture.score(group(FULL, HALF, WAIT), TrainingProgress()))
    assert scored is not None and [p["rac"] for p in scored] == [1.0, 0.5, 0.0]


def test_who_waits_for_whom() -> None:
    metric, beside, inside = (
        three("a", 0, 0, 0),
        three("b", 0, 0, 0, costly=True, concurrent=True),
        three("c", 0, 0, 0, costly=True),
    )
    cases = [
        ((metric,), False, ()),
        ((metric, beside), True, ("b",)),
        ((metric, beside, inside), False, ("b", "c")),
    ]
    for sources, concurrent, judged in cases:
        mixture = Mixture("m", [term(next(iter(s.rows[0] or {})), s) for s in sources])
        assert (mixture.concurrent, mixture.judged) == (concurrent, judged)
    mixture.bind("engine", CATALOG)  # type: ignore[arg-type]
    assert inside.bound == ("engine", CATALOG)
    score(mixture)
    assert mixture.counters == {"asked": 3}


def test_impossible_mixtures_are_refused() -> None:
    source = three("a", 0, 0, 0)
    for terms, message in [
        ([], "no components"),
        ([term("a", source, Rest()), term("b", source, Rest())], "only one weight can be the rest"),
        ([term("a", source, bounds=(1, 1))], r"a: range \[1, 1\] is empty or reversed"),
    ]:
        with pytest.raises(RewardError, match=message):
            Mixture("m", terms)


@given(
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(-1, 2),
    st.floats(0, 1),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_range_of_a_metric_holds_whatever_it_gives(
    consistency: float, timing: float, false: float, early: float, rac: float, in_time: float, wrong: float
) -> None:
    metric = WeightedMetric(consistency=consistency, timing=timing, false=false, early=early)
    low, high = metric_range(metric)
    for worth in (1.0, early):
        assert low - 1e-9 <= consistency * rac + timing * in_time * worth - false * wrong <= high + 1e-9
