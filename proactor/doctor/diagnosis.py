"""All rules on a run's records, worst first."""

from __future__ import annotations

from pathlib import Path

from proactor.doctor import reward_rules, sampling_rules, update_rules
from proactor.doctor.facts import Facts, Finding, Rule

RULES: tuple[Rule, ...] = (
    reward_rules.episodes_fail,
    reward_rules.episodes_without_turns,
    update_rules.not_finite,
    update_rules.cut_short,
    update_rules.no_update,
    update_rules.collapse,
    sampling_rules.truncated,
    sampling_rules.unparsed,
    reward_rules.judge_fails,
    reward_rules.judge_without_spread,
    reward_rules.judge_disagrees,
    update_rules.memorised,
    sampling_rules.learns_silence,
    sampling_rules.never_acts,
    sampling_rules.without_spread,
    update_rules.nothing_moves,
    update_rules.diverged,
    update_rules.gap,
    update_rules.gap_grows,
    update_rules.clipped,
    reward_rules.windows_are_unknown,
    update_rules.never_beat_start,
    reward_rules.windows_are_points,
)
"""In the order in which findings of one weight are told: causes before what follows from them."""


def diagnose(facts: Facts) -> list[Finding]:
    """What is wrong with a run, worst first; [] for a healthy one."""
    findings = [finding for rule in RULES if (finding := rule(facts)) is not None]
    return sorted(findings, key=lambda finding: -finding.weight)


def diagnose_folder(folder: Path) -> list[Finding]:
    """`diagnose` of a run's folder. Raises SourceError where its records cannot be read."""
    return diagnose(Facts.read(folder))
