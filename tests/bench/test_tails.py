"""Sessions beside rounds: the same work, the least of tokens, and what each has to wait for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench import tails
from bench.models import write_tiny_qwen2
from bench.tails import Plan, Turn, plans


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    write = partial(write_tiny_qwen2, hidden_size=32, intermediate_size=32, num_hidden_layers=1)
    monkeypatch.setattr(tails, "write_tiny_qwen2", write)
    monkeypatch.setattr(tails, "LATENCIES", {"short": lambda rng: rng.expovariate(200.0)})


def test_both_sides_do_the_least_work(tmp_path: Path) -> None:
    tails.main(["--rollouts", "4", "--repeats", "1", "--results", str(tmp_path)])
    (file,) = tmp_path.glob("*/tails.json")
    cell = json.loads(file.read_text())["cells"]["short"]
    assert cell["equal"] >= tails.AGREE and cell["ratio"]["low"] > 0
    for side in tails.SIDES:
        assert 0.9 < cell[side]["computed"]["low"] <= cell[side]["computed"]["high"] <= 1.02
        assert cell[side]["seconds"]["low"] > cell[side]["waits"]["low"] > 0


def test_sides_that_draw_other_tokens_are_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def wrong(engine: Any, work: Any) -> list[list[int]]:
        return [ids[:-1] for ids in await tails.rounds(engine, work)]

    monkeypatch.setitem(tails.SIDES, "rounds", wrong)
    with pytest.raises(SystemExit, match="only 0% of the rollouts are equal"):
        tails.main(["--rollouts", "2", "--repeats", "1", "--results", str(tmp_path)])


def test_what_each_side_waits_for() -> None:
    first = Plan([1] * 5, [Turn(2, 1.0, [3]), Turn(2, 4.0, [3, 3]), Turn(2, 100.0, [3])])
    second = Plan([1] * 7, [Turn(3, 3.0, [3]), Turn(3, 100.0, [3] * 9)])
    assert tails.longest_rollout([first, second]) == 5.0
    assert tails.slowest_of_rounds([first, second]) == 3.0 + 4.0
    assert (first.least, second.least) == (5 + 6 + 3, 7 + 6 + 1)


def test_plans_are_seeded_and_capped() -> None:
    def heavy(rng: Any) -> float:
        return rng.paretovariate(0.3)  # type: ignore[no-any-return]

    assert plans("a", 9, heavy) == plans("a", 9, heavy) != plans("b", 9, heavy)
    latencies = [turn.latency for plan in plans("a", 9, heavy) for turn in plan.turns]
    assert max(latencies) == tails.TIMEOUT > min(latencies)
