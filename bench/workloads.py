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

    ``lengths``: tokens of each prompt. ``samples``: completions per prompt, each of ``max_tokens`` tokens, or
    of ``ragged`` tokens, one number a prompt; end tokens are ignored. ``nested``: the prompts are turns of
    one dialogue, each a prefix of the next. ``shared``: tokens that all prompts begin with. ``turns``: a
    completion is so many replies of ``max_tokens`` tokens, with ``observation`` tokens between two of them.
    """

    name: str
    lengths: tuple[int, ...]
    samples: int
    max_tokens: int
    nested: bool = False
    shared: int = 0
    ragged: tuple[int, ...] = ()
    turns: int = 1
    observation: int = 0

    def prompts(self, step: int) -> list[list[int]]:
        """Token ids of a step's prompts; each step has others, so that no cache helps."""
        rng = random.Random(f"{self.name} {step}")
        if self.nested:
            ids = [rng.randrange(3, VOCAB) for _ in range(max(self.lengths))]
            return [ids[:length] for length in self.lengths]
        head = [rng.randrange(3, VOCAB) for _ in range(self.shared)]
        return [
            head + [rng.randrange(3, VOCAB) for _ in range(length - self.shared)] for length in self.lengths
        ]

    @property
    def counts(self) -> list[int]:
        """Tokens of each completion, prompt by prompt."""
        each = self.ragged or (self.max_tokens,) * len(self.lengths)
        return [count for count in each for _ in range(self.samples)]

    @property
    def mask(self) -> list[bool]:
        """Whether each token of a completion is drawn, and so trained; the others are observations."""
        reply, observed = [True] * self.max_tokens, [False] * self.observation
        return reply + (observed + reply) * (self.turns - 1)

    @property
    def work(self) -> dict[str, int]:
        """Tokens of a step's samples: of their prompts, of their completions, and drawn ones among these."""
        total = len(self.lengths) * self.samples
        return {
            "prompt": sum(self.lengths) * self.samples,
            "completion": len(self.mask) * total,
            "drawn": sum(self.mask) * total,
        }

    def to_json(self) -> dict[str, Any]:
        """The fields, for `from_json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Workload:
        """The workload of `to_json`."""
        return cls(**{**data, "lengths": tuple(data["lengths"]), "ragged": tuple(data["ragged"])})


def ragged(requests: int) -> Workload:
    """Requests with prompts of 8-128 tokens and completions of 8-128 tokens."""
    rng = random.Random("ragged")
    lengths, counts = (tuple(rng.randint(8, 128) for _ in range(requests)) for _ in range(2))
    return Workload("ragged", lengths, samples=1, max_tokens=max(counts), ragged=counts)


LONE = Workload("lone", (128,), samples=1, max_tokens=128)
"""One conversation: no batch hides what a step costs."""
SHORT = Workload("short", (4, 9, 14, 19, 25, 30, 35, 40), samples=8, max_tokens=64)
DIALOGUE = Workload("dialogue", tuple(range(450, 661, 30)), samples=8, max_tokens=32, nested=True)
GROUP = Workload("group", tuple(range(608, 637, 4)), samples=8, max_tokens=32, shared=600)
"""Eight questions about one context."""
EPISODES = Workload("episodes", (111,) * 8, samples=8, max_tokens=24, turns=6, observation=14)
"""Eight tasks of `bench.probes`, whose prompt and observations have these lengths."""


def reward(ids: Sequence[int]) -> float:
    """Share of ids in the lower half of the vocabulary: cheap, and different within every group."""
    return sum(i < VOCAB // 2 for i in ids) / len(ids)


def gate_batch(workload: Workload) -> list[dict[str, Any]]:
    """The gate's samples, one dict each: prompt, completion, its mask, advantage, and noise.

    `bench.harness.gate` adds the noise to the peer's log-probabilities, as old ones: some tokens are clipped.
    """
    rng, length = random.Random(f"gate {workload.name}"), len(workload.mask)
    return [
        {
            "prompt": prompt,
            "completion": [rng.randrange(3, VOCAB) for _ in range(length)],
            "mask": workload.mask,
            "advantage": rng.gauss(0, 1),
            "noise": [rng.gauss(0, 0.2) for _ in range(length)],
        }
        for prompt in workload.prompts(-1)
        for _ in range(workload.samples)
    ]
