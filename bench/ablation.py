"""Do opportunity windows beat point labels? The same training on both, scored by windows on test dialogues.

    python -m bench.ablation configs/sgd-small.yaml [--seeds 3] [--each] [key=value …]

For each seed and kind of labels (`data.labels`), one run: supervised training, then GRPO (`proactor train
CONFIG name=…-windows-s0 data.labels=windows …`). Both kinds start from one pretrained model and make the same
number of steps. Supervised training goes on to its last step and keeps the adapter of the lowest held-out
loss, of its own labels. GRPO keeps the best on dev, which is scored by windows for both. A finished run is
reused and an interrupted one goes on. Pooled over seeds, windows are compared with points after each stage,
with paired bootstrap intervals over dialogues. Prints a table, and writes
``bench/results/<machine>/ablation-<name>.json``.

A model of a config's `pretrain` section has seen the windows of the training split, whichever labels follow.
With --each, each kind pretrains a model on its own labels (`MODEL-windows`, `MODEL-points`), so that the
points' side never sees a window.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.learning import (
    all_steps,
    difference,
    ensure,
    ensure_model,
    recorded_config,
    supervised_stage,
    training_seconds,
)
from bench.records import run_parser, stamp, write_record
from proactor.config import RunConfig
from proactor.config_file import load_config
from proactor.evaluation.play import Evaluation
from proactor.evaluation.store import load_comparable
from proactor.scoring.arrays import mean_defined
from proactor.scoring.bootstrap import KEYS
from proactor.tables import metrics_table
from proactor.training.corpora import load_corpus
from proactor.training.runs import Run
from proactor.training.summary import count_above

LABELS = ("windows", "points")
STAGES = {"sft": "before", "sft+grpo": "after"}
"""The name, in a run's evaluations, of the adapter at the end of each stage: GRPO starts where SFT ended."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = run_parser("bench.ablation", "training on windows against training on points")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--each", action="store_true", help="pretrain a model for either kind of labels, on those"
    )
    options = parser.parse_intermixed_args(arguments)
    config, each = options.config, options.each
    base = load_config(config, options.overrides)
    if base.grpo is None:
        parser.error(f"{config}: no grpo section: there is no second stage to compare")
    if each and base.pretrain is None:
        parser.error(
            f"{config}: --each pretrains a model for either kind of labels, and there is no pretrain section"
        )
    sides = {labels: side_overrides(options.overrides, base, labels, each) for labels in LABELS}
    for overrides in sides.values():
        ensure_model(config, overrides)
    runs: dict[str, list[Run]] = {labels: [] for labels in LABELS}
    for seed in range(options.seeds):  # seed by seed, so that a stop leaves whole pairs
        for labels, overrides in sides.items():
            name = f"{base.name}-{'each-' if each else ''}{labels}-s{seed}"
            runs[labels].append(ensure(config, [*overrides, f"name={name}", f"seed={seed}"]))
    record = compare({labels: [run.folder for run in side] for labels, side in runs.items()})
    record |= describe(base, config, sides["points"])
    record["each"] = each
    record["seconds"] = {labels: _mean_seconds(side) for labels, side in runs.items()}
    file = write_record(options.results, f"ablation-{base.name}{'-each' if each else ''}", record)
    show(record)
    print(f"record: {file}")


def _mean_seconds(runs: Sequence[Run]) -> dict[str, float]:
    """Seconds of each stage, mean over runs."""
    return {kind: sum(training_seconds(run, kind) for run in runs) / len(runs) for kind in ("sft", "grpo")}


def side_overrides(overrides: Sequence[str], base: RunConfig, labels: str, each: bool) -> list[str]:
    """The overrides of one side: its labels, and a supervised stage that makes all its steps."""
    stage = supervised_stage(base)
    side = [*overrides, f"data.labels={labels}", all_steps(stage, stage.max_steps)]
    return [*side, f"model={base.model}-{labels}"] if each else side


def compare(folders: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Windows against points after each stage.

    Mean metrics over seeds, the paired difference, and the number of seeds in which windows were above.
    Raises ProactorError, naming a dialogue, when two runs were tested on different ones, and SourceError for
    a folder without evaluations.
    """
    files = [folder / "evaluations.json" for side in folders.values() for folder in side]
    runs = iter([run for _, run in load_comparable(files)])
    loaded = {labels: list(islice(runs, len(side))) for labels, side in folders.items()}
    first = loaded["windows"][0]
    rivals = {name: e for name, e in first.items() if name not in STAGES.values()}
    return {
        "stages": {
            stage: _compare_stage({labels: [run[name] for run in side] for labels, side in loaded.items()})
            for stage, name in STAGES.items()
        },
        "rivals": {name: {k: e.metrics[k] for k in KEYS} for name, e in rivals.items()},
        "seeds": len(loaded["windows"]),
        "dialogues": len(first["after"].contributions),
    }


def _compare_stage(runs: Mapping[str, Sequence[Evaluation]]) -> dict[str, Any]:
    windows, points = runs["windows"], runs["points"]
    values = {labels: {k: [e.metrics[k] for e in side] for k in KEYS} for labels, side in runs.items()}
    return {
        **{labels: {k: mean_defined(v) for k, v in side.items()} for labels, side in values.items()},
        "windows_minus_points": difference(
            [e.contributions for e in points], [e.contributions for e in windows]
        ),
        "windows_above": {k: count_above(values["windows"][k], values["points"][k]) for k in KEYS},
        "parsed": {
            labels: 1 - sum(e.unparsed_share for e in side) / len(side) for labels, side in runs.items()
        },
    }


def describe(base: RunConfig, config: Path, points: Sequence[str]) -> dict[str, Any]:
    """Config, machine and date of a record, and the counters of the point-labelled training split."""
    counters = load_corpus(load_config(config, points), "train").counters
    kept = ("dialogues", "references", "null", "points_logged", "points_end")
    return {
        "config": recorded_config(base),
        "training_labels": {key: counters[key] for key in kept},
        **stamp(),
    }


def show(record: Mapping[str, Any]) -> None:
    """A table per stage and, last, one JSON line with the main numbers."""
    console = Console(width=140)
    counts = f"{record['seeds']} seeds, {record['dialogues']} test dialogues"
    main_numbers = {}
    for stage, result in record["stages"].items():
        systems = {"points": result["points"], "windows": result["windows"], **record["rivals"]}
        change = result["windows_minus_points"]
        title = f"{stage}: {counts}; change is windows - points"
        console.print(metrics_table(title, systems, KEYS, change))
        main_numbers[stage] = {key: change[key] for key in ("reward", "first_fire_f1")}
        main_numbers[stage] |= {"above": result["windows_above"]}
    print(json.dumps(main_numbers))


if __name__ == "__main__":
    main()
