"""Kills, full disks, two writers, dead and stuck ranks: does a run end as if nothing had happened?

    python -m bench.reliability                          # the whole campaign
    python -m bench.reliability kills=12 disks=7         # some parts, or fewer trials

Each trial disturbs a tiny run (`bench.tiny_run`, deterministic mode), goes on with ``--resume`` and compares
adapters, metrics and samples with an undisturbed run, bit for bit. Exit code 1 where one differs, and where a
command ended with more than one line. The record keeps the parts that are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

from bench.full_disks import disks
from bench.kills import kills
from bench.lost_ranks import deaths, rollouts, stuck
from bench.records import add_results, record_file, say, stamp, write_record
from bench.torn_reads import reads
from bench.trials import Tally, Trials

PARTS: dict[str, tuple[Callable[[Trials, int], Tally], int]] = {
    "kills": (kills, 200),
    "disks": (disks, 20),
    "reads": (reads, 1000),
    "deaths": (deaths, 30),
    "stuck": (stuck, 5),
    "rollouts": (rollouts, 30),
}
"""Each part with the trials of a whole campaign."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the campaign, print a line a part and write its record; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.reliability", description=__doc__.split("\n")[0])
    names = ", ".join(PARTS)
    parser.add_argument("parts", nargs="*", type=part_of, metavar="PART[=TRIALS]", help=names)
    parser.add_argument("--seed", type=int, default=0)
    add_results(parser)
    options = parser.parse_args(argv)
    words = sys.argv[1:] if argv is None else argv
    made = {**stamp(), "command": shlex.join(["python", "-m", "bench.reliability", *words])}
    failed = 0
    with tempfile.TemporaryDirectory() as scratch:
        trials = Trials(Path(scratch), options.seed)
        for name, count in options.parts or map(part_of, PARTS):
            say(f"{name} …")
            began = time.perf_counter()
            tally = PARTS[name][0](trials, count)
            row = {**made, **asdict(tally), "seconds": round(time.perf_counter() - began)}
            failed += add(options.results, name, row)
    return int(failed > 0)


def part_of(word: str) -> tuple[str, int]:
    """A part as the command line names it: its name and trials, by default those of a whole campaign."""
    name, _, count = word.partition("=")
    if name not in PARTS or (count and not count.isdecimal()):
        raise argparse.ArgumentTypeError(f"{word!r}: {', '.join(PARTS)}, or one of them with =TRIALS")
    return name, int(count or PARTS[name][1])


def add(results: Path, name: str, row: dict[str, Any]) -> int:
    """Put a part into the record, and print it; returns the number of its failures."""
    failed = row["failed"] = len(row["failures"])
    row["ends"] = ", ".join(f"{outcome} {times}" for outcome, times in row["outcomes"].items())
    file = record_file(results, row["machine"], "reliability")
    record: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {**stamp(), "parts": {}}
    record["parts"][name] = row
    say(f"record: {write_record(results, 'reliability', record)}")
    print(f"{name}: {row['trials']} trials, {failed} failed, {row['seconds']} s: {row['ends']}", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
