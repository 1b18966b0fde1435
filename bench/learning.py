"""Does GRPO improve on its supervised start? Several seeds, and supervised training continued for the same
time, on dialogues never trained on.

python -m bench.learning configs/sgd-small.yaml [--seeds 3] [key=value …]

Each run is `proactor train CONFIG name=… seed=…` in a process of its own; a run that is there already is
taken as it is and one that was interrupted goes on, so the command can be given again after a stop. Pooled
over seeds, with paired bootstrap intervals over dialogues, it compares GRPO with its start, with the
supervised run and with the trivial policies, prints a table, and writes a record to
``bench/results/<machine>/``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bench.harness import machine, result_folder
from proactor.config import RunConfig, SFTStage
from proactor.config_file import load_config
from proactor.console import metrics_table
from proactor.evaluation.play import Evaluation
from proactor.evaluation.store import load_evaluations
from proactor.scoring.bootstrap import KEYS, Interval, paired_difference
from proactor.scoring.metrics import Contribution
from proactor.training.runs import Run
from proactor.training.summary import pooled

RIVALS = ("never", "always", "values_seen")
PACE_STEPS = 3
"""Steps from which the time of a supervised step is taken."""
PLACES = ("data.path", "runs", "save_every", "samples_every")
"""What may differ between a run that is found and one that would be trained: where things lie, and how often
they are written.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.learning",
        description="GRPO against its start and against more supervised training",
    )
    parser.add_argument("config", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    given = parser.parse_intermixed_args(arguments)
    base = load_config(given.config, given.overrides)
    seeds = [
        ensure(given.config, [*given.overrides, f"name={base.name}-s{i}", f"seed={i}"])
        for i in range(given.seeds)
    ]
    budget = sum(grpo_seconds(run) for run in seeds) / len(seeds)
    supervised = ensure(
        given.config,
        [*given.overrides, f"name={base.name}-sft", *continued(given.config, given.overrides, base, budget)],
    )
    record = compare([run.folder for run in seeds], supervised.folder)
    record |= {
        "config": base.model_dump(mode="json", exclude={"data": {"path"}}),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
    }
    record["seconds"] = {"grpo": budget, "supervised": training_seconds(supervised, "sft")}
    file = result_folder(given.results, record["machine"]) / f"learning-{base.name}.json"
    file.write_text(json.dumps(record, indent=2) + "\n")
    show(record)
    print(f"record: {file}")


def compared(run: Run) -> bool:
    """Whether a run has ended with its comparison on the test dialogues."""
    return (run.folder / "summary.json").is_file()


def paced(run: Run) -> bool:
    """Whether a run has made the steps whose time is wanted."""
    return len([row for row in run.rows() if row["kind"] == "sft"]) >= PACE_STEPS


def ensure(config: Path, overrides: Sequence[str], ended: Callable[[Run], bool] = compared) -> Run:
    """The run of these settings, ended: trained now, gone on with, or found. A run of that name with other
    settings ends the benchmark: its numbers would stand under a false heading.
    """
    settings = load_config(config, overrides)
    run = Run(settings.folder)
    if ended(run):
        if (changed := run.changed(settings, PLACES)) is not None:
            key, old, new = changed
            raise SystemExit(
                f"{run.folder}: {key} was {old!r}, now {new!r}: give the new runs another name (name=…)"
            )
    else:
        more = ["--resume"] if run.state.is_file() else ["--fresh"]
        print(f"{settings.name}: training", flush=True)
        subprocess.run(
            [sys.executable, "-m", "proactor.cli", "train", str(config), *overrides, *more], check=True
        )
    return run


def training_seconds(run: Run, kind: str) -> float:
    """Seconds in training steps of one kind, evaluations left out."""
    return float(sum(row["seconds"] for row in run.rows() if row["kind"] == kind))


def grpo_seconds(run: Run) -> float:
    """Seconds of the GRPO stage's steps."""
    return training_seconds(run, "grpo")


def continued(config: Path, overrides: Sequence[str], base: RunConfig, budget: float) -> list[str]:
    """Overrides for supervised training that goes on for ``budget`` seconds past where its held-out loss
    stopped falling.
    """
    stage = base.sft or SFTStage(batch_dialogues=base.grpo.batch_dialogues if base.grpo else 8, pending=False)
    pace = ensure(
        config,
        [*overrides, f"name={base.name}-pace", "grpo=null", "eval.final=false", _sft(stage, PACE_STEPS)],
        paced,
    )
    steps = round(budget * PACE_STEPS / training_seconds(pace, "sft"))
    before = sum(row["kind"] == "sft" for row in Run(Path(base.runs) / f"{base.name}-s0").rows())
    return ["grpo=null", _sft(stage, before + steps)]


def _sft(stage: SFTStage, steps: int) -> str:
    kept = stage.model_dump(mode="json", exclude_unset=True) | {
        "batch_dialogues": stage.batch_dialogues,
        "pending": stage.pending,
    }
    return f"sft={json.dumps(kept | {'max_steps': steps, 'patience': steps})}"


def compare(seeds: Sequence[Path], supervised: Path) -> dict[str, Any]:
    """`proactor.training.summary.pooled` of the seeds, and GRPO's result minus each rival's, paired by
    dialogue.
    """
    evaluations = [load_evaluations(folder / "evaluations.json")[1] for folder in seeds]
    other = load_evaluations(supervised / "evaluations.json")[1]
    after = [run["after"].contributions for run in evaluations]
    rivals = {"supervised": other["after"], **{name: evaluations[0][name] for name in RIVALS}}
    return {
        **pooled(seeds),
        "rivals": {name: {k: evaluation.metrics[k] for k in KEYS} for name, evaluation in rivals.items()},
        "gain_over": {
            name: difference([evaluation.contributions] * len(after), after)
            for name, evaluation in rivals.items()
        },
        "parsed": parsed_shares(evaluations),
        "dialogues": len(after[0]),
    }


def parsed_shares(evaluations: Sequence[Mapping[str, Evaluation]]) -> dict[str, float]:
    """Share of outputs that could be read in full, before and after, mean over runs."""
    return {
        side: 1 - sum(run[side].unparsed_share for run in evaluations) / len(evaluations)
        for side in ("before", "after")
    }


def difference(
    rival: Sequence[Sequence[Contribution]], after: Sequence[Sequence[Contribution]]
) -> dict[str, dict[str, float]]:
    """``after`` minus ``rival``, one list of dialogues a seed, paired by dialogue, with bootstrap
    intervals.
    """
    found: Mapping[str, Interval] = paired_difference(rival, after)
    return {key: {"estimate": i.estimate, "low": i.low, "high": i.high} for key, i in found.items()}


def show(record: Mapping[str, Any]) -> None:
    """The table and, last, one JSON line with the two numbers that matter most."""
    systems = {"before": record["before"], "after": record["after"], **record["rivals"]}
    Console(width=140).print(
        metrics_table(
            f"{record['runs']} seeds, {record['dialogues']} test dialogues",
            systems,
            KEYS,
            record["difference"],
        )
    )
    for name, gains in record["gain_over"].items():
        told = (
            f"{key} {gains[key]['estimate']:+.3f} [{gains[key]['low']:+.3f}, {gains[key]['high']:+.3f}]"
            for key in ("reward", "first_fire_f1")
        )
        print(f"GRPO over {name}: {', '.join(told)}")
    print(
        json.dumps(
            {key: record["difference"][key] for key in ("reward", "first_fire_f1")}
            | {"rising": record["rising"]}
        )
    )


if __name__ == "__main__":
    main()
