"""Success against turns of the user: the front, the path of a run, a point with whiskers a run."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from proactor.report.episode_metrics import EpisodeSummary, Estimate
from proactor.report.pareto import Mark, front, marks_of, pareto_chart, path_of

Points = st.lists(
    st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(lambda n: n / 6)), min_size=1, max_size=12
)


@given(Points)
def test_the_front_is_what_no_other_point_dominates(points: list[tuple[float, float]]) -> None:
    def dominated(one: tuple[float, float]) -> bool:
        return any(o != one and o[0] <= one[0] and o[1] >= one[1] for o in points)

    assert front(points) == sorted({p for p in points if not dominated(p)})


def test_the_path_names_its_ends_and_the_chosen_step() -> None:
    rows = [
        {"kind": "eval", "step": 0, "eval_score": 0.1, "eval_user_actions": 3.0},
        {"kind": "grpo", "step": 1, "score": 0.2, "user_actions": 2.0},
        {"kind": "eval", "step": 1, "eval_score": None, "eval_user_actions": 3.0},
        {"kind": "eval", "step": 2, "eval_score": 0.5, "eval_user_actions": 2.0},
        {"kind": "eval", "step": 3, "eval_score": 0.6, "eval_user_actions": 1.0},
        {"kind": "eval", "step": 4, "eval_score": 0.4, "eval_user_actions": 1.5},
    ]
    path = path_of(rows, 4)
    assert [(m.point, m.name, m.kind) for m in path] == [
        ((3.0, 0.1), "step 0", "step"),
        ((2.0, 0.5), "", "step"),
        ((1.0, 0.6), "step 3", "chosen"),
        ((1.5, 0.4), "step 4", "step"),
    ]
    assert path_of([], None) == []
    svg = pareto_chart([], path)
    assert re.findall(r'class="name"[^>]*>([^<]*)<', svg) == ["step 3", "step 4", "step 0"]
    assert svg.count('class="front dev"') == 1 and 'class="front test"' not in svg


def test_a_point_has_whiskers_where_its_intervals_are_known() -> None:
    known, unknown = Estimate(estimate=0.5, low=0.25, high=0.75), Estimate(estimate=0.5, low=None, high=None)
    undefined = Estimate(estimate=None, low=None, high=None)

    def mark(u: Estimate) -> list[Mark]:
        values = {"score": known, "user_actions": u}
        sides = {"before": values, "after": values}
        return marks_of("x", EpisodeSummary(tasks=2, intervals=sides, difference={}), "after")  # type: ignore[arg-type]

    assert mark(known)[0].spread == ((0.25, 0.75), (0.25, 0.75))
    assert mark(unknown)[0].spread is None and mark(undefined) == []
    assert pareto_chart(mark(known)).count('class="whisker"') == 2
    assert 'class="whisker"' not in pareto_chart(mark(unknown))
    assert pareto_chart([]) == ""


def test_points_of_equal_values_are_drawn() -> None:
    same = [Mark((0.0, 0.0), name, "after") for name in ("a", "b")]
    assert re.findall(r'class="name"[^>]*>([^<]*)<', pareto_chart(same)) == ["a, b"]
