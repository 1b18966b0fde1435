"""A run whose sampler and trainer move apart says so, once, after a resume too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proactor.engine import LARGE_GAP
from proactor.progress import Quiet
from proactor.training.gap_watch import STEPS, GapWatch, growth
from proactor.training.loop import Training, train
from proactor.training.runs import read_rows
from tests.proactor.runs import config


def row(gap: float | None, tokens: float = 5.0) -> dict[str, Any]:
    return {"sampler_trainer_gap": gap, "tokens_trained": tokens}


@pytest.mark.parametrize(
    ("first", "last", "grown"),
    [(0.02, 0.041, True), (0.02, 0.039, False), (0.0, LARGE_GAP * 1.1, True), (0.0, LARGE_GAP * 0.9, False)],
)
def test_grown_is_twice_as_large_and_large(first: float, last: float, grown: bool) -> None:
    gaps = [first] * STEPS + [last] * STEPS
    assert (growth(gaps) is not None) == grown
    assert growth(gaps[1:]) is None, "too few steps"


def test_it_is_said_once_and_steps_without_tokens_count_for_nothing() -> None:
    watch = GapWatch()
    idle = [row(0.0, tokens=0.0), row(None), {"tokens_trained": 3.0}]
    early = [row(0.02)] * STEPS
    assert not any(map(watch.note, [*early, *idle * STEPS])), "the first ten are not diluted by idle steps"
    said = [watch.note(row(0.05)) for _ in range(2 * STEPS)]
    assert [bool(line) for line in said].count(True) == 1 and not any(said[: STEPS - 1])
    assert "grew from 0.020 to 0.050 nats a token" in said[STEPS - 1]
    resumed = GapWatch([*early, *[row(0.05)] * STEPS])
    assert resumed.note(row(0.06)) == "", "it was said before"
    assert GapWatch(early * 2).note(row(0.4)), "what came before is remembered"


def test_a_run_says_it_where_it_happens(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the steps before were another process's."""

    class Heard(Quiet):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def say(self, text: str) -> None:
            self.lines.append(text)

    def made_up(self: Training, step: int) -> tuple[dict[str, Any], list[Any]]:
        made = {"reward_mean": 0.0, "groups_dropped": 0.0, "skipped_update": 0.0, "tokens_sampled": 1.0}
        return {**row(0.02 if step < STEPS else 0.08), **made}, []

    monkeypatch.setattr(Training, "grpo_row", made_up)
    monkeypatch.setattr(Training, "check", lambda self: ({"eval_reward": 0.0}, 0.0))
    many = ("sft=null", "eval.final=false", "grpo.eval_every=100", "save_every=100")
    for steps, said in ((STEPS + 2, 0), (2 * STEPS, 1)):
        ui, settings = Heard(), config(tmp_path, tiny_model, *many, f"grpo.steps={steps}")
        train(settings, resume=steps > STEPS + 2, ui=ui)
        assert len([line for line in ui.lines if line.startswith("warning: the sampler-trainer gap")]) == said
    assert len([r for r in read_rows(settings.folder / "metrics.jsonl") if r["kind"] == "grpo"]) == 2 * STEPS
