"""Uploads and waits of the engine's work, counted on the pretended card.

    python -m tests.card.counts [--write]     prints them by source line; --write keeps the totals

``counts.json`` holds the totals that are allowed. A change that lowers one writes the file again.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("TRITON_INTERPRET", "1")  # decided when kernels are defined

from proactor.engine import GRPO, SFT, Engine, GRPOLoss, Sampling, SFTLoss
from proactor.engine.sampler import Sampler
from proactor.engine.trainer import Trainer
from tests.card.card import CARD, on_card, register
from tests.card.engines import open_engine, write
from tests.engine.engines import prompts, reward

RECORD = Path(__file__).with_name("counts.json")
PLAIN = Sampling(n=2, max_tokens=3, seed=6, ignore_eos=True)
BARE = Sampling(n=1, max_tokens=3, seed=7, adapter=False, ignore_eos=True)
FILTERED = Sampling(n=2, max_tokens=3, seed=5, temperature=0.9, top_k=40, top_p=0.97, ignore_eos=True)


@dataclass(frozen=True)
class Count:
    """Copies from the host and waits of the host, by source line."""

    uploads: Counter[str]
    waits: Counter[str]

    @property
    def totals(self) -> dict[str, int]:
        """What ``counts.json`` holds."""
        return {"uploads": self.uploads.total(), "waits": self.waits.total()}

    def __str__(self) -> str:
        return "\n".join(
            f"  {kind[:-1]} {line}" + (f" x{count}" if count > 1 else "")
            for kind in ("uploads", "waits")
            for line, count in sorted(getattr(self, kind).items())
        )


@contextmanager
def each_call(owner: type, method: str) -> Iterator[list[Count]]:
    """In the block, what each call of ``owner.method`` copied and waited for."""
    calls: list[Count] = []
    plain = getattr(owner, method)

    def counted(*args: Any, **kwargs: Any) -> Any:
        before = Count(CARD.uploads.copy(), CARD.waits.copy())
        result = plain(*args, **kwargs)
        calls.append(Count(CARD.uploads - before.uploads, CARD.waits - before.waits))
        return result

    with mock.patch.object(owner, method, counted):
        yield calls


def steps(engine: Engine, *samplings: Sampling) -> list[Count]:
    """Of each step that samples prompts of 5 and 8 tokens: the prompt, the forks' first, the decode steps."""
    with each_call(Sampler, "_step") as calls:
        engine.sample(prompts(len(samplings), length=5), samplings)
    return calls


def measure(engine: Engine) -> dict[str, Count]:
    """The counts of each kind of work, on an engine whose cache and tables are warm."""
    steps(engine, PLAIN)
    prompt, forked, decode = steps(engine, PLAIN)
    groups = engine.sample(prompts(1, length=5, seed=1), PLAIN)
    with each_call(Trainer, "_accumulate") as trees, each_call(Trainer, "step") as updates:
        with each_call(Engine, "train") as whole:
            engine.train(reward(groups), GRPO())
        for sample in groups[0].samples:
            sample.policy_version = engine.policy_version
        engine.forward_backward(groups, GRPOLoss(GRPO(beta=0.02)))
        engine.forward_backward(groups, SFTLoss(SFT()))
    return {
        "prompt": prompt,
        "forked": forked,
        "decode": decode,
        "filtered": steps(engine, FILTERED)[-1],
        "mixed": steps(engine, PLAIN, BARE)[-1],
        "grpo": trees[0],
        "grpo-kl": trees[1],
        "sft": trees[2],
        "update": updates[0],
        "train": whole[0],
    }


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="python -m tests.card.counts", description="Uploads and waits")
    parser.add_argument("--write", action="store_true", help=f"keep the totals in {RECORD.name}")
    options = parser.parse_args()
    register()
    with tempfile.TemporaryDirectory() as folder, on_card():
        found = measure(open_engine(write(Path(folder) / "model")))
    for work, count in found.items():
        print(f"{work}: {count.totals['uploads']} uploads, {count.totals['waits']} waits\n{count}")
    if options.write:
        RECORD.write_text(
            json.dumps({k: v.totals for k, v in found.items()}, indent=2) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    main()
