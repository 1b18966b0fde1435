"""Rules on what rewards: the judge, the windows, the environments."""

from __future__ import annotations

from collections import Counter
from statistics import fmean

from proactor.doctor.facts import Facts, Finding, total, values

FAILING = 0.2
"""Share of a judge's groups without a verdict from which on it is named."""
FLAT_JUDGE = 0.02
"""Mean deviation of a judge's scores in a group, of scores from 0 to 1, below which it is flat."""
COIN, PAIRS = 0.55, 30
"""Share of pairs that a judge orders as the metric does, up to which it is no better than a coin, and the
pairs it takes to say so.
"""
POINTS, UNKNOWN = 0.8, 0.5
"""Shares of windows of a single turn, and of unknown windows, from which on they are named."""
LOST = 0.5
"""Share of episodes that failed, or had no turn, from which on it is named."""


def judge_fails(facts: Facts) -> Finding | None:
    """A judge that gives no verdict on many groups."""
    asked, dropped = total(facts.steps, "judge/groups"), total(facts.steps, "judge/dropped_groups")
    if not asked or dropped < FAILING * asked:
        return None
    reasons = Counter(
        {
            key.partition("/")[2]: int(total(facts.steps, key))
            for key in {key for row in facts.steps for key in row if key.startswith("judge/")}
            if key.partition("/")[2] not in _NOT_REASONS
        }
    )
    common = f", mostly {reasons.most_common(1)[0][0].replace('_', ' ')}" if reasons else ""
    evidence = f"no verdict on {dropped:.0f} of {asked:.0f} groups{common}"
    remedy = "reward_options.timeout=300, or a judge that follows its form (reward_options.judge)"
    return Finding("judge without verdict", 3, evidence, "the judge fails, or answers in no form", remedy)


def judge_without_spread(facts: Facts) -> Finding | None:
    """A judge that scores all answers of a group alike."""
    spreads = values(facts.steps, "judge/spread")
    if not spreads or fmean(spreads) >= FLAT_JUDGE:
        return None
    evidence = f"its scores deviate by {fmean(spreads):.3f} in a group, over {len(spreads)} steps"
    cause = "the judge scores every answer alike; what is left is noise, which groups amplify"
    remedy = "reward_options.rubric=general, or a stronger judge (reward_options.judge)"
    if facts.setting("reward_options.rubric", "custom") == "general":
        remedy = "reward_options.rubric=custom, or a stronger judge (reward_options.judge)"
    return Finding("judge without spread", 3, evidence, cause, remedy)


def judge_disagrees(facts: Facts) -> Finding | None:
    """A judge that orders answers as a coin would, by the metric reward."""
    rows = [row for row in facts.steps if values([row], "judge/agreement") and values([row], "judge/pairs")]
    pairs = total(rows, "judge/pairs")
    if pairs < PAIRS:
        return None
    agreed = sum(float(row["judge/agreement"]) * float(row["judge/pairs"]) for row in rows) / pairs
    if agreed > COIN:
        return None
    evidence = f"it orders {agreed:.0%} of {pairs:.0f} pairs as the metric reward does"
    cause = "its ranking says nothing about right actions, or it is shown too little"
    remedy = "reward=adaptive_ruler mixes it with the metric; or a stronger judge (reward_options.judge)"
    return Finding("judge without agreement", 3, evidence, cause, remedy)


def windows_are_points(facts: Facts) -> Finding | None:
    """Windows of a single turn: when to act cannot be learned from them, only whether."""
    share = _windows(facts, "width_0_share")
    by_choice = facts.setting("data.labels") == "points"
    if share is None or (share < POINTS and not by_choice):
        return None
    if by_choice:
        evidence = "data.labels=points"
        return Finding(
            "windows are points", 2, evidence, "training sees the logged turn alone", "data.labels=windows"
        )
    evidence = f"{share:.0%} of the known windows are a single turn"
    cause = "any other turn is early or late: there is little to gain by acting sooner"
    remedy = "annotate again, with confirm: false for tools that need not ask, or with --oracle engine"
    return Finding("windows are points", 1, evidence, cause, remedy)


def windows_are_unknown(facts: Facts) -> Finding | None:
    """Windows that are masked: acting on them is neither right nor wrong."""
    share = _windows(facts, "null_share")
    if share is None or share < UNKNOWN:
        return None
    evidence = f"{share:.0%} of the windows are unknown and masked"
    cause = "the annotation could not tell when the values, or the assent, were there (report.json: masked)"
    remedy = "proactor annotate SOURCE --oracle engine, or variants for values said in other words"
    return Finding("windows are unknown", 2, evidence, cause, remedy)


def episodes_fail(facts: Facts) -> Finding | None:
    """Environments that fail, and with them their episodes."""
    played, failed = total(facts.steps, "episodes"), total(facts.steps, "episodes_failed")
    if not played or failed < LOST * played:
        return None
    endings = Counter({e: int(total(facts.steps, f"ending/{e}")) for e in ("error", "timeout", "cancelled")})
    kind, _ = endings.most_common(1)[0]
    said = facts.record.summary.get("stopped")
    evidence = f"{failed:.0f} of {played:.0f} episodes failed, mostly by {kind}" + (
        f"; {said}" if said else ""
    )
    if kind == "timeout":
        slower = 4 * facts.number("environment.host.timeout", 30)
        remedy = f"environment.host.timeout={slower:.0f} environment.host.in_flight=8"
        return Finding("episodes fail", 4, evidence, "the environment does not answer in time", remedy)
    remedy = "environment.host.workers=processes, after reading an episode's error in samples/"
    return Finding("episodes fail", 4, evidence, "the environment raises", remedy)


def episodes_without_turns(facts: Facts) -> Finding | None:
    """Episodes that end before the agent has done anything."""
    played, empty = total(facts.steps, "episodes"), total(facts.steps, "episodes_without_turns")
    if not played or empty < LOST * played:
        return None
    evidence = f"{empty:.0f} of {played:.0f} episodes ended before their first turn"
    limit = 2 * facts.number("environment.play.max_tokens", 4096)
    cause = "the opening fills the tokens of an episode, or the model's context"
    return Finding("episodes without turns", 4, evidence, cause, f"environment.play.max_tokens={limit:.0f}")


_NOT_REASONS = {
    *(
        "groups",
        "dropped_groups",
        "scored_groups",
        "collapsed",
        "escaped",
        "cache_hits",
        "requests",
        "retries",
    ),
    *("clamped", "missing_parts", "further_verdicts", "spread", "pairs", "agreement", "tau"),
}
"""Names under ``judge/`` that are no reason of a failure."""


def _windows(facts: Facts, key: str) -> float | None:
    """A share of the windows, of the test part where it was played, else as the last check on dev says."""
    listed = facts.record.summary.get("windows")
    if isinstance(listed, dict) and isinstance(listed.get(key), int | float):
        return float(listed[key])
    found = values(facts.rows, f"eval_{key}")
    return found[-1] if found else None
