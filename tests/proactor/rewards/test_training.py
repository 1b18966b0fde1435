"""Training steps with group rewards: as with a function, judged beside sampling, and with groups dropped."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.dialogue.candidates import Candidates
from proactor.dialogue.prompt import PromptEncoder, PromptStyle
from proactor.engine import EarlyGradient, Group
from proactor.rewards import GroupScores, RewardWorker, WeightedMetric, load_reward
from proactor.rewards.components import FunctionComponent
from proactor.rewards.mixture import Mixture, Term
from proactor.rewards.schedule import Constant, TrainingProgress
from proactor.training.loop import train
from proactor.training.runs import CLOCKS
from proactor.training.steps import grpo_step
from proactor.training.workspace import Workspace
from tests.proactor.rewards.group_rewards import ByText, length
from tests.proactor.rewards.short_runs import MINE, decisions_by_step, samples_by_step, settings, steps


@pytest.fixture(scope="module")
def workspace(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """One that tests give rewards of their own; each begins with an untrained adapter."""
    return Workspace.open(settings(tmp_path_factory.mktemp("workspace"), tiny_model, f"{MINE}:half_dropped"))


@pytest.fixture
def fresh(workspace: Workspace) -> Workspace:
    state = workspace.engine.state_dict()
    for name in ("m", "v"):
        state[name].zero_()
    torch.manual_seed(0)
    workspace.engine.load_state_dict(
        {**state, "adapter": torch.randn_like(state["adapter"]) * 0.02, "steps": 0}
    )
    return workspace


def one_step(workspace: Workspace, reward: Any, step: int = 0) -> tuple[dict[str, Any], list[Any]]:
    workspace.reward, workspace.worker = (
        reward,
        RewardWorker("mine", reward) if hasattr(reward, "score") else None,
    )
    try:
        stage = workspace.config.grpo
        assert stage is not None
        return grpo_step(workspace, stage, step)
    finally:
        workspace.close()


# -- the same training ---


@pytest.mark.parametrize("concurrent", [True, False])
def test_a_group_reward_trains_as_a_function_with_the_same_values_does(
    fresh: Workspace, concurrent: bool
) -> None:
    start = fresh.engine.state_dict()

    def by_function(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        return [length(text) for text in completions]

    row, groups = one_step(fresh, by_function)
    wanted = fresh.engine.state_dict()["adapter"]
    assert not torch.equal(wanted, start["adapter"])
    fresh.engine.load_state_dict(start)
    other, judged = one_step(fresh, ByText(length, concurrent=concurrent))
    for one, two in zip(judged, groups, strict=True):
        assert [a.sample.text for a in one.answers] == [a.sample.text for a in two.answers]
        assert one.group.rewards == two.group.rewards and one.group.tree == two.group.tree
    assert torch.equal(fresh.engine.state_dict()["adapter"], wanted)
    same = row.keys() & other.keys() - {"policy_version", *CLOCKS}
    assert {k: row[k] for k in same} == {k: other[k] for k in same} and len(same) > 20


def test_a_function_in_a_mixture_sees_the_prompts_that_the_policy_saw(
    fresh: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the run's style, as a function by itself does."""
    style = PromptStyle(instructions="Act in time.")
    monkeypatch.setattr(fresh, "encoder", PromptEncoder(fresh.encoder.chat, fresh.encoder.catalog, style))
    seen: list[list[Any]] = [[], []]

    def noting(place: int) -> Any:
        def reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
            seen[place] += prompts
            return [length(text) for text in completions]

        return reward

    start = fresh.engine.state_dict()
    one_step(fresh, noting(0))
    fresh.engine.load_state_dict(start)
    term = Term("mine", FunctionComponent("mine", noting(1)), "reward", Constant(value=1.0))
    one_step(fresh, Mixture("mixed", [term]))
    assert seen[0] and seen[0] == seen[1] and all("Act in time." in prompt for prompt in seen[0])


def test_the_stage_is_that_of_training(fresh: Workspace) -> None:
    reward = ByText(length)
    one_step(fresh, reward, 1)
    assert set(reward.seen_progress) == {TrainingProgress(1, 2)}


def test_groups_are_judged_while_others_are_sampled(
    fresh: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()

    class Watched(ByText):
        async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
            begun.set()
            return await super().score(candidates, progress)

    sample_shared = fresh.engine.sample_shared
    seen: list[bool] = []

    def waiting(*arguments: Any, **options: Any) -> Any:
        for group in sample_shared(*arguments, **options):
            yield group
            seen.append(begun.wait(5))

    monkeypatch.setattr(fresh.engine, "sample_shared", waiting)
    row, _ = one_step(fresh, Watched(length))
    assert seen and all(seen)
    assert row["seconds_judging"] >= 0 and row["seconds_waiting"] >= 0


def test_what_a_judged_step_tells(fresh: Workspace) -> None:
    row, groups = one_step(fresh, load_reward("custom_ruler", {"judge": "rule"}))
    assert row["coef/ruler"] == 1.0 and row["judge/groups"] == row["groups"] == len(groups)
    assert row["judge/scored_groups"] == len(groups) and row["groups_dropped"] == row["skipped_update"] == 0
    assert {
        "parts/ruler_within",
        "parts/ruler/timing",
        "parts/metric",
        "parts/rac",
        "judge/spread",
    } <= row.keys()
    assert row["judge/spread"] == pytest.approx(row["parts/ruler_within"])
    assert 0 <= row.get("judge/agreement", 0.5) <= 1 and row["judge/pairs"] >= 0
    sample = groups[0].answers[0].parts
    assert sample["reward"] == sample["ruler"] and "metric" in sample


def test_a_judge_that_is_the_metric_agrees_with_it_in_full(fresh: Workspace) -> None:
    class Metric(ByText):
        sign = 1.0

        async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
            metric = WeightedMetric()
            parts = [
                metric.parts(candidates.dialogue, candidates.turn, p, candidates.board)
                for p in candidates.parsed
            ]
            return [{"reward": p["reward"], "judge": self.sign * p["reward"]} for p in parts]

    rows = []
    for sign in (1.0, -1.0):
        reward = Metric(length)
        reward.sign = sign
        rows.append(one_step(fresh, reward)[0])
    assert rows[0]["judge/pairs"] > 0, "no two samples differ: the test shows nothing"
    assert (rows[0]["judge/agreement"], rows[1]["judge/agreement"]) == (1.0, 0.0)


# -- dropped groups ---


def test_dropped_groups_leave_the_batch_and_are_counted(fresh: Workspace) -> None:
    start = fresh.engine.state_dict()
    turns = {d.id: d.decision_turns[0] for d in fresh.train}
    row, groups = one_step(fresh, ByText(length, lambda c: c.turn != turns[c.dialogue.id]))
    gone = [g for g in groups if g.dropped]
    assert len(gone) == row["groups_dropped"] == 2 and row["groups"] == len(groups) - 2
    assert all(
        a.sample.reward is None and a.sample.advantage is None and a.parts == {}
        for g in gone
        for a in g.answers
    )
    assert row["tokens_sampled"] == sum(len(a.sample.token_ids) for g in groups for a in g.answers)
    trained = fresh.engine.state_dict()["adapter"]
    fresh.engine.load_state_dict(start)
    kept = [g.group for g in groups if not g.dropped]
    for group in kept:
        for sample in group.samples:
            sample.advantage = None
    assert fresh.config.grpo is not None
    fresh.engine.train(kept, fresh.config.grpo)
    assert torch.equal(fresh.engine.state_dict()["adapter"], trained), "the dropped ones took part"


def test_without_any_group_nothing_moves(fresh: Workspace) -> None:
    start = fresh.engine.state_dict()
    row, groups = one_step(fresh, ByText(length, lambda c: False))
    after = fresh.engine.state_dict()
    assert all(torch.equal(start[k], after[k]) for k in ("adapter", "m", "v"))
    assert (after["steps"], after["policy_version"]) == (start["steps"], start["policy_version"])
    assert (row["skipped_update"], row["groups"], row["groups_dropped"]) == (1.0, 0.0, float(len(groups)))


def test_a_run_without_a_single_score_ends_with_the_same_data_order(tiny_model: Path, tmp_path: Path) -> None:
    folders = []
    for name in ("half_dropped", "all_dropped"):
        run = settings(tmp_path, tiny_model, f"{MINE}:{name}", None, f"name={name}", "grpo.steps=3")
        train(run)
        folders.append(run.folder)
    half, nothing = folders
    assert decisions_by_step(half) == decisions_by_step(nothing) and len(decisions_by_step(nothing)) == 3
    assert [r["skipped_update"] for r in steps(nothing)] == [1.0, 1.0, 1.0]
    assert all(r["reward_mean"] is None for r in steps(nothing))
    assert all(row["reward"] is None and row["text"] for step in samples_by_step(nothing) for row in step)
    assert 0 < sum(r["groups_dropped"] for r in steps(half)) == sum(r["judge/lost"] for r in steps(half))
    assert {row["reward"] is None for step in samples_by_step(half) for row in step} == {True, False}


# -- trained on while other ranks sample ---


@pytest.mark.parametrize("kind", ["function", "judge", "judge after sampling"])
def test_what_is_scored_is_trained_on_while_other_ranks_sample(
    fresh: Workspace, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The adapter is that of a step that waits, also where groups come to the rank after its first pass."""
    engine, start = fresh.engine, fresh.engine.state_dict()
    reward: Any = ByText(length, concurrent=kind == "judge")
    if kind == "function":

        def reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
            return [length(text) for text in completions]

    row, _ = one_step(fresh, reward)
    wanted = engine.state_dict()["adapter"]
    engine.load_state_dict(start)
    sample_shared, added = engine.sample_shared, []

    class Watched(EarlyGradient):
        def add(self, groups: Any) -> None:
            added.append(len(groups))
            super().add(groups)

    def as_if_others_sampled(*arguments: Any, idle: Any, units: list[str], **options: Any) -> Iterator[Group]:
        groups = list(sample_shared(*arguments, **options))
        first = [group for group in groups if units[group.index] == units[0]]
        for part in (first, [group for group in groups if group not in first]):
            yield from part
            limit = time.monotonic() + 60
            while idle() or (kind != "judge after sampling" and added[-1] == 0):
                assert time.monotonic() < limit

    trainer, weights = engine._learner()
    monkeypatch.setattr(engine, "sample_shared", as_if_others_sampled)
    early = partial(Watched, trainer, engine._policy, weights, engine._loop)
    monkeypatch.setattr(engine, "early_gradient", early)
    again, groups = one_step(fresh, reward)
    assert torch.equal(engine.state_dict()["adapter"], wanted)
    assert {k: v for k, v in again.items() if k not in CLOCKS} == pytest.approx(
        {k: v for k, v in row.items() if k not in CLOCKS} | {"policy_version": again["policy_version"]}
    )
    if kind == "judge after sampling":
        assert not any(added)
    else:
        sizes = [size for size in added if size]
        assert 0 < sizes[0] < len(groups) and sizes[-1] >= sizes[0]
