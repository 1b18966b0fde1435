"""Kills, full disks, two writers, dead and stuck ranks: does a run end as if nothing had happened?

    python -m bench.reliability                          # the whole campaign
    python -m bench.reliability --kills 20 --disks 6 --reads 100 --deaths 3 --stuck 1

Each trial disturbs a tiny run (`bench.tiny_run`, deterministic mode), goes on with ``--resume`` and compares
adapters, metrics and samples with an undisturbed run, bit for bit. Exit code 1 where one differs, and where a
command ended with more than one line. Children are forked, so that torch is imported once.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

from bench.forked import Child, Ended
from bench.records import add_results, say, stamp, write_record
from bench.tiny_run import TinyRun, differences, refused

POINTS = (
    "sampling",
    "backward",
    "metrics",
    "save.write",
    "save.rename",
    "folder.write",
    "folder.rename",
)
"""The fault points of `engine/faults.py` that a run on Linux passes."""

LIVES = 6
"""Kills of one run, before it may end and is compared."""


@dataclass
class Tally:
    """A part of the campaign: trials, what became of them, and each failure in words."""

    trials: int = 0
    runs: int = 0
    how: str = ""
    outcomes: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def note(self, outcome: str) -> None:
        """Count an outcome."""
        self.outcomes[outcome] = self.outcomes.get(outcome, 0) + 1

    def fail(self, text: str) -> None:
        """Note a failure."""
        self.failures.append(text)
        say(f"  FAILED: {text}")


class Campaign:
    """The parts of the campaign. ``scratch``: a folder that is removed afterwards."""

    def __init__(self, scratch: Path, seed: int) -> None:
        self.scratch, self.random = scratch, random.Random(seed)
        self.tiny = TinyRun(scratch / "tiny")
        began = time.perf_counter()
        self.reference = self.tiny.finished(scratch / "reference")
        self.duration = time.perf_counter() - began
        say(f"an undisturbed run takes {self.duration:.1f} s")

    # -- kills ---

    def kills(self, count: int) -> Tally:
        """SIGKILL in turn at a random time and at a file operation or stage; `LIVES` kills a run."""
        tally = Tally(how="every second one at a fault point, the others at a random time")
        while tally.trials < count:
            runs = self.scratch / f"killed-{tally.runs}"
            for _ in range(min(LIVES, count - tally.trials)):
                end = self._killed(runs, tally)
                if end.code != -signal.SIGKILL:
                    break
                tally.trials += 1
            self._finish(runs, tally)
        return tally

    def _killed(self, runs: Path, tally: Tally) -> Ended:
        """One life of a run that is meant to be killed; it may end before."""
        if tally.trials % 2:
            point = POINTS[tally.trials // 2 % len(POINTS)]
            end = self.tiny.train(runs, fault=f"{point}:{self.random.randint(1, 3)}").end()
        else:
            point = "a random time"
            child = self.tiny.train(runs)
            time.sleep(self.random.uniform(0, self.duration))
            child.kill()
            end = child.end()
        if end.code == -signal.SIGKILL:
            tally.note(point)
        return end

    def _finish(self, runs: Path, tally: Tally, start: Callable[[], Ended] | None = None, **how: Any) -> None:
        """Let a run end undisturbed and compare it."""
        end = start() if start is not None else self.tiny.train(runs).end()
        tally.runs += 1
        if end.code != 0:
            tally.fail(f"{runs.name}: --resume ended with {end.code}: {end.errors[-400:]}")
        elif found := differences(runs / "tiny", self.reference, **how):
            tally.fail(f"{runs.name}: differs from an undisturbed run in {', '.join(found)}")
        else:
            tally.note("equal")
        shutil.rmtree(runs)

    # -- full disks ---

    def disks(self, count: int) -> Tally:
        """Each command in turn on a disk with a random number of bytes left; then with room."""
        place = self.scratch / "disk"
        mounted = mount(place)
        tally = Tally(how="a tmpfs that is filled" if mounted else "RLIMIT_FSIZE: every file is limited")
        names = ("train", "evaluate", "calibrate", "report", "annotate", "catalog")
        try:
            for i in range(count):
                self._full_disk(names[i % len(names)], place, mounted, tally)
        finally:
            if mounted:
                subprocess.run(["umount", str(place)], check=False)
        return tally

    def _full_disk(self, name: str, place: Path, mounted: bool, tally: Tally) -> None:
        runs = place / f"{tally.trials}"
        if name in ("train", "annotate", "catalog"):
            self.tiny.config(runs)
        else:
            self.tiny.copy(self.reference, runs)
        words = self._words(name, runs)
        room = self.random.randrange(0, 120_000 if name == "train" else 24_000)
        filler = place / "filler"
        if mounted:
            fill(filler, room)
        end = self.tiny.command(*words, limit=None if mounted else room).end()
        filler.unlink(missing_ok=True)
        tally.trials += 1
        tally.note("fitted" if end.code == 0 else "refused")
        if end.code != 0 and not refused(end):
            tally.fail(f"{name} with {room} bytes left: exit code {end.code}: {end.errors[-400:]}")
        if name == "train":
            self._finish(runs, tally)
            return
        again = self.tiny.command(*words, *(["--force"] if name == "catalog" else [])).end()
        if again.code != 0:
            tally.fail(f"{name} with room again: exit code {again.code}: {again.errors[-400:]}")
        shutil.rmtree(runs)

    def _words(self, name: str, runs: Path) -> tuple[str | Path, ...]:
        config = self.tiny.config(runs)
        catalog = runs / "catalog.json"
        return {
            "train": ("train", config, "--resume"),
            "evaluate": ("evaluate", config),
            "calibrate": ("calibrate", config),
            "report": ("report", runs / "tiny"),
            "annotate": ("annotate", "synthetic", "--limit", "4", "--out", runs / "annotated"),
            "catalog": ("catalog", self.tiny.tools, "-o", catalog),
        }[name]

    # -- writers and readers ---

    def reads(self, count: int) -> Tally:
        """A state read while two processes replace it: every read is whole and one of theirs."""
        tally = Tally(how="two processes replace one state; a second train is refused")
        file = self.scratch / "shared" / "state"
        log = self.scratch / "shared" / "log"
        writers = [Child(log / f"writer{i}", lambda i=i: write_for_ever(file, i)) for i in (1, 2)]  # type: ignore[misc]
        try:
            end = Child(log / "reader", lambda: read_often(file, count)).end(patience=3600)
        finally:
            for writer in writers:
                writer.kill()
                writer.end()
        tally.trials = count
        if end.code != 0:
            tally.fail(f"a read failed: {end.errors[-400:]}")
        else:
            seen = [int(part) for part in end.output.split()]
            tally.outcomes |= {"of writer 1": seen[0], "of writer 2": seen[1]}
        self._second_writer(tally)
        return tally

    def _second_writer(self, tally: Tally) -> None:
        runs = self.scratch / "two-writers"
        first = self.tiny.train(runs)
        lock = runs / "tiny" / ".writer.lock"
        while not (lock.exists() and lock.read_text()):
            time.sleep(0.01)
        end = self.tiny.train(runs).end()
        if not (refused(end) and str(first.pid) in end.errors):
            tally.fail(f"a second writer ended with {end.code}: {end.errors[-400:]}")
        else:
            tally.note("second writer refused")
        self._finish(runs, tally, first.end)

    # -- ranks ---

    def ranks(self, count: int, number: signal.Signals, timeout: float) -> Tally:
        """One of two ranks is killed or stopped at a random time; the other must end with one line."""
        tally = Tally(how=f"{number.name} to one of two ranks at a random time; rank_timeout {timeout:g} s")
        self.tiny.timeout = timeout
        while tally.trials < count:
            runs = self.scratch / f"{number.name}-{tally.runs}"
            for _ in range(min(LIVES, count - tally.trials)):
                if not self._lost_rank(runs, number, tally):
                    break
            self._finish(runs, tally, lambda runs=runs: self._both(runs), rounded=True)  # type: ignore[misc]
        self.tiny.timeout = 60.0
        return tally

    def _lost_rank(self, runs: Path, number: signal.Signals, tally: Tally) -> bool:
        """Whether a rank was lost before the run ended."""
        ranks = self.tiny.train_ranks(runs)
        lost = self.random.randrange(2)
        time.sleep(self.random.uniform(0, 2 * self.duration))
        ranks[lost].kill(number)
        other = ranks[1 - lost].end()
        if number == signal.SIGSTOP:
            ranks[lost].kill()
        gone = ranks[lost].end()
        if gone.code == 0 or other.code == 0:  # it was lost after the last meeting
            return False
        tally.trials += 1
        tally.note(f"rank {lost} lost")
        named = f"rank {lost}" in other.errors or "joined within" in other.errors
        if not (refused(other) and named):
            tally.fail(f"rank {lost} lost: the other ended with {other.code}: {other.errors[-400:]}")
        return True

    def _both(self, runs: Path) -> Ended:
        """Both ranks to the end; how the worse one ended."""
        ends = [child.end() for child in self.tiny.train_ranks(runs)]
        return max(ends, key=lambda end: end.code != 0)


def write_for_ever(file: Path, number: int) -> None:
    """Replace ``file`` by a state that is full of ``number``, again and again."""
    import torch

    from proactor.engine.state import write_state

    while True:
        write_state(file, {"values": torch.full((4096,), float(number))}, {"number": number})


def read_often(file: Path, count: int) -> None:
    """Read a state ``count`` times; prints how many were of writer 1 and 2."""
    from proactor.engine.state import read_state

    while not file.exists():
        time.sleep(0.01)
    while read_state(file)[1]["number"] != 2:  # the first writer began first
        pass
    seen = Counter[int]()
    for _ in range(count):
        tensors, record = read_state(file)
        assert (tensors["values"] == record["number"]).all(), "a mixture"
        seen[record["number"]] += 1
    print(seen[1], seen[2])


def mount(place: Path) -> bool:
    """Mount a tmpfs of 8 MiB; False where this user may not."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    return os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0


def fill(filler: Path, room: int) -> None:
    """Fill a file system but for about ``room`` bytes."""
    space = os.statvfs(filler.parent)
    with filler.open("wb") as file:
        file.write(bytes(max(0, space.f_bavail * space.f_frsize - room)))


def main(argv: list[str] | None = None) -> int:
    """Run the campaign, print its table and write its record; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--disks", type=int, default=20, help="full disks")
    parser.add_argument("--reads", type=int, default=1000, help="reads of a state that two processes write")
    parser.add_argument("--deaths", type=int, default=30, help="ranks killed")
    parser.add_argument("--stuck", type=int, default=5, help="ranks stopped")
    parser.add_argument("--seed", type=int, default=0)
    add_results(parser)
    options = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        campaign = Campaign(Path(scratch), options.seed)
        parts: dict[str, Callable[[], Tally]] = {
            "kills": lambda: campaign.kills(options.kills),
            "disks": lambda: campaign.disks(options.disks),
            "reads": lambda: campaign.reads(options.reads),
            "deaths": lambda: campaign.ranks(options.deaths, signal.SIGKILL, 20.0),
            "stuck": lambda: campaign.ranks(options.stuck, signal.SIGSTOP, 8.0),
        }
        tallies = {name: timed(name, part) for name, part in parts.items() if getattr(options, name)}
    print_table(tallies)
    record = {**stamp(), "seed": options.seed, "parts": {k: asdict(t) for k, t in tallies.items()}}
    for name, tally in tallies.items():
        record["parts"][name]["failed"] = len(tally.failures)
    say(f"record: {write_record(options.results, 'reliability', record)}")
    return int(any(tally.failures for tally in tallies.values()))


def timed(name: str, part: Callable[[], Tally]) -> Tally:
    """A part of the campaign with its seconds."""
    say(f"{name} …")
    began = time.perf_counter()
    tally = part()
    tally.seconds = round(time.perf_counter() - began, 1)
    return tally


def print_table(tallies: dict[str, Tally]) -> None:
    """A row for each part."""
    print(f"{'part':<8} {'trials':>6} {'runs':>5} {'failed':>6} {'seconds':>8}  outcomes")
    for name, tally in tallies.items():
        outcomes = ", ".join(f"{key} {value}" for key, value in tally.outcomes.items())
        print(
            f"{name:<8} {tally.trials:>6} {tally.runs:>5} {len(tally.failures):>6} {tally.seconds:>8.1f}  "
            f"{outcomes}"
        )


if __name__ == "__main__":
    sys.exit(main())
