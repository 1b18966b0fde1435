"""Workloads of a comparison: prompts by step, completions of fixed length, a reward, and the gate's batch."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.models import VOCAB


@dataclass(frozen=True, slots=True)
class Workload:
    """One step's work.

    ``lengths``: tokens of each prompt. ``samples``: completions per prompt, each of ``max_tokens`` tokens;
    end tokens are ignored. ``nested``: the prompts are turns of one dialogue, each a prefix of the next.
    """

    name: str
    lengths: tuple[int, ...]
    samples: int
    max_tokens: int
    nested: bool = False

    def prompts(self, step: int) -> list[list[int]]:
        """Token ids of a step's prompts; each step has others, so that no cache helps."""
        rng = random.Random(f"{self.name} {step}")
        if self.nested:
            ids = [rng.randrange(3, VOCAB) for _ in range(max(self.lengths))]
            return [ids[:length] for length in self.lengths]
        return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in self.lengths]

    def to_json(self) -> dict[str, Any]:
        """The fields, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """The workload of `to_json`."""
        return cls(**{**data, "lengths": tuple(data["lengths"])})


SHORT = Workload("short", (4, 9, 14, 19, 25, 30, 35, 40), samples=8, max_tokens=64)
DIALOGUE = Workload("dialogue", tuple(range(450, 661, 30)), samples=8, max_tokens=32, nested=True)


def reward(ids: Sequence[int]) -> float:
    """Share of ids in the lower half of the vocabulary: cheap, and different within every group."""
    return sum(i < VOCAB // 2 for i in ids) / len(ids)


def gate_batch(workload: Workload) -> list[dict[str, Any]]:
    """The gate's samples, one dict each: prompt, completion, advantage, and noise.

    `bench.harness.gate` adds the noise to the peer's log-probabilities, as old ones: some tokens are clipped.
    """
    rng = random.Random(f"gate {workload.name}")
    return [
        {
            "prompt": prompt,
            "completion": [rng.randrange(3, VOCAB) for _ in range(workload.max_tokens)],
            "advantage": rng.gauss(0, 1),
            "noise": [rng.gauss(0, 0.2) for _ in range(workload.max_tokens)],
        }
        for prompt in workload.prompts(-1)
        for _ in range(workload.samples)
    ]
