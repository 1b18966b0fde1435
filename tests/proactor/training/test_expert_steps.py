"""StepAgent in training: a run of each form from one config, resumed exactly, and what it counts."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from proactor.config_base import ConfigError
from proactor.engine import Sample
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.episode_config import EpisodeConfig
from proactor.methods.stepagent import (
    ExpertStep,
    Inspected,
    StepAgent,
    expert_steps,
    inspect,
    pairs_of,
    preference_groups,
    read_action,
)
from proactor.progress import Stopped
from proactor.training.demonstrations import Demonstrations
from proactor.training.episodes import Arena
from proactor.training.episodes_loop import train_episodes
from proactor.training.expert_steps import ExpertSteps, _of_all
from proactor.training.method_credit import check_used
from tests.proactor.training.episodes import PLAY, calling_folder, config
from tests.proactor.training.test_loop import Asks, assert_equal, rows

FAMILY = {"signs": "+-", "largest": 2, "train": 7, "test": 2, "seed": 0, "max_turns": 5}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gym = FunctionFamily(**FAMILY)  # type: ignore[arg-type]
    opening = gym.make(gym.tasks("train")[0]).reset(0)
    return calling_folder(tmp_path_factory.mktemp("family") / "model", opening, steps=20, context=2048)


def settings(folder: Path, model: Path, reward: str, *overrides: str, **changes: Any) -> EpisodeConfig:
    folder.mkdir(exist_ok=True)
    values: dict[str, Any] = {
        "engine": {"kv_tokens": 8192, "deterministic": True},
        "environment": {"gym": "function_family", "options": FAMILY, "dev": 2, "play": PLAY},
        "method": {"name": "stepagent", "options": {"reward": reward, "thoughts": False}},
        "sft": None,
        "grpo": {"lr": 1e-2, "n": 3, "batch_tasks": 2, "steps": 3, "eval_every": 3},
    }
    return config(folder, model, *overrides, **(values | changes))


def steps_of(folder: Path) -> list[dict[str, Any]]:
    return [row for row in rows(folder) if row["kind"] == "grpo"]


# -- runs ---


def test_a_run_of_both_stages_by_pairs(model: Path, tmp_path: Path) -> None:
    stage = {"lr": 1e-2, "batch_tasks": 2, "max_steps": 1, "eval_every": 1, "thoughts": False}
    run = settings(tmp_path, model, "implicit", "grpo.epochs=2", "grpo.steps=1", "grpo.lr=1e-3", sft=stage)
    train_episodes(run)
    [row] = steps_of(run.folder)
    assert row["states"] > 4 and row["demonstrations"] == 2 and row["pairs"] > 0
    assert 0 <= row["agreement"] < 1 and row["tokens_sampled"] > 0
    assert row["reward_margin"] > 0 and row["pairs_right"] > 0.5  # after the first of two updates
    assert row["policy_version"] == 4 and row["skipped_update"] == 0  # stage A, its best loaded, two of pairs
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["tasks"] == 2


@pytest.mark.parametrize("reward", ["implicit", "inverse"])
def test_a_stopped_run_continues_bitwise(reward: str, model: Path, tmp_path: Path) -> None:
    whole = settings(tmp_path / "whole", model, reward)
    stopped = settings(tmp_path / "stopped", model, reward, "save_every=100")
    train_episodes(whole)
    with pytest.raises(Stopped, match="after step 2, saved"):
        train_episodes(stopped, ui=Asks(2))
    train_episodes(stopped, resume=True)
    assert_equal(stopped.folder, whole.folder)
    if reward == "inverse":
        for row in steps_of(whole.folder):
            assert {"rewards_saturated", "discriminator_perfect", "discriminator_rested"} <= row.keys()
        assert steps_of(whole.folder)[1]["discriminator_accuracy"] > 0.5  # it remembers the step before


# -- steps ---


@pytest.fixture(scope="module")
def arena(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Arena:
    return Arena.open(settings(tmp_path_factory.mktemp("arena"), model, "implicit"))


def taught(arena: Arena) -> Demonstrations:
    return Demonstrations.of(arena.gym, arena.chat, thoughts=False)


def test_steps_stand_at_the_experts_own_history(arena: Arena) -> None:
    task = arena.tasks.train[0]
    [made] = taught(arena).samples(task)
    assert isinstance(made, Sample)
    steps = expert_steps(task, made, arena.chat, arena.engine.tokenizer.decode)
    assert len(steps) == len(made.turns()) >= 3
    whole = made.prompt_ids + made.token_ids
    for step in steps:
        end = len(step.prompt_ids)
        assert whole[:end] == step.prompt_ids
        assert whole[end : end + len(step.action_ids)] == step.action_ids
    assert steps[0].action[0][0] == "search"
    assert "Test case" in steps[1].seen and steps[0].seen == ""


def test_the_experts_own_replies_agree_and_give_no_pair(arena: Arena) -> None:
    """Where the policy samples what the expert writes, the step has nothing to learn and says so."""
    [made] = taught(arena).samples(arena.tasks.train[0])
    assert isinstance(made, Sample)
    steps = expert_steps("t", made, arena.chat, arena.engine.tokenizer.decode)
    sampling = arena.config.environment.play.sampling.model_copy(update={"n": 2, "seed": 1})
    inspected = inspect(arena.engine, arena.chat, steps, sampling, range(len(steps)))
    assert pairs_of(preference_groups(inspected)) > 0
    for one in inspected:
        for sample in one.samples:
            sample.token_ids[:] = one.step.action_ids
    same = [
        Inspected(one.step, one.samples, [read_action(arena.chat, s.token_ids) for s in one.samples])
        for one in inspected
    ]
    assert all(all(one.agreed) for one in same) and preference_groups(same) == []
    assert arena.config.grpo is not None
    steps_row = ExpertSteps(arena, StepAgent(thoughts=False), arena.config.grpo, taught(arena), {})
    version = arena.engine.policy_version
    row = steps_row._implicit({0: same})
    assert row["pairs"] == 0 and row["skipped_update"] == 1 and row["tokens_trained"] == 0
    assert arena.engine.policy_version == version


def test_a_task_whose_demonstration_is_left_out_is_counted(arena: Arena) -> None:
    class Failing:
        def samples(self, task: str) -> str:
            return "failed"

    assert arena.config.grpo is not None
    for reward in ("implicit", "inverse"):
        method = StepAgent.model_validate({"reward": reward})
        steps = ExpertSteps(arena, method, arena.config.grpo, Failing(), {})  # type: ignore[arg-type]
        row = steps.row(0, arena.tasks.train[:2])
        assert row["left_out_failed"] == 2 and row["states"] == 0 and row["skipped_update"] == 1


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("left_out", [set[int](), {0}, {1, 3}])
def test_the_states_of_all_ranks_stand_in_the_order_of_the_tasks(world: int, left_out: set[int]) -> None:
    """A task without states leaves no gap in which another's would stand, and one may come twice."""
    tasks = ["a", "b", "a", "c", "d"]

    def inspected(place: int) -> Inspected:
        return Inspected(ExpertStep(tasks[place], place, [1], [2], ()), [], [])

    places = [place for place in range(len(tasks)) if place not in left_out]
    ranks = [{p: [inspected(p)] for p in places if p % world == rank} for rank in range(world)]

    class Ranks:
        def gather(self, mine: Any, phase: str) -> list[dict[int, list[int]]]:
            made = [{p: turns(states) for p, states in rank.items()} for rank in ranks]
            assert mine == made[0]
            return made

    def turns(states: Iterable[Inspected]) -> list[int]:
        return [state.step.turn for state in states]

    assert _of_all(Ranks(), ranks[0], turns, "x") == places  # type: ignore[arg-type]


# -- refusals ---


def test_by_rewards_all_of_grpo_counts(model: Path, tmp_path: Path) -> None:
    grpo = {"lr": 1e-2, "beta": 0.1, "minibatches": 2, "clip": "cispo"}
    check_used(settings(tmp_path, model, "inverse", grpo=grpo), StepAgent(reward="inverse"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"environment": {"gym": "questions", "dev": 2}}, "has no symbolic expert"),
        ({"sft": {"thoughts": True}}, "method.options.thoughts: False, and sft.thoughts is True"),
        ({"method": {"name": "stepagent", "options": {"bta": 1}}}, "unknown key 'bta' of stepagent (known"),
        *(
            ({"grpo": {"lr": 1e-2, **option}}, f"{said}: stepagent by pairs")
            for said, option in (
                ("grpo.beta=0.1", {"beta": 0.1}),
                ("grpo.clip=cispo", {"clip": "cispo"}),
                ("grpo.entropy_bonus=0.01", {"entropy_bonus": 0.01, "epochs": 2, "warmup": 3}),
                ("grpo.minibatches=4", {"minibatches": 4, "normalizer": "samples"}),
            )
        ),
    ],
)
def test_what_cannot_teach_is_refused_before_anything_is_written(
    changes: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    run = settings(tmp_path, model, "implicit", **changes)
    with pytest.raises(ConfigError) as refused:
        train_episodes(run)
    assert message in str(refused.value) and not run.folder.exists()
