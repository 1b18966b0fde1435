"""What do opportunity windows buy over point labels? The same training on both, judged by windows on
dialogues never trained on.

python -m bench.ablation configs/sgd-small.yaml [--seeds 3] [--each] [key=value …]

Per seed and kind of labels (`data.labels`) one run of supervised training, then GRPO: `proactor train CONFIG
name=…-windows-s0 data.labels=windows …`. Both kinds start from one pretrained model and make the same number
of steps of each stage: supervised training goes on to its last step, with the adapter of the lowest held-out
loss (of its own labels) as its result; GRPO keeps its best on dev, which is judged by windows for both. A run
that is there already is taken as it is and one that was interrupted goes on, so the command can be given
again after a stop. Pooled over seeds, with paired bootstrap intervals over dialogues, windows are compared
with points after either stage; a table is printed and a record written to ``bench/results/<machine>/``.

A model of a config's `pretrain` section has already seen the windows of the training split, whichever labels
come after. With --each either kind pretrains a model of its own on its own labels (`MODEL-windows`,
`MODEL-points`): then nothing ever shows a window to the side of the points.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness import machine, result_folder
from bench.learning import difference, ensure, training_seconds
from proactor.config import RunConfig, SFTStage
from proactor.config_file import load_config
from proactor.console import metrics_table
from proactor.engine import atomic_file
from proactor.evaluation.play import Evaluation
from proactor.evaluation.store import load_evaluations
from proactor.scoring.bootstrap import KEYS
from proactor.training.parts import load_part
from proactor.training.runs import Run

LABELS = ("windows", "points")
STAGES = {"sft": "before", "sft+grpo": "after"}
"""What a run's evaluations call the adapter that each stage ended with: GRPO begins where supervised training
ended.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.ablation", description="training on windows against training on points"
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument(
        "--each", action="store_true", help="pretrain a model for either kind of labels, on those"
    )
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    given = parser.parse_intermixed_args(arguments)
    base = load_config(given.config, given.overrides)
    if base.grpo is None:
        parser.error(f"{given.config}: no grpo section: there is no second stage to compare")
    if given.each and base.pretrain is None:
        parser.error(
            f"{given.config}: --each pretrains a model for either kind of labels, and there is no pretrain "
            "section"
        )
    sides = {labels: settings(given.overrides, base, labels, given.each) for labels in LABELS}
    for overrides in sides.values():
        ensure_model(given.config, overrides)
    runs: dict[str, list[Run]] = {labels: [] for labels in LABELS}
    for seed in range(given.seeds):  # seed by seed, so that a stop leaves whole pairs
        for labels, overrides in sides.items():
            prefix = f"{base.name}-{'each-' if given.each else ''}{labels}"
            runs[labels].append(ensure(given.config, [*overrides, f"name={prefix}-s{seed}", f"seed={seed}"]))
    record = compare({labels: [run.folder for run in of] for labels, of in runs.items()})
    record |= described(base, given.config, sides["points"])
    record["each"] = given.each
    record["seconds"] = {
        labels: {kind: sum(training_seconds(run, kind) for run in of) / len(of) for kind in ("sft", "grpo")}
        for labels, of in runs.items()
    }
    file = (
        result_folder(given.results, record["machine"])
        / f"ablation-{base.name}{'-each' if given.each else ''}.json"
    )
    atomic_file(file, (json.dumps(record, indent=2) + "\n").encode())
    show(record)
    print(f"record: {file}")


def settings(overrides: Sequence[str], base: RunConfig, labels: str, each: bool) -> list[str]:
    """The overrides of one side: its labels, and a supervised stage that makes all its steps (one of the
    defaults where the config has none).
    """
    size = base.grpo.batch_dialogues if base.grpo else 8
    stage = base.sft or SFTStage(batch_dialogues=size, pending=False)
    kept = stage.model_dump(mode="json", exclude_unset=True) | {
        "batch_dialogues": stage.batch_dialogues,
        "max_steps": stage.max_steps,
        "patience": stage.max_steps,
    }
    own = [*overrides, f"data.labels={labels}", f"sft={json.dumps(kept)}"]
    if each:
        own.append(f"model={base.model}-{labels}")
    return own


def ensure_model(config: Path, overrides: Sequence[str]) -> None:
    """The model that the side starts from, built by its labels where it is to be pretrained. Shared, it is
    the windows' side that builds it.
    """
    chosen = load_config(config, overrides)
    if chosen.pretrain is not None and not Path(chosen.model).is_dir():
        print(f"{chosen.model}: pre-training", flush=True)
        subprocess.run(
            [sys.executable, "-m", "proactor.cli", "pretrain", str(config), *overrides], check=True
        )


def compare(folders: Mapping[str, Sequence[Path]]) -> dict[str, Any]:
    """Windows against points after each stage: mean metrics over seeds, the paired difference, and in how
    many seeds windows were above.

    Raises ValueError, naming a dialogue, when two runs were tested on different ones, and SourceError
    for a folder without evaluations.
    """
    loaded = {
        labels: [load_evaluations(f / "evaluations.json")[1] for f in of] for labels, of in folders.items()
    }
    first = loaded["windows"][0]
    rivals = {name: e for name, e in first.items() if name not in STAGES.values()}
    return {
        "stages": {
            stage: _stage({labels: [run[name] for run in of] for labels, of in loaded.items()})
            for stage, name in STAGES.items()
        },
        "rivals": {name: {k: e.metrics[k] for k in KEYS} for name, e in rivals.items()},
        "seeds": len(loaded["windows"]),
        "dialogues": len(first["after"].contributions),
    }


def _stage(runs: Mapping[str, Sequence[Evaluation]]) -> dict[str, Any]:
    windows, points = runs["windows"], runs["points"]
    values = {labels: {k: [e.metrics[k] or 0.0 for e in of] for k in KEYS} for labels, of in runs.items()}
    return {
        **{labels: {k: sum(v) / len(v) for k, v in of.items()} for labels, of in values.items()},
        "windows_minus_points": difference(
            [e.contributions for e in points], [e.contributions for e in windows]
        ),
        "windows_above": {
            k: sum(w > p for w, p in zip(values["windows"][k], values["points"][k], strict=True))
            for k in KEYS
        },
        "parsed": {labels: 1 - sum(e.unparsed_share for e in of) / len(of) for labels, of in runs.items()},
    }


def described(base: RunConfig, config: Path, points: Sequence[str]) -> dict[str, Any]:
    """What a record says of itself beside its numbers; ``training_labels``: the counters of the
    point-labelled training split.
    """
    counters = load_part(load_config(config, points), "train").counters
    return {
        "config": base.model_dump(mode="json", exclude={"data": {"path"}}),
        "training_labels": {
            k: counters[k] for k in ("dialogues", "references", "null", "points_logged", "points_end")
        },
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }


def show(record: Mapping[str, Any]) -> None:
    """A table a stage and, last, one JSON line with the numbers that matter most."""
    console = Console(width=140)
    for stage, found in record["stages"].items():
        title = f"{stage}: {record['seeds']} seeds, {record['dialogues']} test dialogues; change is windows - points"
        systems = {"points": found["points"], "windows": found["windows"], **record["rivals"]}
        console.print(metrics_table(title, systems, KEYS, found["windows_minus_points"]))
    told = {
        stage: {k: found["windows_minus_points"][k] for k in ("reward", "first_fire_f1")}
        | {"above": found["windows_above"]}
        for stage, found in record["stages"].items()
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
