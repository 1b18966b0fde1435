"""Benchmarks, one script per claim; each writes a record into `bench/results/`.

Comparisons check that both sides compute the same before they time anything. Run as ``python -m bench.NAME``,
a script that lacks the extra, the data or a file ends in one line.
"""

from __future__ import annotations

import sys
from types import TracebackType


def _print_refusal(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """One line for what the caller can mend, a traceback for a bug."""
    from proactor.engine import ProactorError

    extra = ("accelerate", "datasets", "peft", "trl")
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] in extra:
        print(f"bench: {error.name} is not installed: pip install -e '.[bench]'", file=sys.stderr)
    elif isinstance(error, ProactorError):
        print(f"bench: {error}", file=sys.stderr)
    elif isinstance(error, OSError) and error.filename is not None:
        print(f"bench: {error.filename}: {error.strerror}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


if sys.argv[:1] == ["-m"]:  # what `python -m` shows while it looks for the module
    sys.excepthook = _print_refusal
