"""``proactor compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proactor.bootstrap import KEYS
from proactor.commands.common import console
from proactor.config import ConfigError
from proactor.config_file import load_config


def compare(
    first: Annotated[Path, typer.Argument(metavar="RUN_A", help="a run's folder, or its config", show_default=False)],
    second: Annotated[Path, typer.Argument(metavar="RUN_B", help="the run to compare with it", show_default=False)],
    system: Annotated[str, typer.Option(help="of each run: after, before, or a trivial policy")] = "after",
    against: Annotated[str, typer.Option(help="the first run's system, when it is another one")] = "",
    resamples: Annotated[int, typer.Option(min=100, help="of the bootstrap")] = 2000,
    output: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write everything there")] = None,
) -> None:
    """What RUN_B does better or worse than RUN_A on the same test dialogues, paired by dialogue: every metric, by tool and by domain."""
    from proactor.evaluations import load_evaluations, write_whole
    from proactor.paired import paired, paired_tables, systems_named

    folders = [load_config(run).folder if run.is_file() else run for run in (first, second)]
    try:
        loaded = [load_evaluations(folder / "evaluations.json") for folder in folders]
        wanted = (against or system, system)
        runs = [systems_named(named, of, str(f)) for (_, named), of, f in zip(loaded, wanted, folders, strict=True)]
        names = (_name(folders[0], wanted[0]), _name(folders[1], wanted[1]))
        found = paired(names, (loaded[0][0], loaded[1][0]), (runs[0], runs[1]), resamples=resamples)
    except (
        ValueError
    ) as error:  # a file that is missing or damaged, or runs that cannot be paired: the message names which
        raise ConfigError(str(error)) from error
    for table in paired_tables(found, KEYS):
        console.print(table)
    if output is not None:
        write_whole(output, (found.model_dump_json(indent=1) + "\n").encode())
        console.print(str(output), markup=False)


def _name(folder: Path, system: str) -> str:
    return folder.resolve().name if system == "after" else f"{folder.resolve().name} {system}"
