"""The command line: ``proactor train|evaluate|…``. Each command is a few lines around the library, in a file
of `proactor.commands`.

Input that cannot work is told in one line on stderr with exit code 2; a run that was asked to stop ends with
128 + the signal, saved.
"""

from __future__ import annotations

import sys

import typer

from proactor.commands import annotate, calibrate, catalog, compare, evaluate, report, train
from proactor.config import ConfigError
from proactor.engine import EngineError
from proactor.files import SourceError
from proactor.progress import Stopped
from proactor.rewards import RewardError

app = typer.Typer(
    help="Train agents that decide at every turn whether to act, on what, and when.",
    no_args_is_help=True,
    add_completion=False,
)
for command in (
    catalog.catalog,
    annotate.annotate,
    train.train,
    evaluate.evaluate,
    report.report,
    calibrate.calibrate,
    compare.compare,
    evaluate.sample,
    report.pool,
    train.pretrain,
    train.demo,
):
    app.command()(command)


def main() -> None:
    """Entry point of ``proactor`` and ``python -m proactor.cli`` (the latter under torchrun)."""
    try:
        app()
    except (ConfigError, EngineError, RewardError, SourceError) as error:
        print(f"proactor: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stopped:
        print(f"proactor: {stopped}", file=sys.stderr)
        raise SystemExit(128 + stopped.signal) from None


if __name__ == "__main__":
    main()
