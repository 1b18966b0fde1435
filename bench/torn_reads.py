"""A state that is read while two processes replace it, and a run that a second process would write."""

from __future__ import annotations

import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from bench.forked import Child
from bench.tiny_run import refused
from bench.trials import Tally, Trials
from proactor.engine.state import read_state, write_state

PATIENCE = 3600.0


def reads(trials: Trials, count: int) -> Tally:
    """Reads of a state that two processes replace: each is whole, and one of theirs."""
    tally = Tally("reads of a state that two processes replace; a second writer of a run", trials=count)
    folder = trials.scratch / "shared"
    file = folder / "state"
    writers = [Child(folder / f"log/writer{i}", partial(write_for_ever, file, i)) for i in (1, 2)]
    try:
        end = Child(folder / "log/reader", partial(read_often, file, count)).end(PATIENCE)
    finally:
        for writer in writers:
            writer.kill()
            writer.end()
    if end.code != 0:
        tally.fail(f"a read failed: {end.errors[-400:]}")
    else:
        tally.outcomes = {f"writer {i}'s": int(seen) for i, seen in enumerate(end.output.split(), start=1)}
    _second_writer(trials, tally)
    return tally


def write_for_ever(file: Path, number: int) -> None:
    """Replace ``file`` by a state that is full of ``number``, again and again."""
    while True:
        write_state(file, {"values": torch.full((4096,), float(number))}, {"number": number})


def read_often(file: Path, count: int) -> None:
    """Read a state ``count`` times, once both writers have begun; prints how many were of writer 1 and 2."""
    for number in (1, 2):
        while not file.exists() or read_state(file)[1]["number"] != number:
            time.sleep(0.001)
    seen = Counter[int]()
    for _ in range(count):
        tensors, record = read_state(file)
        assert (tensors["values"] == record["number"]).all(), "a mixture"
        seen[record["number"]] += 1
    print(seen[1], seen[2])


def _second_writer(trials: Trials, tally: Tally) -> None:
    runs = trials.scratch / "two-writers"
    first = trials.tiny.train(runs)
    lock = runs / "tiny" / ".writer.lock"
    while not (lock.exists() and lock.read_text()):
        time.sleep(0.01)
    end = trials.tiny.train(runs).end()
    if refused(end) and str(first.pid) in end.errors:
        tally.note("second writer refused")
    else:
        tally.fail(f"a second writer ended with {end.code}: {end.errors[-400:]}")
    trials.compare(runs, first.end(), tally)
