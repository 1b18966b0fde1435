"""Rules on what is sampled.

Groups that all earn the same, answers that are cut or cannot be read, actions where none is ready.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

from proactor.doctor.facts import Facts, Finding, Row, mean, span, total, values
from proactor.tables import plain_name
from proactor.training.outcome import MANY_FLAT, chosen_row

ALL_FLAT = 0.95
"""Share of groups without spread that is named even where the run learned something."""
MANY = 0.5
"""Share of answers cut, or not read, from which on it is named."""
QUIETER = 0.8
"""Share of the first recall on dev that is left at the last check, from which downward it has fallen."""
PULL, FIRST = -0.03, 3
"""Pull away from acting, in advantages a sample, from which on a run's first steps teach silence; how many
steps tell at least: one is mostly chance [INFERRED: measured on SmolLM2, on SGD].
"""
ACTING = "first_fire_f1"
"""A metric by which an agent that never acts is the worst."""
HOT, COLD = 1.4, 0.5
"""Temperatures above, and below, which sampling itself is suspected."""


def without_spread(facts: Facts) -> Finding | None:
    """Nearly all groups earn the same, and the run did not learn."""
    steps, result = facts.settled, facts.outcome
    flat = _flat_share(facts, steps)
    learned = result is not None and result.best_step > 0
    if flat is None or flat < (ALL_FLAT if learned else MANY_FLAT):
        return None
    evidence = f"{flat:.0%} of the groups without spread ({span(steps)})"
    unread = any((mean(steps, key) or 0.0) >= MANY for key in ("truncated_share", "unparsed_share"))
    if unread:
        cause = "most answers are cut or not read, and earn the same"
        return Finding("groups without spread", 2, evidence, cause, "see truncated and unparsed")
    return Finding("groups without spread", 4 if flat >= ALL_FLAT else 3, evidence, *_why_flat(facts))


def truncated(facts: Facts) -> Finding | None:
    """Most answers end at the limit of tokens."""
    steps = facts.settled
    share = mean(steps, "truncated_share")
    if share is None or share < MANY:
        return None
    evidence = f"{share:.0%} of the answers cut at the token limit ({span(steps)})"
    if (hot := _too_hot(facts)) is not None:
        return Finding("truncated", 3, evidence, *hot)
    if facts.in_environment:
        turn, episode = facts.number(f"{facts.sampling}.max_tokens", 256), facts.number(_EPISODE_LIMIT, 4096)
        remedy = f"{facts.sampling}.max_tokens={2 * turn:.0f} {_EPISODE_LIMIT}={2 * episode:.0f}"
        return Finding("truncated", 3, evidence, "episodes end before the agent is done", remedy)
    limit = 2 * facts.number("grpo.sampling.max_tokens", 64)
    remedy = f"grpo.sampling.max_tokens={limit:.0f} eval.max_tokens={limit:.0f}"
    return Finding("truncated", 3, evidence, "answers need more tokens than they are given", remedy)


def unparsed(facts: Facts) -> Finding | None:
    """Most answers cannot be read, though they are whole."""
    steps = facts.settled
    share = mean(steps, "unparsed_share")
    if share is None or share < MANY:
        return None
    reasons = Counter[str]()
    for key in {key for row in steps for key in row if key.startswith("unread")}:
        reasons[key.partition("/")[2]] += int(total(steps, key))
    common = f", mostly {reasons.most_common(1)[0][0]}" if reasons else ""
    evidence = f"{share:.0%} of the answers not read in full{common} ({span(steps)})"
    if (hot := _too_hot(facts)) is not None:
        return Finding("unparsed", 3, evidence, *hot)
    if share - (mean(steps, "truncated_share") or 0.0) < MANY / 2:
        return None  # they are cut: `truncated` says so
    cause = "the model does not know the form of an answer"
    if facts.setting("sft") is None:
        return Finding("unparsed", 3, evidence, cause, "sft={lr: 1e-3}: a supervised stage teaches the form")
    steps_then = facts.number("sft.max_steps", 400)
    return Finding("unparsed", 3, evidence, cause, f"sft.max_steps={2 * steps_then:.0f}")


def learns_silence(facts: Facts) -> Finding | None:
    """Recall falls, after updates whose pull was away from acting."""
    steps = facts.steps[: max(FIRST, len(facts.steps) // 4)]
    right, wrong = mean(steps, "pull/ready"), mean(steps, "pull/not_ready")
    recall = values([row for row in facts.rows if row.get("phase") == "grpo"], "eval_recall")
    if facts.collapsed or right is None or wrong is None or len(recall) < 2:
        return None
    if right + wrong > PULL or wrong > right or recall[-1] >= QUIETER * recall[0]:
        return None
    evidence = (
        f"recall on dev {recall[0]:.2f} -> {recall[-1]:.2f}; answers that act pull by {right:+.2f} a sample "
        f"where an action is ready, by {wrong:+.2f} where none is ({span(steps)})"
    )
    cause = f"{mean(steps, 'acts/not_ready'):.0%} of the answers act where none is: updates teach to wait"
    return Finding("learns silence", 3, evidence, cause, _calmer(facts))


def never_acts(facts: Facts) -> Finding | None:
    """The chosen adapter fires nothing on dev: an agent that only waits."""
    result = facts.outcome
    at = None if result is None else chosen_row(facts.rows, result)
    if result is None or at is None or facts.rows[at].get("eval_rar") != 0:
        return None
    measure = plain_name(result.measure)
    evidence = f"best step {result.best_step} fires nothing on dev, and has {measure} {result.best or 0:.3f}"
    if any(values([row for row in facts.rows if row.get("phase") == result.phase], "eval_recall")):
        cause = f"by {measure} waiting is better than what other steps did, some of it right"
        return Finding("never acts", 3, evidence, cause, f"eval.metric={ACTING}")
    cause = "no check had a right fire: the start does not know the actions"
    if facts.setting("sft") is None:
        return Finding("never acts", 3, evidence, cause, "sft={lr: 1e-3}: a supervised stage teaches them")
    longer = 2 * facts.number("sft.max_steps", 400)
    return Finding("never acts", 3, evidence, cause, f"sft.max_steps={longer:.0f}")


def _calmer(facts: Facts) -> str:
    """What makes the start act less where nothing is ready."""
    temperature = facts.number("grpo.sampling.temperature", 1.0)
    longer = "a start that was trained for longer (start=…)"
    if facts.setting("sft") is not None:
        longer = f"sft.max_steps={2 * facts.number('sft.max_steps', 400):.0f}"
    if temperature <= COLD:
        return longer
    return f"grpo.sampling.temperature={max(COLD, temperature / 2):g}, or {longer}"


_EPISODE_LIMIT = "environment.play.max_tokens"


def _flat_share(facts: Facts, steps: Sequence[Row]) -> float | None:
    """The share of groups without spread; None before the first step."""
    if not facts.in_environment:
        return mean(steps, "zero_spread_share")
    flat, lively = total(steps, "groups_without_spread"), total(steps, "groups_with_spread")
    return flat / (flat + lively) if flat + lively else None


def _too_hot(facts: Facts) -> tuple[str, str] | None:
    temperature = facts.number(f"{facts.sampling}.temperature", 1.0)
    if temperature < HOT:
        return None
    return f"at temperature {temperature:g} the samples are noise", f"{facts.sampling}.temperature=1.0"


def _why_flat(facts: Facts) -> tuple[str, str]:
    """(cause, remedy) of groups without spread."""
    temperature = facts.number(f"{facts.sampling}.temperature", 1.0)
    size = "grpo.n" if facts.in_environment else "grpo.sampling.n"
    bigger = f"{size}={2 * facts.number(size, 8):.0f}"
    if (hot := _too_hot(facts)) is not None:
        return hot
    if temperature < COLD:
        return (
            f"at temperature {temperature:g} the answers of a group are the same",
            f"{facts.sampling}.temperature=1.0",
        )
    same = _same_texts(facts.samples)
    if same is not None and same < MANY:
        return (
            f"the answers differ in {1 - same:.0%} of the flat groups; the reward does not tell them apart",
            "reward=weighted_metric, or a reward with more than a few values (reward_options)",
        )
    return (
        "the answers of a group are the same: the model is sure, right or wrong",
        f"{facts.sampling}.temperature=1.2 {bigger}",
    )


def _same_texts(samples: Sequence[Row]) -> float | None:
    """Of the groups whose samples all earned the same, the share whose texts are the same; None: no texts."""
    groups: defaultdict[Any, list[Row]] = defaultdict(list)
    for sample in samples:
        if isinstance(sample.get("text"), str) and sample.get("reward") is not None:
            groups[sample.get("dialogue"), sample.get("turn")].append(sample)
    flat = [group for group in groups.values() if len({s["reward"] for s in group}) == 1 and len(group) > 1]
    if not flat:
        return None
    return sum(len({s["text"].strip() for s in group}) == 1 for group in flat) / len(flat)
