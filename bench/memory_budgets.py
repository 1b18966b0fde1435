"""What the engine gives itself on a GPU, by the shapes of a model and the size of the card. Runs anywhere.

    python -m bench.memory_budgets

Computed with `engine/plan.py`, as `Engine.load` does it and `proactor plan` prints it; nothing is measured.
A cell is the tokens of KV, the rows of the largest tree that can be trained in one pass (passes aim at 16,384
at most), and of the largest one recomputed by turns, or "no" where the model is refused.
"""

from __future__ import annotations

from typing import Any

from proactor.engine.config import EngineConfig
from proactor.engine.known_models import FAMILY
from proactor.engine.lora_config import LoRA
from proactor.engine.memory import Planner
from proactor.engine.plan import plan_model
from proactor.engine.plan import planner as plans_of
from proactor.engine.types import EngineError

CARDS = (24, 48, 80, 141)
SIZES = ("0.5B", "1.5B", "3B", "7B", "14B", "32B", "72B")


def planner(size: str, **options: Any) -> Planner:
    """Plans for a Qwen2.5 in NF4 with an adapter of rank 8, activations in bfloat16."""
    return plans_of(FAMILY[size].name, LoRA(), EngineConfig(**options))


def cell(size: str, gigabytes: int) -> str:
    """Tokens of KV, rows of the largest tree in one pass, and of the largest one recomputed by turns."""
    try:
        plan = plan_model(FAMILY[size].name, gigabytes)
    except EngineError:
        return "no"
    return f"{plan.budgets.tokens:,} · {plan.one_pass:,} · {plan.in_chunks:,}"


def table() -> str:
    """The table in Markdown."""
    cards = " | ".join(f"{gigabytes} GB" for gigabytes in CARDS)
    lines = [f"| Qwen2.5, NF4, LoRA rank 8 | held | KV of a token | row of a tree | {cards} |"]
    lines.append("|" + "---|" * (4 + len(CARDS)))
    for size in SIZES:
        f = planner(size).footprint
        facts = f"{f.held / 1e9:.1f} GB | {f.token >> 10} KiB | {f.trained_row / 1e6:.1f} MB"
        lines.append(f"| {size} | {facts} | " + " | ".join(cell(size, c) for c in CARDS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
