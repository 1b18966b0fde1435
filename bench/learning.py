"""Does GRPO improve on its supervised start, and on supervised training continued for the same time?

    python -m bench.learning configs/sgd-small.yaml [--seeds 3] [key=value …]

Each run is a process, `proactor train CONFIG name=… seed=…`. A finished run is reused and an interrupted one
goes on, so the command can be repeated after a stop. On test dialogues, pooled over seeds, GRPO is compared
with its start, the supervised run and the trivial policies, with paired bootstrap intervals over dialogues.
Prints a table and writes ``bench/results/<machine>/learning-<name>.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console

from bench.records import run_parser, stamp, write_record
from proactor.config import RunConfig, SFTStage
from proactor.config_file import load_config, load_run
from proactor.episode_config import EpisodeConfig
from proactor.evaluation.play import Evaluation
from proactor.evaluation.store import load_comparable
from proactor.scoring.bootstrap import KEYS, paired_difference
from proactor.scoring.metrics import Contribution
from proactor.tables import metrics_table
from proactor.training.config_change import first_change
from proactor.training.runs import Run
from proactor.training.summary import interval_values, pool_runs

RIVALS = ("never", "always", "values_seen")
PACE_STEPS = 9
"""Steps of the run that measures the time of a supervised step; the first is left out, as it is slower."""
PLACES = ("data.path", "runs", "save_every", "samples_every")
"""Keys that may differ between a finished run and the requested one: paths, and when files are written."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = run_parser("bench.learning", "GRPO against its start and against more supervised training")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_intermixed_args(arguments)
    config, overrides = options.config, options.overrides
    base = load_config(config, overrides)
    seeds = [
        ensure(config, [*overrides, f"name={base.name}-s{i}", f"seed={i}"]) for i in range(options.seeds)
    ]
    budget = sum(grpo_seconds(run) for run in seeds) / len(seeds)
    longer = continue_supervised(config, overrides, base, budget)
    supervised = ensure(config, [*overrides, f"name={base.name}-sft", *longer])
    record = compare([run.folder for run in seeds], supervised.folder)
    record |= {"config": recorded_config(base), **stamp()}
    record["seconds"] = {"grpo": budget, "supervised": training_seconds(supervised, "sft")}
    print(f"supervised longer: {record['seconds']['supervised'] / budget:.0%} of the time that GRPO took")
    file = write_record(options.results, f"learning-{base.name}", record)
    show(record)
    print(f"record: {file}")


def recorded_config(config: RunConfig | EpisodeConfig) -> dict[str, Any]:
    """A config as a record keeps it: without the places of data and runs, the model by its name."""
    values = config.model_dump(mode="json", exclude={"data": {"path"}, "environment": {"path"}})
    del values["runs"]
    return values | {"model": Path(config.model).name if Path(config.model).is_absolute() else config.model}


def has_summary(run: Run) -> bool:
    """Whether a run has ended with its comparison on the test dialogues."""
    return (run.folder / "summary.json").is_file()


def has_pace(run: Run) -> bool:
    """Whether a run has made the steps that measure the time of a supervised step."""
    return len([row for row in run.rows() if row["kind"] == "sft"]) >= PACE_STEPS


def run_command(command: str, config: Path, overrides: Sequence[str], *flags: str) -> None:
    """Run a command of `proactor` on a config, in a process of its own."""
    arguments = [command, str(config), *overrides, *flags]
    subprocess.run([sys.executable, "-m", "proactor.cli", *arguments], check=True)


def ensure_model(config: Path, overrides: Sequence[str]) -> None:
    """Build the small model of these settings where it is missing."""
    settings = load_run(config, overrides)
    if settings.pretrain is not None and not Path(settings.model).exists():
        print(f"{settings.model}: pre-training", flush=True)
        run_command("pretrain", config, overrides)


def ensure(config: Path, overrides: Sequence[str], ended: Callable[[Run], bool] = has_summary) -> Run:
    """The run of these settings, ended: an existing one, or trained now, from its last save if there is one.

    Exits when the existing run has other settings, because its numbers would stand under a false heading.
    """
    settings = load_run(config, overrides)
    run = Run(settings.folder)
    if not ended(run):
        print(f"{settings.name}: training", flush=True)
        run_command("train", config, overrides, "--resume" if run.state.is_file() else "--fresh")
    elif (change := first_change(run.config, settings, PLACES)) is not None:
        key, old, new = change
        raise SystemExit(
            f"{run.folder}: {key} was {old!r}, now {new!r}: give the new runs another name (name=…)"
        )
    return run


def ended_run(config: Path, overrides: Sequence[str], report: bool) -> Run | None:
    """`ensure`; with ``report`` nothing is trained, and a run that has not ended is None."""
    if report and not has_summary(Run(load_run(config, overrides).folder)):
        return None
    return ensure(config, overrides)


def training_seconds(run: Run, kind: str) -> float:
    """Seconds in training steps of one kind, evaluations left out."""
    return float(sum(row["seconds"] for row in run.rows() if row["kind"] == kind))


def grpo_seconds(run: Run) -> float:
    """Seconds of the GRPO stage's steps."""
    return training_seconds(run, "grpo")


def supervised_stage(base: RunConfig) -> SFTStage:
    """The config's supervised stage, or a default one with GRPO's batches."""
    return base.sft or SFTStage(batch_dialogues=base.grpo.batch_dialogues if base.grpo else 8, pending=False)


def all_steps(stage: SFTStage, steps: int, **more: Any) -> str:
    """An override: the supervised stage with exactly ``steps`` steps, never stopped early."""
    kept = stage.model_dump(mode="json", exclude_unset=True) | {
        "batch_dialogues": stage.batch_dialogues,
        **more,
    }
    return f"sft={json.dumps(kept | {'max_steps': steps, 'patience': steps})}"


def continue_supervised(config: Path, overrides: Sequence[str], base: RunConfig, budget: float) -> list[str]:
    """Overrides for supervised training that goes on for ``budget`` seconds after the supervised stage."""
    stage = supervised_stage(base)
    short = ["grpo=null", "eval.final=false", all_steps(stage, PACE_STEPS, pending=stage.pending)]
    pace = ensure(config, [*overrides, f"name={base.name}-pace", *short], has_pace)
    seconds = [row["seconds"] for row in pace.rows() if row["kind"] == "sft"][1:PACE_STEPS]
    steps = round(budget / fmean(seconds))
    before = sum(row["kind"] == "sft" for row in Run(Path(base.runs) / f"{base.name}-s0").rows())
    return ["grpo=null", all_steps(stage, before + steps, pending=stage.pending)]


def compare(seeds: Sequence[Path], supervised: Path) -> dict[str, Any]:
    """`summary.pool_runs` of the seeds, and GRPO's result minus each rival's, paired by dialogue."""
    files = [folder / "evaluations.json" for folder in (*seeds, supervised)]
    *evaluations, other = (run for _, run in load_comparable(files))
    after = [run["after"].contributions for run in evaluations]
    rivals = {"supervised": other["after"], **{name: evaluations[0][name] for name in RIVALS}}
    return {
        **pool_runs(seeds),
        "rivals": {name: {k: evaluation.metrics[k] for k in KEYS} for name, evaluation in rivals.items()},
        "gain_over": {
            name: difference([evaluation.contributions] * len(after), after)
            for name, evaluation in rivals.items()
        },
        "parsed": parsed_shares(evaluations),
        "dialogues": len(after[0]),
    }


def parsed_shares(evaluations: Sequence[Mapping[str, Evaluation]]) -> dict[str, float]:
    """Share of outputs parsed in full, before and after, mean over runs."""
    return {
        side: 1 - sum(run[side].unparsed_share for run in evaluations) / len(evaluations)
        for side in ("before", "after")
    }


def difference(
    rival: Sequence[Sequence[Contribution]], after: Sequence[Sequence[Contribution]]
) -> dict[str, dict[str, float | None]]:
    """``after`` minus ``rival``, each one list of dialogues per seed, paired by dialogue, with intervals."""
    return interval_values(paired_difference(rival, after))


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
        parts = (
            f"{key} {gains[key]['estimate']:+.3f} [{gains[key]['low']:+.3f}, {gains[key]['high']:+.3f}]"
            for key in ("reward", "first_fire_f1")
        )
        print(f"GRPO over {name}: {', '.join(parts)}")
    print(
        json.dumps(
            {key: record["difference"][key] for key in ("reward", "first_fire_f1")}
            | {"rising": record["rising"]}
        )
    )


if __name__ == "__main__":
    main()
