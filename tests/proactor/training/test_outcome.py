"""Which step a run chose, and what it says where training failed."""

from __future__ import annotations

from typing import Any

import pytest

from proactor.training.outcome import outcome


def grpo(values: list[float | None], flat: float = 0.5) -> list[dict[str, Any]]:
    """The rows of a GRPO stage with a check before it and after every second step."""
    rows: list[dict[str, Any]] = [{"phase": "sft", "kind": "eval", "step": 0, "held_out_loss": 3.0}]
    for i, value in enumerate(values):
        if i:
            rows += [
                {"phase": "grpo", "kind": "grpo", "step": 2 * i + k, "zero_spread_share": flat}
                for k in (0, 1)
            ]
        rows.append({"phase": "grpo", "kind": "eval", "step": 2 * i, "eval_first_fire_f1": value})
    return rows


def test_the_first_best_check_is_the_chosen_step() -> None:
    result = outcome(grpo([0.5, 0.6, 0.7, 0.7, 0.1]), "first_fire_f1")
    assert result is not None and (result.best_step, result.steps) == (4, 8)
    assert str(result) == "best adapter: GRPO step 4 of 8, first-fire F1 on dev 0.500 -> 0.700"
    assert result.title == "after: GRPO step 4 of 8"


def test_a_run_that_never_beat_its_start_says_so_and_why() -> None:
    result = outcome(grpo([0.605, 0.3, 0.0], flat=0.98), "first_fire_f1")
    assert str(result).startswith(
        "GRPO never beat its start (best step 0): first-fire F1 on dev 0.605 at the start, "
        "0.000 after 4 steps; 98% of the groups without spread, which give no gradient"
    )
    assert result is not None and "never beat it (best step 0)" in result.title
    lively = str(outcome(grpo([0.605, 0.605], flat=0.2), "first_fire_f1"))
    assert "20% of the groups without spread" in lively and "gradient" not in lively


def test_a_metric_that_is_undefined_counts_as_0_and_is_called_so() -> None:
    assert "undefined at the start, 0.000 after" in str(outcome(grpo([None, 0.0]), "first_fire_f1"))


@pytest.mark.parametrize(("losses", "step"), [([3.0, 2.0, 2.5], 1), ([3.0, 3.3], 0), ([None, 2.0], 1)])
def test_a_supervised_run_is_measured_by_its_held_out_loss(losses: list[float | None], step: int) -> None:
    rows: list[dict[str, Any]] = []
    for i, loss in enumerate(losses):
        rows += [{"phase": "sft", "kind": "sft", "step": i}] if i else []
        rows.append({"phase": "sft", "kind": "eval", "step": i, "held_out_loss": loss})
    result = outcome(rows, "reward")
    assert result is not None and (result.phase, result.best_step) == ("sft", step)
    assert ("held-out loss on dev" in str(result)) and ("never beat" in str(result)) == (step == 0)


def test_without_a_check_there_is_nothing_to_say() -> None:
    assert outcome([], "reward") is None
