"""``proactor compare``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from proactor.commands.common import console
from proactor.config_file import load_config
from proactor.scoring.bootstrap import KEYS


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="RUN_A", help="a run's folder, or its config", show_default=False)
    ],
    second: Annotated[
        Path, typer.Argument(metavar="RUN_B", help="the run to compare with it", show_default=False)
    ],
    system: Annotated[str, typer.Option(help="of each run: after, before, or a trivial policy")] = "after",
    against: Annotated[str, typer.Option(help="the first run's system, when it is another one")] = "",
    resamples: Annotated[int, typer.Option(min=100, help="of the bootstrap")] = 2000,
    output: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write everything there")
    ] = None,
) -> None:
    """What RUN_B does better or worse than RUN_A on the same test dialogues, paired by dialogue: every
    metric, by tool and by domain.
    """
    from proactor.engine import atomic_file
    from proactor.evaluation.paired import compare_runs, find_system, paired_tables
    from proactor.evaluation.store import load_evaluations

    folders = [load_config(run).folder if run.is_file() else run for run in (first, second)]
    loaded = [load_evaluations(folder / "evaluations.json") for folder in folders]
    wanted = (against or system, system)
    runs = [find_system(named, of, str(f)) for (_, named), of, f in zip(loaded, wanted, folders, strict=True)]
    names = (_name(folders[0], wanted[0]), _name(folders[1], wanted[1]))
    found = compare_runs(names, (loaded[0][0], loaded[1][0]), (runs[0], runs[1]), resamples=resamples)
    for table in paired_tables(found, KEYS):
        console.print(table)
    rewards = [_measured_by(folder) for folder in folders]
    if rewards[0] != rewards[1]:
        console.print(
            f"turn reward is not one measure here: {names[0]} by {rewards[0]}, {names[1]} by {rewards[1]} "
            "(eval.reward makes them one)",
            markup=False,
        )
    if output is not None:
        atomic_file(output, (found.model_dump_json(indent=1) + "\n").encode())
        console.print(str(output), markup=False)


def _measured_by(folder: Path) -> str:
    """What the turn reward of a run's evaluations is, as its config says; "unknown" without one."""
    file = folder / "config.yaml"
    if not file.is_file():
        return "unknown"
    config = load_config(file)
    if config.eval.reward or config.eval.reward_options:
        return _told(config.eval.reward or "weighted_metric", config.eval.reward_options)
    judged = (
        "adaptive_metric",
        "general_ruler",
        "custom_ruler",
        "adaptive_ruler",
        "mixture",
    )  # evaluated by the default
    return (
        _told("weighted_metric", {})
        if config.reward in judged
        else _told(config.reward, config.reward_options)
    )


def _told(reward: str, options: Mapping[str, Any]) -> str:
    return f"{reward} {json.dumps(options)}" if options else reward


def _name(folder: Path, system: str) -> str:
    return folder.resolve().name if system == "after" else f"{folder.resolve().name} {system}"
