"""Rules on the updates: those of pre-training, gradients, learning rate, clipping, the gap, memorising."""

from __future__ import annotations

import math
from collections.abc import Sequence

from proactor.doctor.facts import Facts, Finding, Row, first_quarter, last_quarter, mean, span, total, values
from proactor.tables import plain_name
from proactor.training.gap_watch import gaps_of, growth
from proactor.training.outcome import MANY_FLAT

STILL = 1e-4
"""Sum of the learning rates of all steps, at most so far has a weight moved, below which nothing moves."""
CLIPPED = 0.2
"""Share of tokens whose ratio is clipped from which on it is named."""
GAP = 0.05
"""Mean difference of log-probabilities, in nats a token, between sampler and trainer."""
SURE = 0.02
"""Entropy, in nats a token, of a model that knows its answers by heart."""
MARGIN = 1.5
"""Factor of the time that pre-training would have taken at its pace, when more is proposed."""
APART = 0.2
"""Lead of the training reward over dev, and its rise, from which on the training data is learned by heart."""


def cut_short(facts: Facts) -> Finding | None:
    """The pre-training of the run's model ended by its time limit, before its steps."""
    steps = facts.pretrained
    if steps is None or steps.wanted is None or not steps.cut_short:
        return None
    evidence = f"pre-training was over after {steps.made} of {steps.wanted} steps, by its time limit"
    enough = math.ceil(MARGIN * steps.seconds * steps.wanted / max(1, steps.made))
    remedy = (
        f"model=runs/models/NEW pretrain.seconds={enough} builds one to its end; runs with this one keep it"
    )
    cause = f"{steps.seconds:g} s were not enough on the machine that built the model, so it knows little"
    return Finding("model cut short", 2, evidence, cause, remedy)


def not_finite(facts: Facts) -> Finding | None:
    """Gradients that are not finite change nothing."""
    rows = [row for row in facts.rows if row.get("nonfinite_gradient")]
    if not rows:
        return None
    stage = str(rows[0]["kind"])
    evidence = f"{len(rows)} updates with a gradient that is not finite (first at step {rows[0].get('step')})"
    remedy = f"{stage}.lr={facts.number(f'{stage}.lr', 1e-4) / 10:.3g} engine.dtype=float32"
    return Finding(
        "gradient not finite", 4, evidence, "numbers overflow in the forward or backward pass", remedy
    )


def no_update(facts: Facts) -> Finding | None:
    """No step had a group to train on."""
    steps = facts.steps
    skipped = total(steps, "skipped_update")
    if not steps or skipped < len(steps) / 2:
        return None
    why = "no group was left to train on"
    if dropped := total(steps, "groups_dropped"):
        why += f": {dropped:.0f} had no verdict"
    remedy = (
        "see the judge and the episodes below; without either, data.train needs dialogues with user turns"
    )
    return Finding("no update", 4, f"{skipped:.0f} of {len(steps)} steps made no update", why, remedy)


def collapse(facts: Facts) -> Finding | None:
    """The reward falls, and dev with it."""
    if not facts.collapsed:
        return None
    steps, result = facts.steps, facts.outcome
    first, last = first_quarter(steps), last_quarter(steps)
    told = [f"training reward {_two(first, 'reward_mean')} -> {_two(last, 'reward_mean')} ({span(steps)})"]
    if result is not None and result.start is not None and result.end is not None:
        told.append(f"{plain_name(result.measure)} on dev {result.start:.3f} -> {result.end:.3f}")
    told.append(f"entropy {_two(first, 'entropy')} -> {_two(last, 'entropy')}")
    if gap := max(values(steps, "sampler_trainer_gap"), default=0.0):
        told.append(f"gap at most {gap:.2g}")
    if clipped := max(values(steps, "clip_share"), default=0.0):
        told.append(f"clipped at most {clipped:.0%}")
    remedy = f"grpo.lr={facts.number('grpo.lr', 1e-4) / 10:.3g}"
    cause = "the updates undo what the model could do: the learning rate is too high"
    if facts.in_environment:
        cause += ", or the method pays for something else than the score"
    return Finding("collapse", 4, ", ".join(told), cause, remedy)


def nothing_moves(facts: Facts) -> Finding | None:
    """So small a learning rate that dev stays the same to the last digit."""
    steps, result = facts.steps, facts.outcome
    moving = [row for row in steps if not row.get("skipped_update") and not row.get("zero_gradient")]
    moved = total(moving, "lr") * facts.number("grpo.epochs", 1) * facts.number("grpo.minibatches", 1)
    if len(moving) < 2 or moved >= STILL or result is None or result.phase != "grpo":
        return None
    checks = values([row for row in facts.rows if row.get("phase") == "grpo"], f"eval_{result.measure}")
    if len(checks) < 2 or len(set(checks)) > 1:
        return None
    rate = facts.number("grpo.lr", 0.0)
    evidence = (
        f"{plain_name(result.measure)} on dev {checks[0]:.3f} at all {len(checks)} checks; grpo.lr={rate:g}"
    )
    cause = f"a weight moved by at most {moved:.1g} in {len(moving)} updates: the learning rate is too low"
    return Finding("nothing moves", 3, evidence, cause, f"grpo.lr={max(10 * rate, 1e-5):g}")


def diverged(facts: Facts) -> Finding | None:
    """The supervised stage makes the held-out loss worse from its first check on."""
    losses = values([row for row in facts.rows if row.get("phase") == "sft"], "held_out_loss")
    if len(losses) < 2 or min(losses[1:]) < losses[0] * 1.02:
        return None
    rate = facts.number("sft.lr", 1e-3)
    evidence = f"held-out loss {losses[0]:.3f} at the start, at best {min(losses[1:]):.3f} afterwards"
    cause = "supervised updates are too large, or train on other data than dev holds"
    return Finding("supervised loss rises", 3, evidence, cause, f"sft.lr={rate / 10:.3g}")


def memorised(facts: Facts) -> Finding | None:
    """The training data is known by heart: before GRPO begins, or in the course of it."""
    return _by_heart_before(facts) or _by_heart_after(facts)


def clipped(facts: Facts) -> Finding | None:
    """Many tokens give no gradient, since the policy has moved too far from the one that sampled."""
    share = mean(facts.steps, "clip_share")
    if share is None or share < CLIPPED:
        return None
    epochs, parts = (facts.number(f"grpo.{key}", 1) for key in ("epochs", "minibatches"))
    evidence = f"{share:.0%} of the tokens clipped ({span(facts.steps)})"
    cause = f"{epochs * parts:.0f} updates a step move far from the policy that sampled"
    many = "grpo.epochs=1" if epochs > 1 else "grpo.minibatches=1" if parts > 1 else ""
    remedy = many or f"grpo.lr={facts.number('grpo.lr', 1e-4) / 3:.3g}"
    return Finding("clipped", 2, evidence, cause, remedy)


def gap(facts: Facts) -> Finding | None:
    """Sampler and trainer disagree on what was sampled."""
    share = mean(facts.steps, "sampler_trainer_gap")
    if share is None or share < GAP:
        return None
    evidence = f"mean gap {share:.3f} nats a token ({span(facts.steps)})"
    cause = "the trainer's log-probabilities are not those that were sampled from"
    remedies = [] if facts.setting("grpo.importance_cap") else ["grpo.importance_cap=auto"]
    return Finding("sampler-trainer gap", 3, evidence, cause, ", or ".join([*remedies, *_exact(facts)]))


def gap_grows(facts: Facts) -> Finding | None:
    """Sampler and trainer disagree more and more (`training.gap_watch`)."""
    found = growth(gaps_of(facts.steps))
    if found is None:
        return None
    evidence = f"mean gap {found[0]:.3f} -> {found[1]:.3f} nats a token ({span(facts.steps)})"
    cause = "what is trained is less and less what is sampled: rounding counts for more as the policy moves"
    rate = f"grpo.lr={facts.number('grpo.lr', 1e-4) / 3:.3g}"
    return Finding("gap grows", 2, evidence, cause, ", or ".join([*_exact(facts), rate]))


def never_beat_start(facts: Facts) -> Finding | None:
    """No check was better than the first one: the run's own verdict (`training.outcome`)."""
    result = facts.outcome
    if result is None or result.best_step > 0 or result.steps == 0:
        return None
    stage = result.phase
    name = f"{stage.upper()} never beat its start"
    sign = -1.0 if stage == "sft" else 1.0
    if result.start is not None and result.end is not None and sign * (result.end - result.start) < 0:
        cause = "the findings above, if there are any; else steps too large for what a batch tells"
        return Finding(name, 2, str(result), cause, f"{stage}.lr={facts.number(f'{stage}.lr', 1e-4) / 3:.3g}")
    key = "grpo.steps" if stage == "grpo" else "sft.max_steps"
    cause = "the findings above, if there are any; else too few steps, or a start that is hard to beat"
    return Finding(name, 2, str(result), cause, f"{key}={2 * facts.number(key, result.steps):.0f}")


def _by_heart_before(facts: Facts) -> Finding | None:
    begin = facts.steps[:1]
    entropy, flat = mean(begin, "entropy"), mean(begin, "zero_spread_share")
    warm = facts.number(f"{facts.sampling}.temperature", 1.0) >= 0.6
    read = (mean(begin, "unparsed_share") or 0.0) < 0.5
    if entropy is None or flat is None or entropy >= SURE or flat < MANY_FLAT or not (warm and read):
        return None
    evidence = f"entropy {entropy:.3f} and {flat:.0%} of the groups without spread at GRPO's first step"
    cause = "the model knows these dialogues by heart, from its supervised stage or pre-training"
    if facts.setting("sft") is not None:
        shorter = facts.number("sft.max_steps", 400) / 2
        return Finding("memorised", 3, evidence, cause, f"sft.max_steps={shorter:.0f}")
    return Finding("memorised", 3, evidence, cause, "pretrain.share=[0, 0.5] data.train.share=[0.5, 1]")


def _by_heart_after(facts: Facts) -> Finding | None:
    steps, result = facts.steps, facts.outcome
    if len(steps) < 4 or result is None or result.measure != "reward" or result.end is None:
        return None
    begin, end = mean(first_quarter(steps), "reward_mean"), mean(last_quarter(steps), "reward_mean")
    if begin is None or end is None or result.start is None:
        return None
    if end - begin < APART or end - result.end < APART or result.end > result.start:
        return None
    evidence = (
        f"training reward {begin:.3f} -> {end:.3f}, {plain_name(result.measure)} on dev "
        f"{result.start:.3f} -> {result.end:.3f}"
    )
    limit = facts.setting("data.train.limit")
    remedy = "data.train.limit=null" if limit else f"grpo.steps={max(1, len(steps) // 2)}, or more dialogues"
    return Finding("memorised", 2, evidence, "the training dialogues are learned by heart", remedy)


def _exact(facts: Facts) -> list[str]:
    """What makes sampler and trainer round alike."""
    return [] if facts.setting("engine.deterministic") else ["engine.deterministic=true on a CPU"]


def _two(rows: Sequence[Row], key: str) -> str:
    """A mean as text."""
    value = mean(rows, key)
    return "–" if value is None else f"{value:.3f}"
