"""Does a policy trained in an environment beat a player at random, and how far is it from the expert?

    python -m bench.players CONFIG [--seeds 5] [--arms random,expert] [--report] [key=value …]

CONFIG: one with both stages in a gym with scripts, such as configs/taira-small.yaml. Each run is a process,
`proactor train CONFIG name=… seed=…`; a finished run is reused and an interrupted one goes on. All start from
one model, built where it is missing. On the test tasks, pooled over seeds, the end of the runs is compared
with where their GRPO stage began (``before``) and with each scripted player (of ``--arms``), with intervals
over runs and tasks, paired by task. A player plays a task alike beside every run.

``--report`` trains nothing and reports on what has ended. Prints scores and differences; writes
``bench/results/<machine>/players-<name>.json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bench.arms import arms_parser, chosen_arms, read_base
from bench.learning import ended_run, ensure_model, recorded_config
from bench.records import stamp, write_record
from proactor.environments.gyms.players import players
from proactor.methods.user_metrics import Outcome, intervals, paired_change
from proactor.training.episode_pairs import outcomes_of, read_tested
from proactor.training.episodes import open_tasks, open_user
from proactor.training.runs import Run
from proactor.training.summary import interval_values

SIDES = ("before", "after")
SHOWN = ("score", "solved")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = arms_parser("bench.players", "A policy trained in an environment beside scripted players")
    options = parser.parse_intermixed_args(arguments)
    base = read_base(parser, options)
    gym, _ = open_tasks(base, open_user(base))
    names = chosen_arms(parser, options.arms, players(gym))
    if not options.report:
        ensure_model(options.config, options.overrides)
    runs = {}
    for seed in range(options.seeds):
        settings = [*options.overrides, f"name={base.name}-s{seed}", f"seed={seed}"]
        if run := ended_run(options.config, settings, options.report):
            runs[seed] = run
    if not runs:
        parser.error("no run has ended")
    record = {**stamp(), **record_of(runs, names), "config": recorded_config(base)}
    file = write_record(options.results, f"players-{base.name}", record)
    show(record)
    print(f"record: {file}")


def record_of(runs: Mapping[int, Run], names: Sequence[str]) -> dict[str, Any]:
    """``systems``: the metrics of both sides of the runs, by seed, and of the players ``names``;
    ``difference``: the runs' ends minus where GRPO began, and minus each player.
    """
    outcomes = {name: played(runs, name) for name in (*SIDES, *names)}
    after = outcomes["after"]
    return {
        "seeds": list(runs),
        "tasks": len(after) // len(runs),
        "systems": {name: interval_values(intervals(found, SHOWN)) for name, found in outcomes.items()},
        "difference": {
            name: interval_values(paired_change(found, after, SHOWN))
            for name, found in outcomes.items()
            if name != "after"
        },
    }


def played(runs: Mapping[int, Run], system: str) -> list[Outcome]:
    """How a system played the test tasks of every run."""
    return [
        replace(outcome, run=seed)
        for seed, run in runs.items()
        for outcome in outcomes_of(run.folder, read_tested(run.folder), system)
    ]


def show(record: Mapping[str, Any]) -> None:
    """Print each system, and how the runs' ends differ from it."""
    print(f"{len(record['seeds'])} seeds, {record['tasks']} test tasks")
    for name, row in record["systems"].items():
        change = record["difference"].get(name)
        beside = f"  after minus it {_interval(change['score'], '+')}" if change else ""
        print(f"{name:8} {'  '.join(f'{key} {_interval(row[key])}' for key in SHOWN)}{beside}")


def _interval(value: Mapping[str, float], sign: str = "") -> str:
    parts = [format(value[key], f"{sign}.3f") for key in ("estimate", "low", "high")]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


if __name__ == "__main__":
    main()
