"""One training step: its batch of dialogues, samples and rewards, the update, and its row of numbers.

Data order, boards and noise are functions of (seed, phase, step): a resumed run repeats what a killed one
would have done, and no sample depends on its rank.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

from proactor.config import GRPOStage, SFTStage
from proactor.config_base import ConfigError
from proactor.dialogue import Dialogue
from proactor.dialogue.decisions import Decision, decisions
from proactor.engine import GRPO, SFT, EarlyGradient, Engine, Group, NothingToTrain, ranged
from proactor.rewards import GroupReward, WeightedMetric
from proactor.rewards.schedule import TrainingProgress
from proactor.training.answers import AnswerGroup
from proactor.training.graph_rollout import trainable
from proactor.training.redraws import Others, redraw
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

NOTHING_LEARNED = {
    **dict.fromkeys(SFT_STATISTICS, math.nan),
    **dict.fromkeys(("tokens_trained", "tokens_computed", "tokens_avoided", "nonfinite_gradient"), 0.0),
}
"""Those of a supervised step that had nothing to train on."""


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
) -> tuple[int, list[T], list[T]]:
    """(epoch, items, the epoch's other items) of a step; the others are those that follow the batch, then
    those before it. Each epoch is a new order of all items, with a smaller last batch.

    ``name``: what tells an item from the others.
    """
    per_epoch = -(-len(items) // size)
    epoch, index = divmod(step, per_epoch)
    order = sorted(items, key=lambda item: derive_seed(seed, phase, epoch, name(item)))
    start, end = index * size, (index + 1) * size
    return epoch, order[start:end], order[end:] + order[:start]


def sft_step(workspace: Workspace, stage: SFTStage, step: int) -> Row:
    """One supervised update; returns its row."""
    seed, engine = workspace.config.seed, workspace.engine
    epoch, chosen, _ = batch(workspace.train, stage.batch_dialogues, seed, "sft", step)
    groups, counters = sft_groups(
        workspace.encoder,
        engine.share(chosen),
        seed=seed,
        epoch=epoch,
        shares=stage.boards,
        pending=stage.pending,
    )
    learned = supervised_update(engine, groups, stage)
    counts = engine.gather((counters["examples"], counters["unknowable"]), "counters")
    return {
        "epoch": epoch,
        **learned,
        "examples": sum(examples for examples, _ in counts),
        "unknowable": sum(unknowable for _, unknowable in counts),
    }


def supervised_update(engine: Engine, groups: Sequence[Group], stage: SFT) -> Row:
    """One supervised update with the groups of all ranks. A rank without groups takes part.

    If no rank has a group, the weights stay and the row has ``skipped_update`` 1.
    """
    try:
        stats, skipped = engine.train(groups, stage), 0.0
    except NothingToTrain:  # on every rank
        stats, skipped = NOTHING_LEARNED, 1.0
    return {**{key: stats[key] for key in SFT_STATISTICS}, "skipped_update": skipped}


def held_out_loss(workspace: Workspace, stage: SFTStage) -> float:
    """Loss of the wanted answers on the dev dialogues, in nats per token. Errors as `held_out_groups`."""
    return workspace.engine.nll(held_out_groups(workspace, stage))


def held_out_groups(workspace: Workspace, stage: SFTStage) -> list[Group]:
    """This rank's wanted answers on the dev dialogues (boards fixed by the seed).

    Raises ConfigError, on every rank, where no rank has one: the loss of nothing would be 0, which no later
    check could beat.
    """
    groups, counters = sft_groups(
        workspace.encoder,
        workspace.engine.share(workspace.held_out),
        seed=workspace.config.seed,
        epoch=-1,
        shares=stage.boards,
        pending=stage.pending,
    )
    counts = workspace.engine.gather((len(groups), counters["unknowable"]), "held-out answers")
    if not sum(examples for examples, _ in counts):
        unknown = sum(unknowable for _, unknowable in counts)
        raise ConfigError(
            f"data.dev: the right answer is known at none of its {unknown} decision points, so there is no "
            "held-out loss; take other dialogues, or leave the stage out (sft=null)"
        )
    return groups


def grpo_step(workspace: Workspace, stage: GRPOStage, step: int) -> tuple[Row, list[AnswerGroup]]:
    """Sample every decision of a batch of dialogues, score, update.

    Returns the row, and this rank's groups, including those that the reward dropped.
    """
    seed = workspace.config.seed
    epoch, chosen, others = batch(workspace.train, stage.batch_dialogues, seed, "grpo", step)
    if workspace.encoder.style.mode == "graph":  # a rank's dialogues go side by side, turn after turn
        chosen = workspace.engine.share(chosen)
    encoder, engine = workspace.encoder, workspace.engine
    points = decisions(encoder, chosen, seed=seed, epoch=epoch, shares=stage.boards)
    again: Row = {}
    early = None if stage.redraws else engine.early_gradient(stage)
    with ranged("run: sampling and rewards"):
        first, scoring = sample_and_score(workspace, stage, step, points, early=early)
        answered = first
        if stage.redraws:
            answered, again = draw_again(workspace, stage, step, epoch, first, others, scoring)
    kept = [answers.group for answers in answered if not answers.dropped]
    if encoder.style.mode == "graph":  # samples of one decision then have different prompts
        assert stage.advantages != "reinforce" and stage.advantages != "reinforce_baseline", "refused"
        kept = trainable(kept, stage.advantages)
    stats = update(engine, kept, stage, early)
    rewards = reward_statistics(partial(engine.gather, phase="rewards"), answered)
    rewards["tokens_sampled"] += again.get("tokens_redrawn", 0.0)
    return {"epoch": epoch, **stats, **rewards, **scoring.row(engine, first), **again}, answered


@dataclass(slots=True)
class Scoring:
    """How the samples of a step were scored on this rank: seconds, and of a `GroupReward` its coefficients,
    the parts that a judge gave (None without such a reward) and the judge's events.
    """

    seconds: dict[str, float]
    coefficients: Row = field(default_factory=dict)
    judged: Sequence[str] | None = None
    counters: Counter[str] = field(default_factory=Counter)

    def add(self, other: Scoring) -> None:
        """Add the seconds and the events of another draw."""
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.counters.update(other.counters)

    def row(self, engine: Engine, groups: Sequence[AnswerGroup]) -> Row:
        """The statistics over all ranks, which meet for that; ``groups``: this rank's of the first draw."""
        events: Row = {}
        if self.judged is not None:
            gather = partial(engine.gather, phase="verdicts")
            events = judge_statistics(gather, groups, self.judged, self.counters)
        return {**self.coefficients, **events, **{f"seconds_{k}": v for k, v in self.seconds.items()}}


def draw_again(
    workspace: Workspace,
    stage: GRPOStage,
    step: int,
    epoch: int,
    answered: Sequence[AnswerGroup],
    others: Sequence[Dialogue],
    scoring: Scoring,
) -> tuple[list[AnswerGroup], Row]:
    """`redraws.redraw` of the groups without spread: their own decisions, which each rank draws for itself,
    or all decisions of some of the dialogues ``others``, which ranks share.

    Adds to the seconds and the judge's counters of ``scoring``.
    """
    rest = Others([d for d in others if d.decision_turns], lambda dialogue: len(dialogue.decision_turns))
    seed, same = workspace.config.seed, stage.redraw == "same"

    def draw(attempt: int, given_up: Sequence[AnswerGroup], wanted: int) -> list[AnswerGroup] | None:
        points = [answers.decision for answers in given_up]
        if not same:
            if not (taken := rest.take(wanted)):
                return None
            points = decisions(workspace.encoder, taken, seed=seed, epoch=epoch, shares=stage.boards)
        drawn, more = sample_and_score(workspace, stage, step, points, attempt, alone=same)
        scoring.add(more)
        return drawn

    return redraw(workspace.engine, stage.redraws, answered, without_spread, tokens_of, draw, in_place=same)


def tokens_of(answers: AnswerGroup) -> int:
    """Tokens sampled for a group."""
    return sum(len(sample.token_ids) for sample in answers.group.samples)


def without_spread(answers: AnswerGroup) -> bool:
    """Whether all samples have one reward. False for a group that the reward dropped."""
    return not answers.dropped and len({sample.reward for sample in answers.group.samples}) == 1


def sample_and_score(
    workspace: Workspace,
    stage: GRPOStage,
    step: int,
    points: Sequence[Decision],
    attempt: int = 0,
    alone: bool = False,
    early: EarlyGradient | None = None,
) -> tuple[list[AnswerGroup], Scoring]:
    """This rank's groups with their rewards, and how they were scored.

    ``points``: the decisions of all ranks, which share the sampling; in graph mode, and where a rank draws
    ``alone``, this rank's part. Each ``attempt`` has a noise of its own. ``early``: as `sample_groups`.
    """
    engine, encoder = workspace.engine, workspace.encoder
    noise = derive_seed(workspace.config.seed, "noise", step, *([attempt] if attempt else []))
    sampling = stage.sampling.model_copy(update={"seed": noise})
    if workspace.worker is None:
        assert not isinstance(workspace.reward, GroupReward), "Workspace.bind starts its worker"
        began, name = time.perf_counter(), workspace.config.reward
        groups = sample_groups(engine, encoder, points, sampling, name, workspace.reward, alone, early)
        return groups, Scoring({"sampling": time.perf_counter() - began})
    progress, reward = TrainingProgress(step, stage.steps), workspace.worker.reward
    metric = workspace.turn_reward or WeightedMetric()
    judged = judge_groups(engine, encoder, points, sampling, workspace.worker, metric, progress, alone, early)
    coefficients = {f"coef/{name}": value for name, value in reward.coefficients(progress).items()}
    return judged.groups, Scoring(judged.seconds, coefficients, reward.judged, judged.counters)


def update(engine: Engine, groups: Sequence[Group], stage: GRPO, early: EarlyGradient | None = None) -> Row:
    """One update with the groups of all ranks. A rank without groups takes part.

    If no rank has a group, the weights stay and the row has ``skipped_update`` 1. On several ranks
    ``seconds_reduction`` is the longest that one had its gradient and waited for the others'.
    """
    before = engine.seconds_waited
    try:
        with ranged("run: update"):
            stats = engine.train(groups, stage) if early is None else early.train(groups)
        row = {**{k: v for k, v in stats.items() if k not in ("step", "normalizer")}, "skipped_update": 0.0}
    except NothingToTrain:
        version = float(engine.policy_version)
        row = {"skipped_update": 1.0, "reward_mean": math.nan, "policy_version": version}
    if engine.world_size > 1:
        row["seconds_reduction"] = max(engine.gather(engine.seconds_waited - before, "waits"))
    return row


def reset_optimizer(engine: Engine) -> None:
    """Zero the moments and the step count: a new stage has its own schedule."""
    state = engine.state_dict()
    state["m"].zero_()
    state["v"].zero_()
    engine.load_state_dict({**state, "steps": 0})
