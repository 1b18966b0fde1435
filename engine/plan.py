"""What a model would do on a card, computed from shapes: nothing is loaded, and no card is needed.

The formulas are those by which `Engine.load` makes its budgets (`engine/memory.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from proactor.engine.bnb4bit import is_4bit
from proactor.engine.config import EngineConfig
from proactor.engine.config_keys import read_json
from proactor.engine.footprint import Footprint
from proactor.engine.known_models import known_model
from proactor.engine.lora_config import LoRA
from proactor.engine.memory import Budgets, Memory, Planner
from proactor.engine.model_config import ModelConfig
from proactor.engine.types import EngineError

CUDA_BYTES = 600_000_000
"""Bytes that CUDA and the modules of torch take before anything is loaded: assumed."""


@dataclass(frozen=True, slots=True)
class TreePlan:
    """How a tree of ``rows`` is trained: ``chunk`` rows at a time (all of them: in one pass), in ``bytes``
    beside the model. ``kept``: rows that are computed twice then, at most.
    """

    rows: int
    kept: int
    chunk: int
    bytes: int

    @property
    def chunks(self) -> int:
        """Passes with gradient, if chunks were full."""
        return -(-self.rows // self.chunk)


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model on a card. ``budgets`` are those of the loaded engine."""

    name: str
    memory: Memory
    footprint: Footprint
    budgets: Budgets

    @property
    def one_pass(self) -> int:
        """Rows of the largest tree whose activations fit at once."""
        return self.footprint.most_rows(self.budgets.arena, gradient=True)

    @property
    def in_chunks(self) -> int:
        """Rows of the largest tree, recomputed by turns."""
        return self.budgets.most_rows(gradient=True) or 0

    def tree(self, rows: int, kept: int) -> TreePlan:
        """How a tree is trained: `tree_plan`."""
        return tree_plan(self.budgets, rows, kept, self.name)


def tree_plan(budgets: Budgets, rows: int, kept: int, name: str = "this engine") -> TreePlan:
    """How a tree of ``rows`` is trained, at most ``kept`` of which other rows see (`most_kept`).

    On a CPU nothing is known of bytes (0). Raises EngineError for a tree that does not fit.
    """
    if not budgets.fits(rows, kept, gradient=True):
        raise EngineError(f"{name}: a tree of {rows:,} rows, {kept:,} of them seen by others, does not fit")
    chunk = min(rows, budgets.chunk_rows(rows, kept))
    bytes_ = budgets.tree_bytes(rows, kept, gradient=True)
    return TreePlan(rows, kept if chunk < rows else 0, chunk, bytes_)


def card(gigabytes: float) -> Memory:
    """An empty card of so many 10^9 bytes."""
    total = int(gigabytes * 10**9)
    return Memory(total - CUDA_BYTES, total)


def planner(model: str | Path, lora: LoRA | None, options: EngineConfig) -> Planner:
    """Plans for a folder or a name that `known_model` knows, activations in bfloat16.

    Its linears are 4-bit unless ``options`` keep them dense (quantization "none", resident "dense") or a
    folder's are not. Raises EngineError for neither a folder nor a known name.
    """
    folder = Path(model)
    stored = True
    if folder.is_dir():
        config = ModelConfig.from_folder(folder)
        file = folder / "config.json"
        stored = is_4bit(read_json(file), str(file))
    else:
        config = known_model(str(model))
    nf4 = options.quantization == "nf4" or (stored and options.quantization == "auto")
    footprint = Footprint.of(config, lora, nf4 and options.resident != "dense", torch.bfloat16)
    return Planner(footprint, options, config.context_length, folder.name)


def plan_model(
    model: str | Path, gigabytes: float, lora: LoRA | None = None, options: EngineConfig | None = None
) -> ModelPlan:
    """The plan of a model on an empty card of ``gigabytes`` (10^9 bytes); arguments as `Engine.load`.

    ``model``: a folder, or the name of a Qwen2.5, whose files are not needed. ``lora`` None: rank 8. Raises
    EngineError for what does not fit, saying what would.
    """
    plans, memory = planner(model, lora or LoRA(), options or EngineConfig()), card(gigabytes)
    return ModelPlan(plans.where, memory, plans.footprint, plans.plan(memory))
