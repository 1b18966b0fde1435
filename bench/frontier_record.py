"""The record of `bench.frontier`: each arm's metrics, scripted lines, and whether the frontier moved."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.frontier_arms import Experiment
from bench.learning import recorded_config, training_seconds
from bench.records import stamp
from proactor.environments.gyms.players import players
from proactor.episode_config import EpisodeConfig
from proactor.methods.user_metrics import Outcome, hypervolume_gain, intervals, metrics, paired_change
from proactor.scoring.bootstrap import Interval
from proactor.training.demonstrations import Demonstrations
from proactor.training.episode_pairs import read_tested, scripted_outcomes
from proactor.training.episodes import open_tasks
from proactor.training.runs import Run
from proactor.training.summary import interval_values

Outcomes = Mapping[int, Sequence[Outcome]]
"""The outcomes of a system by training run (seed)."""
SHOWN = ("score", "pass_u1", "pass_u2", "pass_u3", "user_rate", "user_actions", "tokens")


def record_of(
    base: EpisodeConfig, experiment: Experiment, ended: Mapping[str, Mapping[int, Run]]
) -> dict[str, Any]:
    """The record of the runs that have ended, by arm and seed.

    An arm's own metrics are over all of its seeds; arms are compared over the seeds that they share.
    """
    outcomes = {
        name: {seed: read_tested(run.folder).outcomes("after", seed) for seed, run in runs.items()}
        for name, runs in ended.items()
    }
    gym, parts = open_tasks(base)
    played = scripted(base)
    pairs = {"new": (experiment.new, experiment.old), **experiment.also} if experiment.new else {}
    horizon = base.environment.host.turns(gym)
    gains = {name: gain(outcomes, *sides, horizon=horizon) for name, sides in pairs.items()}
    return {
        **stamp(),
        "gym": gym.name,
        "horizon": horizon,
        "tasks": len(parts.test),
        "arms": {
            name: {
                "says": experiment.arms[name].says,
                "seeds": sorted(of_arm),
                **interval_values(intervals(flat(of_arm))),
                "points": {seed: point(of_seed) for seed, of_seed in of_arm.items()},
                **run_facts(ended[name]),
            }
            for name, of_arm in outcomes.items()
        },
        "lines": {name: interval_values(intervals(of_line)) for name, of_line in played.items()},
        "changes": {
            name: interval_values(change)
            for name in outcomes
            if (change := changes(outcomes, experiment.reference, name))
        },
        "reference": experiment.reference,
        "hypervolume": {name: value for name, value in gains.items() if value},
        "pushes": pushes(gains.get("new")),
        "config": recorded_config(base),
    }


def scripted(base: EpisodeConfig) -> dict[str, list[Outcome]]:
    """The outcomes of the scripted players on the test tasks. Raises ConfigError where there are none."""
    gym, parts = open_tasks(base)
    made = players(Demonstrations.check(gym))
    worlds, success, host = [(task, 0) for task in parts.test], base.eval.success, base.environment.host
    return {name: scripted_outcomes(gym, worlds, one, success, host) for name, one in made.items()}


def flat(of_arm: Outcomes) -> list[Outcome]:
    """All outcomes of an arm."""
    return [outcome for of_seed in of_arm.values() for outcome in of_seed]


def point(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """One run's place: its mean score and U."""
    values = metrics(outcomes)
    return {key: values[key] for key in ("score", "user_actions")}


def run_facts(runs: Mapping[int, Run]) -> dict[str, Any]:
    """How long an arm's runs trained, how many episodes they played, and which the stop rule ended."""
    rows = {seed: [row for row in run.rows() if row["kind"] == "grpo"] for seed, run in runs.items()}
    summaries = {seed: json.loads((run.folder / "summary.json").read_text()) for seed, run in runs.items()}
    seconds = [training_seconds(run, kind) for run in runs.values() for kind in ("sft", "grpo")]
    return {
        "seconds": sum(seconds) / len(runs),
        "episodes": {seed: sum(row["episodes"] for row in of_run) for seed, of_run in rows.items()},
        "stopped": {seed: s["stopped"] for seed, s in summaries.items() if "stopped" in s},
    }


def shared(outcomes: Mapping[str, Outcomes], names: Sequence[str]) -> dict[str, list[Outcome]]:
    """The outcomes of these arms in the seeds that all of them have; empty where there is no such seed."""
    seeds = set.intersection(*(set(outcomes.get(name, ())) for name in names))
    return {name: [o for seed in sorted(seeds) for o in outcomes[name][seed]] for name in names if seeds}


def gain(
    outcomes: Mapping[str, Outcomes], new: Sequence[str], old: Sequence[str], horizon: float
) -> dict[str, Any] | None:
    """Hypervolume of some arms minus that of others; None before a seed has all of them."""
    both = shared(outcomes, [*new, *old])
    if not both:
        return None
    found = hypervolume_gain({n: both[n] for n in new}, {n: both[n] for n in old}, horizon)
    seeds = sorted({o.run for o in both[new[0]]})
    return {**interval_values({"gain": found}), "new": list(new), "old": list(old), "seeds": seeds}


def changes(outcomes: Mapping[str, Outcomes], reference: str, name: str) -> dict[str, Interval] | None:
    """An arm minus the reference; None where they share no seed, or are one."""
    both = shared(outcomes, [reference, name]) if name != reference else {}
    return paired_change(both[reference], both[name]) if both else None


def pushes(found: Mapping[str, Any] | None) -> bool | None:
    """Whether the frontier moved: the interval of the gain lies above 0. None while it is not known."""
    return None if found is None else found["gain"]["low"] > 0


def show(record: Mapping[str, Any]) -> None:
    """The table, the hypervolumes and, last, the verdict."""
    table = Table(title=f"{record['gym']}, {record['tasks']} test tasks", title_justify="left")
    table.add_column("arm")
    for key in SHOWN:
        table.add_column(key, justify="right")
    for name, row in {**record["arms"], **record["lines"]}.items():
        seeds = f" ({len(row['seeds'])})" if "seeds" in row else ""
        table.add_row(name + seeds, *(cell(row[key]) for key in SHOWN))
    console = Console(width=150)
    console.print(table)
    for name, row in record["changes"].items():
        console.print(
            f"{name} over {record['reference']}: score {cell(row['score'])}, U {cell(row['user_actions'])}"
        )
    for row in record["hypervolume"].values():
        new, old = " + ".join(row["new"]), " + ".join(row["old"])
        console.print(f"hypervolume of {new} over {old}: {cell(row['gain'])} ({len(row['seeds'])} seeds)")
    said = {True: "pushes the frontier", False: "does not push the frontier", None: "not known yet"}
    console.print(said[record["pushes"]])


def cell(interval: Mapping[str, float | None]) -> str:
    """An interval as the table shows it."""
    estimate, low, high = (interval[key] for key in ("estimate", "low", "high"))
    return "–" if estimate is None else f"{estimate:.2f} [{low:.2f}, {high:.2f}]"
