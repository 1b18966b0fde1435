"""Coefficients by stage of training, and how a config spells them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.rewards import RewardError
from proactor.rewards.family import ComponentOptions
from proactor.rewards.options import read_options
from proactor.rewards.schedule import Linear, Thirds, TrainingProgress


def at(weight: Any, update: int, total: int = 200) -> float:
    weight_read = read_options(ComponentOptions, {"weight": weight}, "here").weight
    return weight_read.at(TrainingProgress(update, total))  # type: ignore[union-attr]


def test_the_ways_to_write_a_weight() -> None:
    assert [at(0.4, u) for u in (0, 199)] == [0.4, 0.4]
    linear = {"schedule": "linear", "to": 0.3, "warm_up": 0.5}
    assert [at(linear, u) for u in (0, 50, 100, 400)] == pytest.approx([0.0, 0.15, 0.3, 0.3])
    falling = {"schedule": "linear", "from": 1, "to": 0.5, "warm_up": 1}
    assert [at(falling, u) for u in (0, 100, 200)] == pytest.approx([1.0, 0.75, 0.5])
    assert at({"schedule": "linear", "to": 0.3, "warm_up": 0}, 0) == 0.3


def test_thirds_of_training() -> None:
    thirds = {"schedule": "thirds", "values": [0.3, 0.5, 0.7]}
    assert [at(thirds, u, 9) for u in range(10)] == [0.3] * 3 + [0.5] * 3 + [0.7] * 4
    assert [at(thirds, u, 1) for u in (0, 1)] == [0.3, 0.7]
    assert at(thirds, 0, 0) == 0.7


@given(st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 1), st.integers(1, 500))
def test_a_linear_schedule_runs_between_its_ends(start: float, to: float, warm_up: float, total: int) -> None:
    values = [
        Linear(start=start, to=to, warm_up=warm_up).at(TrainingProgress(u, total)) for u in range(total + 1)
    ]
    steps = [b - a for a, b in pairwise(values)]
    assert all(min(start, to) - 1e-9 <= v <= max(start, to) + 1e-9 for v in values) and values[
        -1
    ] == pytest.approx(to)
    assert all(step * (to - start) >= -1e-12 for step in steps)


@given(st.integers(1, 300))
def test_thirds_are_of_equal_length(total: int) -> None:
    values = [Thirds(values=(1, 2, 3)).at(TrainingProgress(u, total)) for u in range(total)]
    assert values == sorted(values) and all(abs(values.count(v) - total / 3) < 1 for v in (1, 2, 3))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        ("half", "here: weight: a number, or a mapping with schedule: constant, linear or thirds"),
        (True, "here: weight: a number"),
        (float("nan"), "here: weight.constant.value: Input should be a finite number"),
        ({"schedule": "linear", "to": 1, "warmup": 1}, "here: unknown key 'weight.linear.warmup'"),
        ({"schedule": "sine"}, "here: weight: Input tag 'sine'"),
        (
            {"schedule": "linear", "to": 1, "warm_up": 7},
            "here: weight.linear.warm_up: .*less than or equal to 1",
        ),
        ({"schedule": "thirds", "values": [1, 2]}, "here: weight.thirds.values"),
    ],
)
def test_wrong_weights_are_refused_in_one_line(weight: Any, message: str) -> None:
    with pytest.raises(RewardError, match=message) as error:
        read_options(ComponentOptions, {"weight": weight}, "here")
    assert "\n" not in str(error.value)
