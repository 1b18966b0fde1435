"""Simulated machines and what is asked of them: mixes of requests, and their arrivals. For `bench.load`."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path

from bench.records import RESULTS, record_file
from bench.simulated import Arrival
from bench.simulator import Simulator
from bench.step_times import Computed, Recorded, StepTimes
from proactor.engine.load import FixedLimits


@dataclass(frozen=True, slots=True)
class Mix:
    """Requests of one kind: medians of log-normal lengths, in tokens; their deviation; samples; ``most``."""

    prompt: int
    tokens: int
    most: int
    samples: int = 1
    deviation: float = 0.8

    def arrival(self, rng: random.Random, time: float) -> Arrival:
        """A request at a time."""
        lengths = tuple(self._draw(rng, self.tokens, self.most) for _ in range(self.samples))
        return Arrival(time, self._draw(rng, self.prompt, 4 * self.prompt), lengths, self.most)

    def _draw(self, rng: random.Random, middle: int, most: int) -> int:
        return max(1, min(most, round(rng.lognormvariate(math.log(middle), self.deviation))))


@dataclass(frozen=True, slots=True)
class Setting:
    """A machine: its step times, its KV pages, and what it is asked for. ``phases`` of the changing trace:
    (name of the mix, share of its capacity, requests).
    """

    times: StepTimes
    pages: int
    mixes: dict[str, Mix]
    phases: tuple[tuple[str, float, int], ...]


PHASES = (
    ("chat", 0.2, 60),
    ("chat", 1.5, 400),
    ("chat", 0.5, 150),
    ("long", 0.8, 100),
    ("groups", 0.8, 60),
    ("long", 1.2, 60),
    ("chat", 0.9, 300),
    ("chat", 0.2, 60),
)


def settings(machine: str, results: Path = RESULTS) -> dict[str, Setting]:
    """The computed H200 (512k tokens of KV) and, where it was recorded, this processor (16k)."""
    computed = Setting(
        Computed(),
        512 * 1024 // 16,
        {"chat": Mix(500, 200, 2048), "long": Mix(6000, 150, 2048), "groups": Mix(500, 250, 2048, samples=8)},
        PHASES,
    )
    found = {"computed": computed}
    file = record_file(results, machine, "step-times")
    if file.is_file():
        recorded = Setting(
            Recorded.of(json.loads(file.read_text(encoding="utf-8"))),
            16 * 1024 // 16,
            {"chat": Mix(60, 24, 256), "long": Mix(350, 16, 256), "groups": Mix(60, 30, 256, samples=8)},
            PHASES,
        )
        found["recorded"] = recorded
    return found


def capacity(setting: Setting, mix: Mix) -> float:
    """Requests a second of the best fixed size while many wait, in the middle of a long queue."""
    rng, requests, rates = random.Random("capacity"), 600 // mix.samples, []
    arrivals = [mix.arrival(rng, 0.0) for _ in range(requests)]
    for size in (16, 32, 64, 128):
        outcome = Simulator(setting.times, FixedLimits(size), setting.pages).run(arrivals)
        ends = sorted(end for end in outcome.latency if end is not None)
        rates.append(requests / 2 / (ends[3 * requests // 4] - ends[requests // 4]))
    return max(rates)


def trace(setting: Setting, scale: float, seed: int) -> list[Arrival]:
    """The arrivals of the changing load; ``scale``: times its number of requests."""
    rng, time, arrivals = random.Random(f"trace {seed}"), 0.0, []
    limits = {name: capacity(setting, mix) for name, mix in setting.mixes.items()}
    for name, load, requests in setting.phases:
        for _ in range(max(1, round(scale * requests))):
            time += rng.expovariate(load * limits[name])
            arrivals.append(setting.mixes[name].arrival(rng, time))
    return arrivals
