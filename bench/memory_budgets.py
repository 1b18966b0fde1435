"""What the engine gives itself on a GPU, by the shapes of a model and the size of the card. Runs anywhere.

    python -m bench.memory_budgets

Computed with `engine/memory.py`, as `Engine.load` does it; nothing is measured. A cell is the tokens of KV,
then the rows of the largest tree that can be trained (passes aim at 16,384 at most), or "no" where the model
is refused. Cards have 10^9 bytes a GB, of which CUDA itself takes `CONTEXT`.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.shapes import FAMILY, model_config
from proactor.engine.config import EngineConfig, LoRA
from proactor.engine.footprint import Footprint
from proactor.engine.memory import Memory, Planner
from proactor.engine.model_config import ModelConfig
from proactor.engine.types import EngineError

CARDS = (24, 48, 80, 141)
CONTEXT = 600_000_000
"""Bytes that CUDA and the modules of torch take before anything is loaded: assumed."""
SIZES = ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")


def qwen25(size: str) -> ModelConfig:
    """The config of a Qwen2.5 of this size."""
    return model_config(FAMILY[size], tie_word_embeddings=size in ("0.5B", "1.5B", "3B"))


def planner(size: str, **options: Any) -> Planner:
    """Plans for a Qwen2.5 in NF4 with an adapter of rank 8, activations in bfloat16."""
    config = qwen25(size)
    footprint = Footprint.of(config, LoRA(), True, torch.bfloat16)
    return Planner(footprint, EngineConfig(**options), config.context_length, f"Qwen2.5-{size}")


def card(gigabytes: int) -> Memory:
    """An empty card."""
    total = gigabytes * 10**9
    return Memory(total - CONTEXT, total)


def cell(plans: Planner, memory: Memory) -> str:
    """Tokens of KV and rows of the largest tree."""
    try:
        budgets = plans.plan(memory)
    except EngineError:
        return "no"
    return f"{budgets.tokens:,} · {budgets.most_rows(gradient=True):,}"


def table() -> str:
    """The table in Markdown."""
    cards = " | ".join(f"{gigabytes} GB" for gigabytes in CARDS)
    lines = [f"| Qwen2.5, NF4, LoRA rank 8 | held | KV of a token | row of a tree | {cards} |"]
    lines.append("|" + "---|" * (4 + len(CARDS)))
    for size in SIZES:
        plans = planner(size)
        f = plans.footprint
        facts = f"{f.held / 1e9:.1f} GB | {f.token >> 10} KiB | {f.trained_row / 1e6:.1f} MB"
        lines.append(f"| {size} | {facts} | " + " | ".join(cell(plans, card(c)) for c in CARDS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
