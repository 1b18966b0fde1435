"""`Engine.train` and `Engine.step`: groups to minibatches, AdamW steps, statistics over ranks.

Ranks meet where gradients are summed, and before that only where a setting compares over all of them
(`needs_all_ranks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proactor.engine.arguments import instance, listed
from proactor.engine.checks import check_groups
from proactor.engine.config import GRPO, SFT, AdamW
from proactor.engine.loss import GRPOLoss, Loss, SFTLoss
from proactor.engine.old_policy import OldPolicies
from proactor.engine.policy import Policy
from proactor.engine.trainer import Tally, Trainer
from proactor.engine.types import EngineError, Group, Sample
from proactor.engine.update import Batch, deal, means, prepare, statistics
from proactor.engine.weights import Weights


class NothingToTrain(EngineError):
    """No rank has anything to train on."""


@dataclass(frozen=True, slots=True)
class Work:
    """What this rank trains on: a batch for each step, the loss, the old policy, its sums of statistics."""

    batches: list[Batch]
    loss: Loss
    old: OldPolicies | None
    sums: dict[str, float]


def needs_all_ranks(config: GRPO) -> bool:
    """Whether a gradient needs the groups of all ranks: their rewards, or their places in minibatches."""
    return config.minibatches > 1 or config.advantages in ("reinforce", "reinforce_baseline")


def train(
    trainer: Trainer,
    policy: Policy,
    weights: Weights,
    data: Sequence[Group] | Sequence[Sample],
    config: GRPO | SFT,
) -> dict[str, float]:
    """`Engine.train` of the adapter ``weights``, which is the trainer's. Every rank must call this."""
    with trainer.parallel.together("train"):
        policy.refuse_in_flight("train")
        instance(config, (GRPO, SFT), "train: config")
        groups = units(data, config)
        work = lay_out(trainer, policy, weights, groups, config)
        trainer.zero_grad()  # an earlier call that raised may have left gradients
        return take_steps(trainer, policy, weights, work, config, Tally(), given=bool(groups))


def units(data: Sequence[Group] | Sequence[Sample], config: GRPO | SFT) -> list[Group]:
    """The groups to train on; SFT's samples become groups of one."""
    kinds: tuple[type[Group | Sample], ...] = (Group,) if isinstance(config, GRPO) else (Group, Sample)
    found: Sequence[Group | Sample] = listed(data, kinds, f"train: {type(config).__name__}")
    return [Group(x.prompt_ids, [x]) if isinstance(x, Sample) else x for x in found]


def lay_out(
    trainer: Trainer, policy: Policy, weights: Weights, groups: list[Group], config: GRPO | SFT
) -> Work:
    """Check this rank's ``groups``, set their advantages and deal them to steps.

    Every rank must call this where the config `needs_all_ranks`.
    """
    check_groups(groups, weights.version, weights.name)
    policy.refuse_long(groups, gradient=True)
    if isinstance(config, SFT):
        return Work([(groups, None)], SFTLoss(config), None, {})
    kept, sums = prepare(groups, config, trainer.decoder.device, trainer.parallel)
    batches = deal(kept, config, trainer.parallel)
    return Work(batches, GRPOLoss(config), OldPolicies(policy, weights, batches, config), sums)


def add_gradient(trainer: Trainer, weights: Weights, work: Work, batch: Batch, tally: Tally) -> None:
    """Add a batch's gradient and its statistics."""
    groups, counted = batch
    old = None if work.old is None else work.old.present
    tally.merge(trainer.forward_backward(groups, work.loss, counted, weights.version, old))


def take_steps(
    trainer: Trainer,
    policy: Policy,
    weights: Weights,
    work: Work,
    config: AdamW,
    tally: Tally,
    given: bool,
) -> dict[str, float]:
    """One step per batch; returns their statistics over all ranks, to which those of ``tally`` are added.

    ``given``: whether this rank has data. Raises NothingToTrain, on every rank, where none has.
    """
    tally.add(work.sums)
    steps: list[dict[str, float]] = []
    for at, batch in enumerate(work.batches):
        add_gradient(trainer, weights, work, batch, tally)
        if not steps and not any(trainer.meet(given, "train: gradients")):
            raise NothingToTrain("train: nothing to train on")
        if work.old is not None:
            work.old.measured(at, tally, trainer.parallel)
        steps.append(_step(trainer, policy, weights, config))
    sums, maxima = trainer.parallel.reduce(statistics(tally), {"ratio_max_error": 0.0, **tally.maxima})
    taken = [s for s in steps if not s["zero_gradient"]] or steps
    counts = {name: sum(s[name] for s in steps) for name in ("nonfinite_gradient", "zero_gradient")}
    normalizer = sum(s["normalizer"] for s in steps)
    version = float(weights.version)
    cap = {} if work.old is None else {"importance_cap": work.old.cap}
    return {**means(sums, normalizer), **maxima, **taken[-1], **counts, **cap, "policy_version": version}


def step(trainer: Trainer, policy: Policy, weights: Weights, config: AdamW) -> dict[str, float]:
    """`Engine.step`. Every rank must call this."""
    with trainer.parallel.together("step"):
        policy.refuse_in_flight("step")
    return _step(trainer, policy, weights, config)


def _step(trainer: Trainer, policy: Policy, weights: Weights, config: AdamW) -> dict[str, float]:
    """One AdamW step; unless the gradient was dropped, a new version of the adapter."""
    stepped = trainer.step(config)
    if not stepped["nonfinite_gradient"] and not stepped["zero_gradient"]:
        policy.advance(weights)
    return stepped
