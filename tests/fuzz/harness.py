"""Runs seeded cases of wrong input and counts how they end.

A case may end in a value, or in a refusal: a `ProactorError`, or an OSError that names its file, which the
command line prints as one line. Anything else is a failure, printed with its seed: a bare exception (another
one, or a message of several lines), a hang (more than `SECONDS` of computing or `BYTES` of memory), or a
silent change (what has a checksum is read, but with other values than were saved).

    make fuzz                       2,000 cases a class, and a table of their ends
    make fuzz FUZZ=100000           more
    FUZZ=1 FUZZ_FROM=17 pytest tests/fuzz -k configs      case 17 of one class
"""

from __future__ import annotations

import faulthandler
import os
import resource
import signal
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from types import FrameType

from proactor.engine import ProactorError

COUNT = int(os.environ.get("FUZZ", "0"))
FIRST = int(os.environ.get("FUZZ_FROM", "0"))
SECONDS = 20
"""Computing time of one case; the clock on the wall would also count what other processes take."""
WAIT = 900
"""Seconds after which a case that waits, as for a pipe, ends the process with a traceback."""
BYTES = 3 * 2**30
"""Memory that one case may add to the highest so far."""
SHOWN = 5

GOOD, BAD = ("value", "refused"), ("exception", "hang", "silent change")
ENDS: dict[str, Counter[str]] = {}
"""By class: how many cases ended in each of `GOOD` and `BAD`."""
ENOUGH = 50
"""Cases of a class, among which one should end in a value: else something besides the spoiled is refused."""

Case = Callable[[Random, Path], object]


class Hang(BaseException):
    """A case that computes for too long; no handler of the program takes it for an error of its own."""


class SilentChange(Exception):
    """Read, but not what was saved, and nothing said so."""


def fuzz(name: str, case: Case, few: int, *refusals: type[Exception]) -> None:
    """Run ``few`` cases, or `COUNT`; ``case(draw, folder)`` makes its input in an empty folder and reads it.

    ``refusals``: further exceptions that are meant. Fails with the seeds of what ended otherwise, and where
    none of many cases ended in a value.
    """
    ends = ENDS.setdefault(name, Counter())
    failures = []
    for seed in range(FIRST, FIRST + (COUNT or few)):
        with tempfile.TemporaryDirectory() as folder:
            end, what = _run(case, Random(f"{name} {seed}"), Path(folder), refusals)
        ends[end] += 1
        if end in BAD:
            failures.append(f"--- {name}: FUZZ=1 FUZZ_FROM={seed}\n{what}")
    assert not failures, "\n".join([f"{len(failures)} of {sum(ends.values())} cases:", *failures[:SHOWN]])
    assert ends["value"] or sum(ends.values()) < ENOUGH, f"{name}: no case ended in a value"


def _run(case: Case, draw: Random, folder: Path, refusals: tuple[type[Exception], ...]) -> tuple[str, str]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        with _watched():
            case(draw, folder)
    except (ProactorError, *refusals) as error:
        what = str(error)
        if not what or not what.isprintable():
            return "exception", f"a message that is not one line: {what[:200]!r}"
        end = "refused"
    except OSError as error:
        if error.filename is None:
            return "exception", _short(error)
        end = "refused"
    except SilentChange as error:
        return "silent change", _short(error)
    except Hang as error:
        return "hang", _short(error)
    except Exception as error:  # noqa: BLE001 (whatever escapes is what is looked for)
        return "exception", _short(error)
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # what Rust libraries raise when they break
            raise
        return "exception", _short(error)
    else:
        end = "value"
    added = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    return ("hang", f"{added} bytes of memory") if added > BYTES else (end, "")


def _short(error: BaseException) -> str:
    lines = "".join(traceback.format_exception(error)).splitlines()
    return "\n".join(line[:300] for line in [*lines[:4], "  …", *lines[-14:]])


@contextmanager
def _watched() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {SECONDS} s of computing")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    faulthandler.dump_traceback_later(WAIT, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGPROF, before)


def table() -> list[str]:
    """The counts by class, as lines of a Markdown table."""
    columns = ("read as a value", "refused in one line", "bare exceptions", "hangs", "silent changes")
    lines = [f"| class | cases | {' | '.join(columns)} |", f"| --- |{' ---: |' * (1 + len(columns))}"]
    total = sum(ENDS.values(), Counter[str]())
    for name, ends in [*sorted(ENDS.items()), ("all", total)]:
        counts = (sum(ends.values()), *(ends[end] for end in (*GOOD, *BAD)))
        lines.append(f"| {name} | {' | '.join(f'{count:,}' for count in counts)} |")
    return lines
