"""Ranks that sample units of unequal lengths: pulled from the queue against a fixed part each.

    OMP_NUM_THREADS=1 python -m bench.rank_scaling

Units of one to four prompts, four samples a prompt. A unit's answers have a length that nobody knows before
(log-normal, imposed by a mask), so the expected cost only knows prompts and limits. Both sides sample the
same prompts with the same engine; it is checked that each sample has its length.

``busy``: the most processor seconds of a rank until its last group: what the sampling takes where every rank
has a core to itself, and other processes leave it alone. ``balance``: their mean over ranks by that.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")

import torch

from bench.forked import Child, fork_ranks
from bench.models import write_tiny_qwen2
from bench.records import add_results, say, stamp, write_record
from bench.tiny_run import check
from proactor.engine import Engine, Group, LoRA, Sampling

UNITS, SAMPLES, LIMIT, MEDIAN, SPREAD = 24, 4, 160, 16.0, 0.9
"""Units; samples a prompt; most tokens; median and sigma of the log-normal lengths."""
ROOMS = (16, 256)
"""Sequences that a rank decodes at once (`max_batch`): fewer than its part of the work has, and all of it."""
END = 1


class Work:
    """The prompts, the unit and the hidden length of each."""

    def __init__(self, vocabulary: int, seed: int = 0) -> None:
        draw = random.Random(seed)
        self.prompts: list[list[int]] = []
        self.units: list[int] = []
        self.lengths: list[int] = []
        only_end = torch.zeros(vocabulary, dtype=torch.bool)
        only_end[END] = True
        self.masks = only_end, ~only_end
        for unit in range(UNITS):
            trunk = [draw.randrange(2, vocabulary) for _ in range(draw.randint(20, 60))]
            length = min(LIMIT - 1, max(2, round(draw.lognormvariate(0, SPREAD) * MEDIAN)))
            for _ in range(draw.randint(1, 4)):
                self.prompts.append([*trunk, *(draw.randrange(2, vocabulary) for _ in range(8))])
                self.units.append(unit)
                self.lengths.append(length)

    def sampling(self, place: int) -> Sampling:
        """The settings of a prompt: its answers end at its length, and not before."""
        last = self.lengths[place] - 1

        def mask(ids: Sequence[int], position: int) -> torch.Tensor:
            return self.masks[0 if len(ids) >= last else 1]

        return Sampling(n=SAMPLES, max_tokens=LIMIT, stop_ids=[END], seed=1, logit_mask=mask)


def drawn(engine: Engine, work: Work, queue: bool) -> Iterator[Group]:
    """This rank's groups."""
    places = range(len(work.prompts))
    if queue:
        settings = [work.sampling(place) for place in places]
        yield from engine.sample_shared(work.prompts, settings, keys=places, units=work.units)
        return
    units = engine.share(range(UNITS))
    mine = [place for place in places if work.units[place] in units]
    settings = [work.sampling(place) for place in mine]
    for group in engine.sample([work.prompts[place] for place in mine], settings, keys=mine):
        group.index = mine[group.index]
        yield group


def measure(model: Path, repeats: int) -> None:
    """One rank's life: every room and side in turn; rank 0 prints what all found."""
    rows = []
    engines = [
        Engine.load(model, lora=LoRA(rank=8), max_batch=room, kv_tokens=32768, rank_timeout=60)
        for room in ROOMS
    ]
    for room, engine in zip(ROOMS, engines, strict=True):
        work = Work(engine.config.vocab_size)
        engine.sample(work.prompts[:8], Sampling(n=SAMPLES, max_tokens=8))  # warms up
        for _ in range(repeats):
            for side in ("static", "queue"):
                engine.weights_changed()  # nothing is cached
                engine.barrier()
                began = time.perf_counter()
                tokens, cpu = 0, time.process_time()
                busy = 0.0
                for group in drawn(engine, work, side == "queue"):
                    busy = time.process_time() - cpu
                    lengths = [len(sample.token_ids) for sample in group.samples]
                    assert lengths == [work.lengths[group.index]] * SAMPLES, (group.index, lengths)
                    tokens += sum(lengths)
                engine.barrier()
                wall = time.perf_counter() - began
                ranks = engine.gather((busy, tokens))
                assert sum(count for _, count in ranks) == SAMPLES * sum(work.lengths)
                rows.append({"room": room, "side": side, "wall": wall, "ranks": ranks})
    if engines[0].rank == 0:
        print(json.dumps(rows))
    for engine in reversed(engines):  # the first has joined the ranks
        engine.release()


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians of a room's and side's repeats."""

    def middle(values: Iterator[float]) -> float:
        return round(statistics.median(values), 3)

    def balance(values: list[float]) -> float:
        return statistics.mean(values) / max(values)

    return {
        "seconds": middle(row["wall"] for row in rows),
        "seconds_all": [round(row["wall"], 3) for row in rows],
        "busy": middle(max(seconds for seconds, _ in row["ranks"]) for row in rows),
        "busy_all_ranks": middle(sum(seconds for seconds, _ in row["ranks"]) for row in rows),
        "balance": middle(balance([seconds for seconds, _ in row["ranks"]]) for row in rows),
        "balance_tokens": middle(balance([tokens for _, tokens in row["ranks"]]) for row in rows),
        "tokens": sum(tokens for _, tokens in rows[0]["ranks"]),
    }


def main() -> int:
    """Measure two and four ranks, print a line each and write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench.rank_scaling", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    add_results(parser)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    record: dict[str, Any] = {**stamp(), "cores": cores, "threads_a_rank": 1, "repeats": options.repeats}
    record["load"] = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        check(Child(Path(scratch) / "log" / "model", lambda: write_tiny_qwen2(model)).end())
        for count in options.ranks:
            ranks = fork_ranks(count, Path(scratch) / f"{count}", lambda _: measure(model, options.repeats))
            ends = [check(rank.end(patience=900)) for rank in ranks]
            rows = json.loads(ends[0].output)
            for room in ROOMS:
                found = {
                    side: summary([row for row in rows if row["room"] == room and row["side"] == side])
                    for side in ("static", "queue")
                }
                faster = {name: found["static"][name] / found["queue"][name] for name in ("seconds", "busy")}
                found["faster"] = {name: round(value, 2) for name, value in faster.items()}
                record[f"{count} ranks, room {room}"] = found
                words = ", ".join(
                    f"{side} {found[side]['seconds']} s, busy {found[side]['busy']} "
                    f"(all {found[side]['busy_all_ranks']}, balance {found[side]['balance']})"
                    for side in ("static", "queue")
                )
                say(f"{count} ranks on {cores} cores, room {room}: {words}")
    say(f"record: {write_record(options.results, 'rank-scaling', record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
