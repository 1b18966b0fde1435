"""Do Agent-Omit and SAND do what they are for, beside training without them?

    python -m bench.relatives configs/function-omit.yaml [--seeds 5] [--arms a,b] [--report] [key=value …]
    python -m bench.relatives configs/function-sand.yaml [--seeds 5] [--arms a,b] [--report] [key=value …]

Agent-Omit: tokens per solved task, drawn and shown, as episodes stood at their end; fewer than those of
``task`` (the same start and rollouts, rewarded by the task alone) at a share of solved tasks not lower by
`MARGIN`. SAND: the share of solved tasks beside ``sft``, which goes on with the expert's episodes as they are
until it has trained as many tokens as ``sand`` of that seed. What SAND draws to deliberate is not in that
budget.

Each run is a process, `proactor train CONFIG name=… seed=…`; a finished run is reused and an interrupted one
goes on. ``--report`` trains nothing. Prints a table and writes
``bench/results/<machine>/<experiment>-<name>.json``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.arms import arms_parser, chosen_arms
from bench.frontier_record import cell
from bench.learning import ensure, ensure_model, has_summary, recorded_config, training_seconds
from bench.records import say, stamp, write_record
from proactor.config_file import load_run
from proactor.engine import ProactorError
from proactor.episode_config import EpisodeConfig
from proactor.scoring.arrays import Array, ratio
from proactor.scoring.bootstrap import Interval, bootstrap_sums
from proactor.training.episode_pairs import read_tested
from proactor.training.runs import Run
from proactor.training.summary import interval_values

MARGIN = 0.02
"""Of the share of solved tasks: by less than this an arm is not lower."""
KEYS = ("solved", "tokens", "tokens_per_success")
FIELDS = ("episodes", "solved", "tokens")
START = "start"
"""Stage A alone, where the arms of a seed begin that share it."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """``arms``: what each is, and its method options over the config's; ``reference``: what the others are
    compared with. ``shared_start``: stage A is a run of its own. ``matched``: the arm whose trained tokens
    the reference gets too.
    """

    name: str
    arms: Mapping[str, tuple[str, Mapping[str, Any]]]
    reference: str
    shared_start: bool = False
    matched: str = ""


EXPERIMENTS = {
    "agent_omit": Experiment(
        "omit",
        {
            "task": ("rewarded by the task alone", {"mu": 0.0, "partial": False}),
            "omit": ("Agent-Omit", {}),
            "relative": ("Agent-Omit, relative reward", {"omit_reward": "relative"}),
            "whole": ("Agent-Omit without partial samples", {"partial": False}),
        },
        reference="task",
        shared_start=True,
    ),
    "sand": Experiment(
        "sand",
        {
            "sand": ("SAND", {}),
            "sft": ("the expert's episodes as they are", {"candidates": 0, "iterations": 1}),
        },
        reference="sft",
        matched="sand",
    ),
}
"""By the method of the config."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = arms_parser("bench.relatives", "Agent-Omit and SAND beside training without them")
    options = parser.parse_intermixed_args(arguments)
    base = load_run(options.config, options.overrides)
    if not isinstance(base, EpisodeConfig) or base.method.name not in EXPERIMENTS or base.sft is None:
        parser.error(f"{options.config}: needs sft and one of the methods {', '.join(EXPERIMENTS)}")
    study = Study(options.config, options.overrides, base, EXPERIMENTS[base.method.name])
    arms = chosen_arms(parser, options.arms, study.experiment.arms)
    if not options.report:
        study.train(arms, options.seeds)
    record = study.record(options.seeds)
    if not record["arms"]:
        parser.error("no run has ended")
    file = write_record(options.results, f"{study.experiment.name}-{base.name}", record)
    show(record)
    print(f"record: {file}")


@dataclass(frozen=True, slots=True)
class Study:
    """The runs of an experiment on a config."""

    config: Path
    overrides: Sequence[str]
    base: EpisodeConfig
    experiment: Experiment

    def settings(self, arm: str, seed: int) -> list[str]:
        """The overrides that make a run of the config this arm's. Raises ProactorError before the run has
        ended that its budget comes from.
        """
        name = f"{self.base.name}-{arm}-s{seed}"
        same = [*self.overrides, f"name={name}", f"seed={seed}", "eval.adapter=last"]
        if arm == START:
            return [*same, "grpo=null"]
        options = {**self.base.method.options, **self.experiment.arms[arm][1]}
        if self.experiment.matched and arm == self.experiment.reference:
            options["updates"] = self.matched_updates(seed)
        method = f"method={json.dumps({'name': self.base.method.name, 'options': options})}"
        if not self.experiment.shared_start:
            return [*same, method]
        start = Path(self.base.runs) / f"{self.base.name}-{START}-s{seed}" / "best"
        return [*same, "sft=null", method, f"start={start}"]

    def matched_updates(self, seed: int) -> int:
        """As many updates on the expert's episodes as train the tokens of the matched arm."""
        run = self.run(self.experiment.matched, seed)
        if not has_summary(run):
            raise ProactorError(f"{run.folder}: has not ended, and the budget of the other arm comes from it")
        tokens: dict[str, list[float]] = {"sft": [], "sand": []}
        for row in run.rows():
            if row["kind"] in tokens:
                tokens[row["kind"]].append(row["tokens_trained"])
        assert self.base.sft is not None, "checked in main"
        tasks = float(self.base.method.options.get("batch_tasks", self.base.sft.batch_tasks))
        each = sum(tokens["sft"]) / len(tokens["sft"]) / self.base.sft.batch_tasks * tasks
        return max(1, round(sum(tokens["sand"]) / each))

    def run(self, arm: str, seed: int) -> Run:
        """The run of an arm, trained or not."""
        return Run(Path(self.base.runs) / f"{self.base.name}-{arm}-s{seed}")

    def train(self, arms: Sequence[str], seeds: int) -> None:
        """Every run that has not ended, seed by seed."""
        ensure_model(self.config, self.overrides)
        names = [START, *arms] if self.experiment.shared_start else list(arms)
        matched = self.experiment.matched
        if self.experiment.reference in names and matched:
            names = list(dict.fromkeys([matched, *names]))
        for seed in range(seeds):
            for name in names:
                run = ensure(self.config, self.settings(name, seed))
                spent = sum(training_seconds(run, kind) for kind in ("sft", "grpo", "sand"))
                say(f"{run.folder.name}: {spent:.0f} s in training steps")

    def record(self, seeds: int) -> dict[str, Any]:
        """The record of the runs that have ended; arms are compared over the seeds that both have."""
        names = [*([START] if self.experiment.shared_start else []), *self.experiment.arms]
        ended = {name: [seed for seed in range(seeds) if has_summary(self.run(name, seed))] for name in names}
        for name, of_arm in ended.items():
            for seed in of_arm:
                ensure(self.config, self.settings(name, seed))  # exits where a run has other settings
        arms = {
            name: {
                "says": self.experiment.arms[name][0] if name != START else "stage A alone",
                "seeds": of_arm,
                **interval_values(bootstrap_sums(self.grid(name, of_arm), measures, KEYS)),
                "counts": {seed: self.counts(name, seed) for seed in of_arm},
            }
            for name, of_arm in ended.items()
            if of_arm
        }
        changes = {name: self.change(name, ended) for name in arms if name != self.experiment.reference}
        return {
            **stamp(),
            "experiment": self.experiment.name,
            "reference": self.experiment.reference,
            "margin": MARGIN,
            "arms": arms,
            "changes": {name: change for name, change in changes.items() if change},
            "config": recorded_config(self.base),
        }

    def grid(self, arm: str, seeds: Sequence[int]) -> Array:
        """[seeds, test tasks, FIELDS] of an arm. Raises ProactorError where runs have other tasks."""
        rows = [
            {row.task: (1.0, float(row.solves(tested.success)), float(row.tokens)) for row in tested.after}
            for tested in (read_tested(self.run(arm, seed).folder) for seed in seeds)
        ]
        if any(of_run.keys() != rows[0].keys() for of_run in rows):
            raise ProactorError(f"{self.run(arm, seeds[0]).folder}: runs of this arm have other test tasks")
        return np.array([[of_run[task] for task in sorted(of_run)] for of_run in rows])

    def counts(self, arm: str, seed: int) -> dict[str, float]:
        """What a run trained, and what its method counted."""
        total: dict[str, float] = {}
        for row in self.run(arm, seed).rows():
            for key, value in row.items():
                if key == "tokens_trained" or key.startswith(("omit/", "sand/")):
                    total[key] = total.get(key, 0.0) + (value or 0.0)
        return total

    def change(self, arm: str, ended: Mapping[str, Sequence[int]]) -> dict[str, Any] | None:
        """An arm minus the reference, paired by seed and task; None without a seed that both have."""
        reference = self.experiment.reference
        both = [seed for seed in ended[arm] if seed in ended[reference]]
        if not both:
            return None
        rows = np.concatenate([self.grid(reference, both), self.grid(arm, both)], axis=-1)

        def difference(sums: Array) -> dict[str, Array]:
            old, new = (measures(side) for side in np.split(sums, 2, axis=-1))
            return {key: new[key] - old[key] for key in KEYS}

        found = bootstrap_sums(rows, difference, KEYS)
        return {**interval_values(found), "seeds": both, "verdict": verdict(found)}


def measures(sums: Array) -> dict[str, Array]:
    """KEYS from sums [..., FIELDS]; tokens per success is undefined where nothing was solved."""
    v = {name: sums[..., i] for i, name in enumerate(FIELDS)}
    return {
        "solved": ratio(v["solved"], v["episodes"]),
        "tokens": ratio(v["tokens"], v["episodes"]),
        "tokens_per_success": ratio(v["tokens"], v["solved"], np.nan),
    }


def verdict(change: Mapping[str, Interval]) -> dict[str, bool]:
    """Whether whole intervals say so: not lower by `MARGIN`, higher, fewer tokens per success."""
    return {
        "not_lower": change["solved"].low > -MARGIN,
        "higher": change["solved"].low > 0,
        "fewer_tokens": change["tokens_per_success"].high < 0,
    }


def show(record: Mapping[str, Any]) -> None:
    """The table, and each arm beside the reference."""
    table = Table(title=record["experiment"], title_justify="left")
    table.add_column("arm")
    for key in KEYS:
        table.add_column(key, justify="right")
    for name, row in record["arms"].items():
        table.add_row(f"{name} ({len(row['seeds'])})", *(cell(row[key]) for key in KEYS))
    console = Console(width=150)
    console.print(table)
    for name, row in record["changes"].items():
        said = ", ".join(key.replace("_", " ") for key, holds in row["verdict"].items() if holds)
        figures = ", ".join(f"{key} {cell(row[key])}" for key in KEYS)
        console.print(f"{name} over {record['reference']}: {figures}: {said or 'neither shown'}")


if __name__ == "__main__":
    main()
