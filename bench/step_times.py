"""Seconds of a sampler's step by what it computes: a recorded table and a computed one, for `bench.load`.

    python -m bench.step_times [--repeats 5]        # record this processor's table: step-times.json

Recorded: the engine with the 5.2M-parameter Qwen2 in float32 on one thread, in seconds of that thread, so
that other processes hardly count. Computed: Qwen2.5-14B in NF4 on an H200, a roofline for each operation. No
step of the latter was ever measured.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from bench.models import VOCAB, write_tiny_qwen2
from bench.records import add_results, say, stamp, write_record

SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
CONTEXTS = (32, 128, 512)
PROMPTS = (16, 64, 256, 1024)


class StepTimes(Protocol):
    """How long a step takes."""

    @property
    def name(self) -> str:
        """What the table calls it."""
        ...

    @property
    def padded(self) -> bool:
        """Whether decoding alone runs as captured graphs, each of one bucket's rows."""
        ...

    def seconds(self, decodes: int, kv: int, rows: int, row_kv: int) -> float:
        """Seconds of a step of ``decodes`` sequences that read ``kv`` tokens in all, and ``rows`` of prompts
        that read ``row_kv`` tokens in all.
        """


@dataclass(frozen=True, slots=True)
class Recorded:
    """Steps of this project's engine on a processor; between the recorded points they are interpolated.

    ``decode``: (sequences, seconds without context, seconds a token read), ``prefill``: (rows, seconds).
    """

    name: str
    decode: tuple[tuple[int, float, float], ...]
    prefill: tuple[tuple[int, float], ...]
    padded: bool = False

    def seconds(self, decodes: int, kv: int, rows: int, row_kv: int) -> float:
        """As `StepTimes`. A step with both costs their sum without one of the two fixed parts."""
        sizes = [point[0] for point in self.decode]
        alone = _interpolate(sizes, [point[1] for point in self.decode], decodes)
        read = kv * _interpolate(sizes, [point[2] for point in self.decode], decodes)
        prompt = _interpolate([p[0] for p in self.prefill], [p[1] for p in self.prefill], rows)
        fixed = min(self.prefill[0][1], self.decode[0][1]) if decodes and rows else 0.0
        return (alone + read if decodes else 0.0) + (prompt if rows else 0.0) - fixed

    @classmethod
    def of(cls, record: dict[str, Any]) -> Recorded:
        """The table of a record: a line through each size's seconds by context."""
        lines = []
        for size in record["decode"]:
            points = [(float(kv), seconds) for kv, seconds in size["points"]]
            slope = max(0.0, statistics.linear_regression(*zip(*points, strict=True)).slope)
            start = statistics.median(seconds - slope * kv for kv, seconds in points)
            lines.append((size["sequences"], start, slope))
        prefill = tuple((rows, seconds) for rows, seconds in record["prefill"])
        return cls(f"5.2M Qwen2, recorded on {record['machine']}", tuple(lines), prefill)


@dataclass(frozen=True, slots=True)
class Computed:
    """Qwen2.5-14B with NF4 weights and a LoRA adapter of rank 16 on an H200, computed.

    A roofline for each operation, summed. The linears run as the fused NF4 kernel or as a product with a
    bfloat16 copy, whichever is faster. ``bandwidth`` and the rates are the card's, times the share of it that
    is assumed to be reached; ``fixed`` is assumed: launches that graphs do not hide, and the host.
    """

    name: str = "Qwen2.5-14B NF4 on an H200, computed"
    bandwidth: float = 0.65 * 4.3e12  # bytes a second
    fused_rate: float = 0.50 * 790e12  # FLOP a second of the fused kernel
    dense_rate: float = 0.72 * 790e12
    nf4_bytes: float = 6.82e9 + 0.14e9
    dense_bytes: float = 26.4e9 + 0.14e9
    head_bytes: float = 1.56e9
    linear_flop: float = 26.42e9  # a row
    head_flop: float = 1.56e9  # a drawn row
    attention_flop: float = 0.983e6  # a row and token read
    kv_bytes: float = 192 * 1024.0  # a token
    fixed: float = 0.5e-3
    padded: bool = True

    def seconds(self, decodes: int, kv: int, rows: int, row_kv: int) -> float:
        """As `StepTimes`."""
        total = decodes + rows
        fused = max(self.nf4_bytes / self.bandwidth, total * self.linear_flop / self.fused_rate)
        dense = max(self.dense_bytes / self.bandwidth, total * self.linear_flop / self.dense_rate)
        head = max(self.head_bytes / self.bandwidth, decodes * self.head_flop / self.fused_rate)
        attention = kv * self.kv_bytes / self.bandwidth + row_kv * self.attention_flop / self.dense_rate
        return self.fixed + min(fused, dense) + head + attention


def _interpolate(xs: Sequence[int], ys: Sequence[float], x: float) -> float:
    """On the line through the two nearest points, also beyond the last and before the first."""
    at = min(max(bisect_right(xs, x), 1), len(xs) - 1)
    share = (x - xs[at - 1]) / (xs[at] - xs[at - 1])
    return ys[at - 1] + share * (ys[at] - ys[at - 1])


# -- recording ---


@contextmanager
def timed_steps(scheduler: Any) -> Iterator[list[tuple[int, int, int, float]]]:
    """(sequences, tokens that they read, rows of prompts, seconds of the thread) of each step meanwhile."""
    steps: list[tuple[int, int, int, float]] = []
    plan, commit = scheduler.plan, scheduler.commit
    began = 0.0

    def timed_plan() -> Any:
        nonlocal began
        began = time.thread_time()
        return plan()

    def timed_commit(step: Any, *rest: Any) -> Any:
        kv = sum(decode.length for decode in step.decodes)
        ended = commit(step, *rest)
        steps.append((len(step.decodes), kv, step.rows - len(step.decodes), time.thread_time() - began))
        return ended

    scheduler.plan, scheduler.commit = timed_plan, timed_commit
    try:
        yield steps
    finally:
        del scheduler.plan, scheduler.commit


def record_steps(repeats: int) -> dict[str, Any]:
    """Time the engine's steps at every size and context, and prompts of every length alone."""
    import random

    import torch

    from proactor.engine import Engine, LoRA, Sampling

    torch.set_num_threads(1)
    rng = random.Random(0)
    decode: dict[tuple[int, int], list[tuple[int, float]]] = defaultdict(list)
    prefill: dict[int, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny_qwen2(Path(scratch) / "model")
        tokens = max(SIZES) * (max(CONTEXTS) + 64)
        engine = Engine.load(model, lora=LoRA(rank=16), device="cpu", dtype="float32", kv_tokens=tokens)
        sampler = engine._policy.ready_sampler()

        def run(prompts: int, length: int, new: int) -> list[tuple[int, int, int, float]]:
            ids = [[rng.randrange(3, VOCAB) for _ in range(length)] for _ in range(prompts)]
            with timed_steps(sampler.scheduler) as steps:
                engine.sample(ids, Sampling(max_tokens=new, ignore_eos=True))
            return steps

        run(8, 16, 8)
        for _ in range(repeats):
            for size in SIZES:
                for context in CONTEXTS:
                    filling = -(-size * context // 8192)  # steps until the last prompt is computed
                    alone = [s for s in run(size, context, 8 + filling) if s[0] == size and not s[2]]
                    decode[size, context] += [(kv, seconds) for _, kv, _, seconds in alone[1:]]
            for length in PROMPTS:
                prefill[length] += [s[3] for s in run(1, length, 1)]
            say(f"  one thread: {sum(map(len, decode.values()))} steps")
    return {
        "decode": [
            {
                "sequences": size,
                "points": [
                    [
                        statistics.median(kv for kv, _ in decode[size, context]),
                        statistics.median(seconds for _, seconds in decode[size, context]),
                    ]
                    for context in CONTEXTS
                ],
            }
            for size in SIZES
        ],
        "prefill": [[length, statistics.median(prefill[length])] for length in PROMPTS],
    }


def main(argv: list[str] | None = None) -> None:
    """Record this processor's table."""
    parser = argparse.ArgumentParser(prog="python -m bench.step_times", description=__doc__.split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    add_results(parser)
    options = parser.parse_args(argv)
    record = {
        **stamp(),
        "command": f"python -m bench.step_times --repeats {options.repeats}",
        "model": "5.2M-parameter Qwen2, float32, LoRA r=16, one thread",
        **record_steps(options.repeats),
    }
    say(f"record: {write_record(options.results, 'step-times', record)}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
