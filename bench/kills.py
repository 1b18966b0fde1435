"""Runs that are killed, again and again, and go on."""

from __future__ import annotations

import signal
from pathlib import Path

from bench.trials import LIVES, Tally, Trials

POINTS = (
    "sampling",
    "backward",
    "metrics",
    "save.write",
    "save.rename",
    "folder.write",
    "folder.rename",
    "folder.old",
)
"""The fault points of `engine/faults.py` that a run on Linux passes."""


def kills(trials: Trials, count: int) -> Tally:
    """SIGKILL at a random time, and at each file operation or stage, in turn.

    A run lives up to `LIVES` times; then it may end, and is compared.
    """
    tally = Tally("SIGKILL, by turns at a random time and at a stage or file operation")
    while tally.trials < count:
        runs = trials.scratch / f"killed-{tally.runs}"
        for _ in range(min(LIVES, count - tally.trials)):
            if not _killed(trials, runs, tally):
                break
        trials.compare(runs, trials.tiny.train(runs).end(), tally)
    return tally


def _killed(trials: Trials, runs: Path, tally: Tally) -> bool:
    """One life of a run. False where it ended before it was killed."""
    if tally.trials % 2:
        point = POINTS[tally.trials // 2 % len(POINTS)]
        end = trials.tiny.train(runs, fault=f"{point}:{trials.random.randint(1, 3)}").end()
    else:
        point = "random time"
        child = trials.tiny.train(runs)
        trials.moment()
        child.kill()
        end = child.end()
    if end.code != -signal.SIGKILL:
        return False
    tally.trials += 1
    tally.note(point)
    return True
