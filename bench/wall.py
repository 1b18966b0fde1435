"""The real sampler under load, in wall-clock time: adaptive batching beside fixed sizes. Run by `bench.load`.

    python -m bench.load --wall [--repeats 3]

A 5.2M-parameter Qwen2 on one thread. Requests arrive as a Poisson process at shares of the throughput of 32
fixed sequences. Prompts are ragged, and so are samples: each token ends one with the same probability, so
nobody knows how long it gets (`max_tokens` is eleven times the mean). All engines get the same arrivals and
draw with the same noise; what they drew in a first, untimed burst has to agree.
"""

from __future__ import annotations

import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.models import VOCAB, write_tiny_qwen2
from bench.records import say

if TYPE_CHECKING:
    from proactor.engine import Engine, Sample

SIZES = (8, 32, 128)
LOADS = (0.6, 1.2)
MEAN, MOST, PROMPT = 12, 128, 60
"""Tokens: of a sample, of the longest one, and of the median prompt."""
BURST = 64
AGREE = 0.95
"""Share of samples that have to be the same: in float32 a batch can round a draw across a limit."""

Arrival = tuple[float, list[int]]
"""(seconds, prompt)."""


def arrivals(seed: str, requests: int, rate: float) -> list[Arrival]:
    """A Poisson process of ``rate`` requests a second; ``inf``: all at once."""
    rng, now, found = random.Random(seed), 0.0, []
    for _ in range(requests):
        now += rng.expovariate(rate) if rate < float("inf") else 0.0
        length = max(1, min(4 * PROMPT, round(rng.lognormvariate(0.0, 0.8) * PROMPT)))
        found.append((now, [rng.randrange(3, VOCAB) for _ in range(length)]))
    return found


async def serve(engine: Engine, requests: list[Arrival]) -> tuple[list[float], list[Sample]]:
    """Latency of each request, in seconds from its arrival, and its sample."""
    from proactor.engine import Sampling

    draw = Sampling(max_tokens=MOST, ignore_eos=True, stop_ids=tuple(range(3, 3 + VOCAB // MEAN)))
    async with engine.session() as session:
        began = time.perf_counter()

        async def request(key: int, at: float, ids: list[int]) -> tuple[float, Sample]:
            await asyncio.sleep(at - (time.perf_counter() - began))
            sample = await session.sample(ids, draw, key=key)
            return time.perf_counter() - began - at, sample

        done = await asyncio.gather(*(request(key, *arrival) for key, arrival in enumerate(requests)))
    return [latency for latency, _ in done], [sample for _, sample in done]


def run(engine: Engine, requests: list[Arrival]) -> tuple[dict[str, float], list[Sample]]:
    """Tokens a second until the last sample ends, and latencies in seconds."""
    latency, samples = asyncio.run(serve(engine, requests))
    span = max(at + late for (at, _), late in zip(requests, latency, strict=True))
    cuts = statistics.quantiles(latency, n=100, method="inclusive")
    tokens = sum(len(sample.token_ids) for sample in samples)
    return {"throughput": tokens / span, "p50": cuts[49], "p99": cuts[98]}, samples


def compare(requests: int, repeats: int) -> dict[str, Any]:
    """Every engine at every load, in turns; the figures are [median, least, most] of the repeats."""
    import torch

    from proactor.engine import Engine, LoRA

    torch.set_num_threads(1)
    choices: dict[str, dict[str, Any]] = {"adaptive": {"max_batch": 256}}
    choices |= {f"fixed {size}": {"max_batch": size, "batching": "fixed"} for size in SIZES}
    with tempfile.TemporaryDirectory() as scratch:
        model = write_tiny_qwen2(Path(scratch) / "model")
        engines = {
            name: Engine.load(
                model, lora=LoRA(rank=16), device="cpu", dtype="float32", kv_tokens=65536, **choice
            )
            for name, choice in choices.items()
        }
        burst = arrivals("burst", BURST, float("inf"))
        first = {name: run(engine, burst)[1] for name, engine in engines.items()}
        agreeing = min(
            sum(a.token_ids == b.token_ids for a, b in zip(samples, first["adaptive"], strict=True)) / BURST
            for samples in first.values()
        )
        assert agreeing >= AGREE, f"only {agreeing:.0%} of the samples agree"
        bursts = [arrivals(f"burst {i}", BURST, float("inf")) for i in range(3)]
        spans = [max(asyncio.run(serve(engines["fixed 32"], plan))[0]) for plan in bursts]
        capacity = BURST / statistics.median(spans)
        rows = [load_row(engines, load, capacity, requests, repeats) for load in LOADS]
        for engine in engines.values():
            engine.release()
    return {"capacity": round(capacity, 1), "agreeing": agreeing, "loads": rows}


def load_row(
    engines: dict[str, Engine], load: float, capacity: float, requests: int, repeats: int
) -> dict[str, Any]:
    """One load: the engines take turns with the same arrivals."""
    figures: dict[str, list[dict[str, float]]] = {name: [] for name in engines}
    for repeat in range(repeats):
        plan = arrivals(f"wall {load} {repeat}", requests, load * capacity)
        names = list(engines)
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            figures[name].append(run(engines[name], plan)[0])
    result: dict[str, Any] = {"load": load, "policies": {}}
    for name, several in figures.items():
        row = {key: _spread([one[key] for one in several]) for key in several[0]}
        result["policies"][name] = row
        say(f"  load {load}, {name}: " + ", ".join(f"{key} {value[0]}" for key, value in row.items()))
    return result


def _spread(values: list[float]) -> list[float]:
    return [round(value, 4) for value in (statistics.median(values), min(values), max(values))]
