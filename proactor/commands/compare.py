"""``proactor compare``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from proactor.commands.common import all_in_environment, console, run_folder


def compare(
    first: Annotated[
        Path, typer.Argument(metavar="RUN_A", help="a run's folder, or its config", show_default=False)
    ],
    second: Annotated[
        Path, typer.Argument(metavar="RUN_B", help="the run to compare with it", show_default=False)
    ],
    system: Annotated[
        str,
        typer.Option(help="after, before, a trivial policy; in an environment a scripted player (random)"),
    ] = "after",
    against: Annotated[str, typer.Option(help="system of RUN_A, if another than RUN_B's")] = "",
    resamples: Annotated[
        int, typer.Option(min=100, max=100_000, help="number of bootstrap resamples")
    ] = 2000,
    output: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="write all numbers to this file")
    ] = None,
) -> None:
    """Compare two runs on the same test dialogues, paired by dialogue: all metrics, by tool, by domain.

    Two runs in an environment are paired by test task. RUN_A may be RUN_B with --against random.
    """
    folders = (run_folder(first), run_folder(second))
    if all_in_environment(folders):
        _compare_episodes(folders, (against or system, system), resamples, output)
        return
    from proactor.engine import atomic_file
    from proactor.evaluation.paired import compare_runs, paired_tables
    from proactor.evaluation.store import find_system, load_comparable, notes_of
    from proactor.scoring.bootstrap import KEYS
    from proactor.training.record import RunRecord

    (dialogues, one), (other_dialogues, other) = load_comparable([f / "evaluations.json" for f in folders])
    systems = (against or system, system)
    names = (_name(folders[0], systems[0]), _name(folders[1], systems[1]))
    runs = (
        find_system(one, systems[0], folders[0]),
        find_system(other, systems[1], folders[1]),
    )
    comparison = compare_runs(names, (dialogues, other_dialogues), runs, resamples=resamples)
    for table in paired_tables(comparison, KEYS):
        console.print(table)
    for note in notes_of(runs):
        console.print(note, soft_wrap=True, markup=False)
    rewards = [RunRecord.read(folder).evaluation_reward or "unknown" for folder in folders]
    if rewards[0] != rewards[1]:
        console.print(
            f"turn reward is not one measure here: {names[0]} by {rewards[0]}, {names[1]} by {rewards[1]} "
            "(eval.reward makes them one)",
            markup=False,
        )
    if output is not None:
        atomic_file(output, (comparison.model_dump_json(indent=1) + "\n").encode())
        console.print(str(output), markup=False)


def _compare_episodes(
    folders: tuple[Path, Path], systems: tuple[str, str], resamples: int, output: Path | None
) -> None:
    """`compare` of two runs in an environment."""
    from proactor.engine import atomic_file
    from proactor.methods.user_metrics import KEYS
    from proactor.tables import metrics_table
    from proactor.training.episode_pairs import compare_episodes

    names = [_name(folder, system) for folder, system in zip(folders, systems, strict=True)]
    if names[0] == names[1]:
        names = [f"{name} ({folder})" for name, folder in zip(names, folders, strict=True)]
    result = compare_episodes(folders, systems, resamples=resamples)
    sides = dict(zip(names, result["systems"], strict=True))
    count = sum(result["failed"])
    failed = f" ({count} episode{'s' if count > 1 else ''} failed)" if count else ""
    title = f"{result['tasks']} test tasks{failed}; change: {names[1]} - {names[0]}"
    console.print(metrics_table(title, sides, KEYS, result["difference"]))
    console.print(_verdict(names[0], result["difference"]["score"]), soft_wrap=True, markup=False)
    if output is not None:
        atomic_file(output, (json.dumps({**result, "systems": sides}, indent=1) + "\n").encode())
        console.print(str(output), markup=False)


def _verdict(first: str, change: dict[str, float | None]) -> str:
    """What the interval of the change in score says."""
    estimate, low, high = (change[key] or 0.0 for key in ("estimate", "low", "high"))
    said = "above" if low > 0 else "below" if high < 0 else "around"
    shown = "" if said != "around" else ": no difference is shown"
    return f"score against {first}: {estimate:+.3f} [{low:+.3f}, {high:+.3f}], {said} 0{shown}"


def _name(folder: Path, system: str) -> str:
    """What a system is called in the table: its run, and the system unless that is "after"."""
    return folder.resolve().name if system == "after" else f"{folder.resolve().name} {system}"
