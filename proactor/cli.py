"""The command line: ``proactor train|evaluate|…``. Each command is a file of `proactor.commands`.

A refusal (`ProactorError`, or an `OSError` with a file name or of a full disk) is one line on stderr and exit
code 2. Anything else is a bug and shows its traceback. A run that is asked to stop saves and ends with 128 +
the signal; so does a command whose output nobody reads any more.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from proactor import __version__
from proactor.commands import (
    agent,
    annotate,
    calibrate,
    catalog,
    compare,
    doctor,
    evaluate,
    import_,
    plan,
    profile,
    report,
    review,
    serve,
    train,
)
from proactor.commands.profile import profiled
from proactor.engine import ProactorError, printable
from proactor.output import READER_LEFT, complain, flush
from proactor.progress import Stopped

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a full disk: never a bug, wherever they come from."""

app = typer.Typer(
    help="Train agents that decide at every turn whether to act, on what, and when.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,  # they may hold a key or a whole corpus
    context_settings={"help_option_names": ["-h", "--help"]},  # the commands inherit them
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"proactor {__version__}")
        raise typer.Exit


@app.callback()
def options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version")
    ] = False,
    profile: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="profile the command: a trace and tables into this folder"),
    ] = None,
) -> None:
    """Options of `proactor` itself."""
    if profile is not None:
        context.with_resource(profiled(profile))


for command in (
    catalog.catalog,
    import_.import_,
    annotate.annotate,
    plan.plan,
    review.review,
    train.train,
    evaluate.evaluate,
    report.report,
    calibrate.calibrate,
    agent.run,
    agent.shadow,
    compare.compare,
    doctor.doctor,
    profile.profile,
    evaluate.sample,
    serve.serve,
    report.pool,
    train.pretrain,
    train.demo,
):
    app.command(command.__name__.strip("_"))(command)


def main() -> None:
    """Entry point of ``proactor`` and ``python -m proactor.cli``, which torchrun needs."""
    if "RANK" in os.environ:  # read when torch is imported: it tells of a lost rank in pages of C++ frames
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")
    try:
        try:
            app()
        finally:
            flush()
    except ProactorError as refusal:
        fail(str(refusal))
    except OSError as error:
        if error.filename is None and error.errno not in FULL:
            raise
        fail(f"{error.filename or 'output cannot be written'}: {error.strerror}")
    except SystemExit as end:
        if isinstance(end.__context__, BrokenPipeError):  # typer makes it exit code 1
            raise SystemExit(READER_LEFT) from None
        raise
    except Stopped as stopped:
        complain(f"proactor: {stopped}")
        raise SystemExit(128 + stopped.signal) from None


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with code 2."""
    complain(f"proactor: {printable(message)}")
    raise SystemExit(2) from None


if __name__ == "__main__":
    main()
