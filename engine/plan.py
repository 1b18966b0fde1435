"""What a model would do on a card, computed from shapes: nothing is loaded, and no card is needed.

The formulas are those by which `Engine.load` makes its budgets (`engine/memory.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from proactor.engine.adapter_names import named_adapters
from proactor.engine.bnb4bit import is_4bit
from proactor.engine.config import GRPO, SFT, EngineConfig
from proactor.engine.config_keys import read_json
from proactor.engine.device import choose_device, choose_dtype
from proactor.engine.footprint import Footprint
from proactor.engine.group_plan import GroupPlan, GroupPlanner
from proactor.engine.known_models import known_model
from proactor.engine.lora_config import LoRA
from proactor.engine.lora_targets import total_rank
from proactor.engine.loss import Loss
from proactor.engine.memory import Budgets, Memory, Planner, device_memory, fits_host
from proactor.engine.model_config import ModelConfig
from proactor.engine.operations import Operations
from proactor.engine.peak import Peak
from proactor.engine.sampling_plan import SamplingPlan, plan_sampling
from proactor.engine.types import EngineError, Group

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
    """A model on a card, or on a CPU (``memory`` None). ``budgets`` are those of the loaded engine; ``lora``
    is the adapter whose steps are planned, ``footprint`` counts all.
    """

    name: str
    memory: Memory | None
    config: ModelConfig
    lora: LoRA
    options: EngineConfig
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

    @property
    def operations(self) -> Operations:
        """Operations of a row, of attention and of the head."""
        return Operations.of(self.config, self.lora)

    def groups(self, groups: Sequence[Group], config: GRPO | SFT | Loss | None = None) -> GroupPlan:
        """What a step on ``groups`` computes, as `Engine.plan`."""
        ranks = total_rank(self.lora, self.config.num_layers)
        peak = Peak(self.config, ranks, self.footprint, self.memory is not None)
        held = self.footprint.held
        exact = self.options.deterministic
        return GroupPlanner(self.budgets, self.operations, peak, held, exact).plan(groups, config)

    def sampling(self, groups: Sequence[Group], in_turn: int = 0) -> SamplingPlan:
        """What sampling ``groups`` takes (`plan_sampling`), as many at once as the KV cache holds."""
        batch, count = self.options.max_batch, sum(len(g.samples) for g in groups)
        found = plan_sampling(groups, self.operations, self.footprint, batch, in_turn)
        needed, room = found.prompts + found.drawn, self.budgets.tokens
        if room is None or needed <= room:
            return found
        fitting = max(1, min(batch, count * room // needed))
        return plan_sampling(groups, self.operations, self.footprint, fitting, in_turn)


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


def read_shapes(model: str | Path) -> tuple[ModelConfig, bool]:
    """(the config of a folder or of a name that `known_model` knows, whether its linears are stored 4-bit).

    By name they are. Raises EngineError for neither a folder nor a known name.
    """
    folder = Path(model)
    if not folder.is_dir():
        return known_model(str(model)), True
    file = folder / "config.json"
    return ModelConfig.from_folder(folder), is_4bit(read_json(file), str(file))


def planner(model: str | Path, lora: LoRA | Mapping[str, LoRA] | None, options: EngineConfig) -> Planner:
    """Plans on a card for a folder or a name that `known_model` knows.

    Its linears are 4-bit unless ``options`` keep them dense (quantization "none", resident "dense") or a
    folder's are not. Raises EngineError for neither a folder nor a known name.
    """
    config, stored = read_shapes(model)
    nf4 = options.quantization == "nf4" or (stored and options.quantization == "auto")
    dtype = choose_dtype(options.dtype, torch.device("cuda"))
    footprint = Footprint.of(config, _loras(lora), nf4 and options.resident != "dense", dtype)
    return Planner(footprint, options, config.context_length, Path(model).name)


def _loras(lora: LoRA | Mapping[str, LoRA] | None) -> list[LoRA]:
    return [*named_adapters(lora).values()]


def plan_model(
    model: str | Path,
    gigabytes: float,
    lora: LoRA | Mapping[str, LoRA] | None = None,
    options: EngineConfig | None = None,
) -> ModelPlan:
    """The plan of a model on an empty card of ``gigabytes`` (10^9 bytes); arguments as `Engine.load`.

    ``model``: a folder, or the name of a Qwen2.5, whose files are not needed. ``lora`` None: rank 8; of
    several adapters the first is the one whose steps are planned. Raises EngineError for what does not fit,
    saying what would.
    """
    lora, options = lora or LoRA(), options or EngineConfig()
    plans, memory = planner(model, lora, options), card(gigabytes)
    config, _ = read_shapes(model)
    first = _loras(lora)[0]
    return ModelPlan(plans.where, memory, config, first, options, plans.footprint, plans.plan(memory))


def plan_here(
    model: str | Path,
    lora: LoRA | Mapping[str, LoRA] | None = None,
    options: EngineConfig | None = None,
) -> ModelPlan:
    """The plan of a model on this machine: on the GPU that `Engine.load` would take, or on the CPU.

    A CPU holds a dense copy of 4-bit linears where `fits_host` says so. Raises EngineError as `plan_model`,
    for 4-bit linears that do not fit the CPU's memory, and for a device that is not there.
    """
    lora, options = lora or LoRA(), options or EngineConfig()
    device = choose_device(options.device)
    memory = device_memory(device)
    if memory is not None:
        return plan_model(model, memory.total / 10**9, lora, options)
    config, stored = read_shapes(model)
    nf4 = options.quantization == "nf4" or (stored and options.quantization == "auto")
    dtype = choose_dtype(options.dtype, device)
    loras, name = _loras(lora), Path(model).name
    packed = nf4 and not fits_host(config, loras, dtype, options.resident, name)
    footprint = Footprint.of(config, loras, packed, dtype)
    return ModelPlan(name, None, config, loras[0], options, footprint, Budgets.fixed(options))
