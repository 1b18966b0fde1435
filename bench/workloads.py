"""What both sides are given to do: prompts by step, completions of fixed length, a reward, and the batch on
which they must agree first.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from bench.models import VOCAB


@dataclass(frozen=True, slots=True)
class Workload:
    """``lengths``: tokens of each prompt. ``samples`` of ``max_tokens`` each are drawn from every prompt, end
    tokens ignored. ``nested``: the prompts are the turns of one dialogue, each a prefix of the next.
    """

    name: str
    lengths: tuple[int, ...]
    samples: int
    max_tokens: int
    nested: bool = False

    def prompts(self, step: int) -> list[list[int]]:
        """Token ids of the prompts of one step; another step has others, so that nothing carries over."""
        rng = random.Random(f"{self.name} {step}")
        if self.nested:
            ids = [rng.randrange(3, VOCAB) for _ in range(max(self.lengths))]
            return [ids[:length] for length in self.lengths]
        return [[rng.randrange(3, VOCAB) for _ in range(length)] for length in self.lengths]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        return cls(**{**data, "lengths": tuple(data["lengths"])})


SHORT = Workload("short", (4, 9, 14, 19, 25, 30, 35, 40), samples=8, max_tokens=64)
DIALOGUE = Workload("dialogue", tuple(range(450, 661, 30)), samples=8, max_tokens=32, nested=True)


def reward(ids: Sequence[int]) -> float:
    """Share of ids in the lower half of the vocabulary: costs nothing and has spread in every group."""
    return sum(i < VOCAB // 2 for i in ids) / len(ids)


def gate_batch(workload: Workload) -> list[dict[str, Any]]:
    """Completions with advantages, and old log-probabilities far enough from the new ones that some tokens
    are clipped; one dict a sample.

    The noise is added to the log-probabilities of the first side that is asked, see `bench.harness.gate`.
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
