"""Standard output whose reader may leave (``proactor … | head``): training goes on, everything else ends.

Standard error that cannot be written changes nothing: the exit code is the same.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import TextIO

from rich.console import Console

READER_LEFT = 128 + signal.SIGPIPE
"""The exit code of a command whose reader left, as shells know it."""


class Output(Console):
    """A console whose reader may leave: it is then silent, and ends the command unless ``outlives``."""

    outlives = False

    def on_broken_pipe(self) -> None:
        """Called by rich, while it prints, when nobody reads any more."""
        silence(sys.stdout)
        if not self.outlives:
            raise SystemExit(READER_LEFT)


def silence(stream: TextIO) -> None:
    """Send what is printed there from now on, or still buffered, nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


def complain(text: str) -> None:
    """Print a line on standard error, if it is open and can be written."""
    if sys.stderr is None:
        return
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        silence(sys.stderr)


def flush() -> None:
    """Print what is still buffered. Ends the process with `READER_LEFT` where nobody reads it."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)
        raise SystemExit(READER_LEFT) from None
