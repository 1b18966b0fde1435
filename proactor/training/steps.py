"""One training step: its batch of dialogues, samples and rewards, the update, and its row of numbers.

Data order, boards and noise are functions of (seed, phase, step): a resumed run repeats what a killed one
would have done, and no sample depends on its rank.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

from proactor.config import GRPOStage, SFTStage
from proactor.dialogue import Dialogue
from proactor.engine import GRPO, Engine, Group, ranged
from proactor.rewards import GroupReward, WeightedMetric
from proactor.rewards.schedule import TrainingProgress
from proactor.training.answers import AnswerGroup
from proactor.training.graph_rollout import trainable
from proactor.training.rollout import judge_groups, sample_groups, sft_groups
from proactor.training.stats import judge_statistics, reward_statistics
from proactor.training.workspace import Workspace

Row = dict[str, Any]
T = TypeVar("T")

SFT_STATISTICS = (
    "loss",
    "entropy",
    "grad_norm",
    "adapter_norm",
    "lr",
    "tokens_trained",
    "tokens_computed",
    "tokens_avoided",
    "nonfinite_gradient",
)
"""Statistics of the trainer that the row of a supervised step keeps."""


def derive_seed(*parts: object) -> int:
    """63 bits that depend on all ``parts`` and nothing else."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()) >> 1


def batch(
    items: Sequence[T],
    size: int,
    seed: int,
    phase: str,
    step: int,
    name: Callable[[T], str] = attrgetter("id"),
) -> tuple[int, list[T]]:
    """(epoch, items) of a step. Each epoch is a new order of all items, with a smaller last batch.

    ``name``: what tells an item from the others.
    """
    per_epoch = -(-len(items) // size)
    epoch, index = divmod(step, per_epoch)
    order = sorted(items, key=lambda item: derive_seed(seed, phase, epoch, name(item)))
    return epoch, order[index * size : (index + 1) * size]


def sft_step(workspace: Workspace, stage: SFTStage, step: int) -> Row:
    """One supervised update; returns its row."""
    seed, engine = workspace.config.seed, workspace.engine
    epoch, chosen = batch(workspace.train, stage.batch_dialogues, seed, "sft", step)
    groups, counters = sft_groups(
        workspace.encoder,
        engine.share(chosen),
        seed=seed,
        epoch=epoch,
        shares=stage.boards,
        pending=stage.pending,
    )
    stats = engine.train(groups, stage)
    counts = engine.gather((counters["examples"], counters["unknowable"]), "counters")
    return {
        "epoch": epoch,
        **{key: stats[key] for key in SFT_STATISTICS},
        "examples": sum(examples for examples, _ in counts),
        "unknowable": sum(unknowable for _, unknowable in counts),
    }


def held_out_loss(workspace: Workspace, stage: SFTStage) -> float:
    """Loss of the wanted answers on the dev dialogues (boards fixed by the seed), in nats per token."""
    groups, _ = sft_groups(
        workspace.encoder,
        workspace.engine.share(workspace.held_out),
        seed=workspace.config.seed,
        epoch=-1,
        shares=stage.boards,
        pending=stage.pending,
    )
    return workspace.engine.nll(groups)


def grpo_step(workspace: Workspace, stage: GRPOStage, step: int) -> tuple[Row, list[AnswerGroup]]:
    """Sample every decision of a batch of dialogues, score, update.

    Returns the row, and this rank's groups, including those that the reward dropped.
    """
    epoch, chosen = batch(workspace.train, stage.batch_dialogues, workspace.config.seed, "grpo", step)
    if workspace.encoder.style.mode == "graph":  # a rank's dialogues go side by side, turn after turn
        chosen = workspace.engine.share(chosen)
    with ranged("run: sampling and rewards"):
        answered, scoring = sample_and_score(workspace, stage, step, epoch, chosen)
    kept = [answers.group for answers in answered if not answers.dropped]
    if workspace.encoder.style.mode == "graph":  # samples of one decision then have different prompts
        kept = trainable(kept, stage.advantages)
    stats = update(workspace.engine, kept, stage)
    rewards = reward_statistics(partial(workspace.engine.gather, phase="rewards"), answered)
    return {"epoch": epoch, **stats, **rewards, **scoring}, answered


def sample_and_score(
    workspace: Workspace, stage: GRPOStage, step: int, epoch: int, dialogues: Sequence[Dialogue]
) -> tuple[list[AnswerGroup], Row]:
    """This rank's groups with their rewards, and the statistics of the scoring over all ranks.

    ``dialogues``: those of all ranks, which share the sampling; in graph mode this rank's part.
    """
    seed, engine = workspace.config.seed, workspace.engine
    sampling = stage.sampling.model_copy(update={"seed": derive_seed(seed, "noise", step)})
    if workspace.worker is None:
        assert not isinstance(workspace.reward, GroupReward), "Workspace.bind starts its worker"
        began = time.perf_counter()
        groups = sample_groups(
            engine,
            workspace.encoder,
            dialogues,
            sampling,
            workspace.config.reward,
            workspace.reward,
            seed=seed,
            epoch=epoch,
            shares=stage.boards,
        )
        return groups, {"seconds_sampling": time.perf_counter() - began}
    progress, reward = TrainingProgress(step, stage.steps), workspace.worker.reward
    judged = judge_groups(
        engine,
        workspace.encoder,
        dialogues,
        sampling,
        workspace.worker,
        workspace.turn_reward or WeightedMetric(),
        progress=progress,
        seed=seed,
        epoch=epoch,
        shares=stage.boards,
    )
    coefficients = {f"coef/{name}": value for name, value in reward.coefficients(progress).items()}
    gather = partial(engine.gather, phase="verdicts")
    events = judge_statistics(gather, judged.groups, reward.judged, judged.counters)
    return judged.groups, {**coefficients, **events, **{f"seconds_{k}": v for k, v in judged.seconds.items()}}


def update(engine: Engine, groups: Sequence[Group], stage: GRPO) -> Row:
    """One update with the groups of all ranks. A rank without groups takes part.

    If no rank has a group, the weights stay and the row has ``skipped_update`` 1.
    """
    if not any(engine.gather(bool(groups), "sampling and rewards")):
        version = float(engine.policy_version)
        return {"skipped_update": 1.0, "reward_mean": math.nan, "policy_version": version}
    with ranged("run: update"):
        stats = engine.train(groups, stage)
    return {**{k: v for k, v in stats.items() if k not in ("step", "normalizer")}, "skipped_update": 0.0}


def reset_optimizer(engine: Engine) -> None:
    """Zero the moments and the step count: a new stage has its own schedule."""
    state = engine.state_dict()
    state["m"].zero_()
    state["v"].zero_()
    engine.load_state_dict({**state, "steps": 0})
