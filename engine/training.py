"""`Engine.train` and `Engine.step`: groups to minibatches, AdamW steps, statistics over ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from proactor.engine.arguments import instance, listed
from proactor.engine.checks import check_groups
from proactor.engine.config import GRPO, SFT, AdamW
from proactor.engine.logprobs import scored_samples
from proactor.engine.loss import GRPOLoss, Loss, SFTLoss
from proactor.engine.policy import Policy
from proactor.engine.trainer import Tally, Trainer
from proactor.engine.tree_gradient import OldPolicy
from proactor.engine.types import EngineError, Group, Sample
from proactor.engine.update import Batch, deal, means, prepare, statistics
from proactor.engine.weights import Weights


def train(
    trainer: Trainer,
    policy: Policy,
    weights: Weights,
    data: Sequence[Group] | Sequence[Sample],
    config: GRPO | SFT,
) -> dict[str, float]:
    """`Engine.train` of the adapter ``weights``, which is the trainer's. Every rank must call this."""
    parallel = trainer.parallel
    with parallel.together("train: groups"):
        policy.refuse_in_flight("train")
        instance(config, (GRPO, SFT), "train: config")
        groups = _groups(data, config)
        check_groups(groups, weights.version, weights.name)
        policy.refuse_long(groups, gradient=True)
        sums: dict[str, float] = {}
        if isinstance(config, GRPO):
            groups, sums = prepare(groups, config, trainer.decoder.device, parallel)
    if not any(parallel.gather(bool(data), "train: groups")):
        raise EngineError("train: nothing to train on")
    trainer.zero_grad()  # an earlier call that raised may have left gradients
    if isinstance(config, GRPO):
        batches = deal(groups, config, parallel)
        with parallel.together("train: old policy"):
            old = _old_policy(policy, weights, batches, config)
        return _update(trainer, policy, weights, batches, GRPOLoss(config), config, sums, old)
    return _update(trainer, policy, weights, [(groups, None)], SFTLoss(config), config, sums)


def _groups(data: Sequence[Group] | Sequence[Sample], config: GRPO | SFT) -> list[Group]:
    """The groups to train on; SFT's samples become groups of one."""
    kinds: tuple[type[Group | Sample], ...] = (Group,) if isinstance(config, GRPO) else (Group, Sample)
    units: Sequence[Group | Sample] = listed(data, kinds, f"train: {type(config).__name__}")
    return [Group(x.prompt_ids, [x]) if isinstance(x, Sample) else x for x in units]


def _old_policy(policy: Policy, weights: Weights, batches: list[Batch], config: GRPO) -> OldPolicy | None:
    """The trainer's own log-probabilities before the first update; None where the recorded ones serve.

    The pass with gradient of a single update computes the same: no pass for it alone.
    """
    if config.old_policy == "recorded":
        return None
    if len(batches) == 1:
        return {}
    groups = [group for members, _ in batches[: config.minibatches] for group in members]
    with torch.no_grad():
        return {id(sample): values for sample, values in scored_samples(policy, weights, groups)}


def _update(
    trainer: Trainer,
    policy: Policy,
    weights: Weights,
    batches: list[Batch],
    loss: Loss,
    config: AdamW,
    sums: dict[str, float],
    old: OldPolicy | None = None,
) -> dict[str, float]:
    """One step per batch; returns their statistics over all ranks, to which ``sums`` are added."""
    tally = Tally()
    tally.add(sums)
    steps: list[dict[str, float]] = []
    for groups, counted in batches:
        with trainer.parallel.together("train: gradients"):
            tally.merge(trainer.forward_backward(groups, loss, counted, weights.version, old))
        steps.append(_step(trainer, policy, weights, config))
    sums, maxima = trainer.parallel.reduce(statistics(tally), {"ratio_max_error": 0.0, **tally.maxima})
    taken = [s for s in steps if not s["zero_gradient"]] or steps
    counts = {name: sum(s[name] for s in steps) for name in ("nonfinite_gradient", "zero_gradient")}
    normalizer = sum(s["normalizer"] for s in steps)
    version = float(weights.version)
    return {**means(sums, normalizer), **maxima, **taken[-1], **counts, "policy_version": version}


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
