"""What the parts of `bench.reliability` share: a tiny run, how it ends undisturbed, and a tally of trials."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.forked import Ended
from bench.records import say
from bench.tiny_run import TinyRun, differences

LIVES = 6
"""Kills of one run, before it may end and is compared."""


@dataclass
class Tally:
    """Trials of one part, the runs that were compared after them, what became of both, and each failure."""

    what: str
    trials: int = 0
    runs: int = 0
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def note(self, outcome: str) -> None:
        """Count an outcome."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def fail(self, text: str) -> None:
        """Note a failure."""
        self.failures.append(text)
        say(f"  FAILED: {text}")


class Trials:
    """``scratch``: an empty folder; ``random``: all choices; ``reference``: a run that nothing disturbed;
    ``duration``: seconds of a run to its end.
    """

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch, self.random = scratch, random.Random(seed)
        self.tiny = TinyRun(scratch / "tiny")
        self.duration = 0.0
        with self.timed():
            self.reference = self.tiny.finished(scratch / "reference")
        say(f"an undisturbed run takes {self.duration:.1f} s")

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Take the seconds of the block, an undisturbed run, as its duration."""
        began = time.perf_counter()
        yield
        self.duration = time.perf_counter() - began

    def moment(self) -> None:
        """Wait for a random part of a run."""
        time.sleep(self.random.uniform(0, self.duration))

    def compare(self, runs: Path, end: Ended, tally: Tally, rounded: bool = False) -> None:
        """Compare the run in ``runs``, which ended so, with the undisturbed one; removes it."""
        tally.runs += 1
        if end.code != 0:
            tally.fail(f"{runs.name}: --resume ended with {end.code}: {end.errors[-400:]}")
        elif found := differences(runs / "tiny", self.reference, rounded):
            tally.fail(f"{runs.name}: differs from an undisturbed run in {', '.join(found)}")
        else:
            tally.note("run equal")
        shutil.rmtree(runs)
