"""Kills, full disks, two writers, dead and stuck ranks: does a run end as if nothing had happened?

    python -m bench.reliability                          # the whole campaign
    python -m bench.reliability --kills 12 --disks 7 --reads 100 --deaths 3 --stuck 1

Each trial disturbs a tiny run (`bench.tiny_run`, deterministic mode), goes on with ``--resume`` and compares
adapters, metrics and samples with an undisturbed run, bit for bit. Exit code 1 where one differs, and where a
command ended with more than one line. Children are forked, so that torch is imported once.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

from bench.full_disks import disks
from bench.kills import kills
from bench.lost_ranks import deaths, stuck
from bench.records import add_results, say, stamp, write_record
from bench.torn_reads import reads
from bench.trials import Tally, Trials

PARTS: dict[str, tuple[Callable[[Trials, int], Tally], int]] = {
    "kills": (kills, 200),
    "disks": (disks, 20),
    "reads": (reads, 1000),
    "deaths": (deaths, 30),
    "stuck": (stuck, 5),
}
"""Each part with the trials of a whole campaign."""


def main(argv: list[str] | None = None) -> int:
    """Run the campaign, print its table and write its record; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description=__doc__.split("\n")[0])
    for name, (part, count) in PARTS.items():
        parser.add_argument(f"--{name}", type=int, default=count, help=(part.__doc__ or "").split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    add_results(parser)
    options = parser.parse_args(argv)
    record = {**stamp(), "command": command(argv), "seed": options.seed, "parts": {}}
    with tempfile.TemporaryDirectory() as scratch:
        trials = Trials(Path(scratch), options.seed)
        for name, (part, _) in PARTS.items():
            if count := getattr(options, name):
                say(f"{name} …")
                began = time.perf_counter()
                tally = part(trials, count)
                seconds = round(time.perf_counter() - began, 1)
                record["parts"][name] = {**asdict(tally), "failed": len(tally.failures), "seconds": seconds}
    for name, row in record["parts"].items():
        row["ends"] = ", ".join(f"{outcome} {times}" for outcome, times in row["outcomes"].items())
        counts = f"{row['trials']:>5} trials, {row['failed']} failed, {row['seconds']:.0f} s"
        print(f"{name:<6} {counts}: {row['ends']}")
    say(f"record: {write_record(options.results, 'reliability', record)}")
    return int(any(row["failures"] for row in record["parts"].values()))


def command(argv: list[str] | None) -> str:
    """The command line of this run."""
    return shlex.join(["python", "-m", "bench.reliability", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
