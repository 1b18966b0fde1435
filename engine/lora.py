"""LoRA adapters of every layer in one flat float32 buffer, with the gradient in a second one.

One buffer means one all-reduce, one optimizer call and one tensor to save. Autograd's leaves are views of it:
a stacked A for the targets that read one input (q, k, v; gate, up) and one B a target; each leaf's ``.grad``
is a view of the flat gradient, so a caller's own optimizer can take the leaves too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from proactor.engine.lora_config import ALL_TARGETS, LoRA, Target
from proactor.engine.lora_targets import LowRank, adapted, module_name
from proactor.engine.model_config import ModelConfig
from proactor.engine.types import EngineError
from proactor.kernels.lora_update import Adapter

GROUPS: tuple[tuple[Target, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))


def shapes(config: ModelConfig) -> dict[Target, tuple[int, int]]:
    """(outputs, inputs) of each target."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    h, i = config.hidden_size, config.intermediate_size
    return {
        "q": (q, h),
        "k": (kv, h),
        "v": (kv, h),
        "o": (h, q),
        "gate": (i, h),
        "up": (i, h),
        "down": (h, i),
    }


@dataclass(slots=True)
class Factor:
    """One leaf: ``flat[start : start + rows * columns]`` as [rows, columns], of the targets ``names``, whose
    adapters have ``ranks``.
    """

    layer: int
    kind: str
    names: tuple[Target, ...]
    ranks: tuple[int, ...]
    start: int
    rows: int
    columns: int


class LoRABuffer:
    """All adapters of a model. A starts Kaiming-uniform as in PEFT, B zero: no change at first.

    ``modules``: `adapted`, which also says what is refused. Raises EngineError for a rank beyond any use.
    """

    def __init__(self, config: ModelConfig, lora: LoRA, device: torch.device, seed: int = 0) -> None:
        self.config, self.lora = config, lora
        self.modules = adapted(lora, config.num_layers)
        largest = max(max(shapes(config)[target]) for _, target in self.modules)
        rank = max(pair.rank for pair in self.modules.values())
        if rank > largest:
            raise EngineError(f"lora.rank={rank}: above {largest}, the model's largest linear")
        self.factors = list(self._plan())
        size = self.factors[-1].start + self.factors[-1].rows * self.factors[-1].columns
        self.flat = torch.zeros(size, dtype=torch.float32, device=device)
        self.grad = torch.zeros_like(self.flat)
        self.leaves: list[Tensor] = [self._leaf(f) for f in self.factors]
        self.adapters = self._adapters()
        self._initialise(seed)

    def _plan(self) -> list[Factor]:
        size, start, out = shapes(self.config), 0, []
        for layer in range(self.config.num_layers):
            for group in GROUPS:
                names = tuple(t for t in group if (layer, t) in self.modules)
                if not names:
                    continue
                ranks, columns = tuple(self.modules[layer, t].rank for t in names), size[names[0]][1]
                out.append(Factor(layer, "a", names, ranks, start, sum(ranks), columns))
                start += sum(ranks) * columns
                for name, rank in zip(names, ranks, strict=True):
                    out.append(Factor(layer, "b", (name,), (rank,), start, size[name][0], rank))
                    start += size[name][0] * rank
        return out

    def _leaf(self, f: Factor) -> Tensor:
        stop = f.start + f.rows * f.columns
        leaf = self.flat[f.start : stop].view(f.rows, f.columns).detach().requires_grad_()
        leaf.grad = self.grad[f.start : stop].view(f.rows, f.columns)
        return leaf

    def _adapters(self) -> dict[tuple[int, tuple[Target, ...]], Adapter]:
        size, adapters = shapes(self.config), {}
        pairs = iter(zip(self.factors, self.leaves, strict=True))
        for factor, leaf in pairs:
            group = next(g for g in GROUPS if factor.names[0] in g)
            b = [next(pairs)[1] for _ in factor.names]
            ends = accumulate(size[name][0] for name in group)
            offsets = {name: (end - size[name][0], end) for name, end in zip(group, ends, strict=True)}
            spans = [offsets[name] for name in factor.names]
            scales = [self.modules[factor.layer, name].scale for name in factor.names]
            adapters[factor.layer, group] = Adapter(leaf, b, spans, factor.ranks, scales)
        return adapters

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed % 2**64)
        for factor, leaf in zip(self.factors, self.leaves, strict=True):
            if factor.kind == "a":
                bound = 1 / math.sqrt(factor.columns)  # kaiming_uniform with a = sqrt(5)
                leaf.copy_(torch.empty(leaf.shape).uniform_(-bound, bound, generator=generator))

    def attach_grad(self) -> None:
        """Make every leaf's ``.grad`` the view of the flat gradient again.

        A caller's ``zero_grad(set_to_none)`` drops the views. A gradient that autograd then put elsewhere is
        copied in, so nothing is lost.
        """
        for factor, leaf in zip(self.factors, self.leaves, strict=True):
            view = self.grad[factor.start : factor.start + factor.rows * factor.columns].view(
                factor.rows, factor.columns
            )
            if leaf.grad is None:
                view.zero_()
            elif leaf.grad.data_ptr() != view.data_ptr():
                view.copy_(leaf.grad)
            leaf.grad = view

    def changed(self) -> None:
        """Count a change that autograd may not have seen, as through ``leaf.data``; drop what was folded."""
        torch.autograd.graph.increment_version(self.flat)
        self.unfold()

    def unfold(self) -> None:
        """Give back the memory of what the adapters are folded to; few rows fold them again."""
        for adapter in self.adapters.values():
            adapter.kept.clear()

    @property
    def folded_bytes(self) -> int:
        """Bytes of what the adapters are folded to for few rows."""
        return sum(adapter.folded_bytes for adapter in self.adapters.values())

    def tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{Hugging Face's module name: (A [r, K], B [N, r])}, as views."""
        return self.by_module(self.leaves)

    def by_module(self, leaves: Sequence[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
        """The same of tensors like the leaves, as their gradients are."""
        out, pairs = {}, iter(zip(self.factors, leaves, strict=True))
        for factor, leaf in pairs:
            for name, a in zip(factor.names, leaf.detach().split(factor.ranks), strict=True):
                out[module_name(factor.layer, name)] = (a, next(pairs)[1].detach())
        return out

    def identity(self) -> dict[str, Any]:
        """What the adapter's numbers mean, JSON-able: rank, scale and targets; and as ``modules`` those of
        these targets, over all layers, that have another rank and scale, or no adapter (None).
        """
        common = LowRank(self.lora.rank, self.lora.scale)
        present = {target for _, target in self.modules}
        targets = [target for target in ALL_TARGETS if target in present]
        others: dict[str, list[float] | None] = {}
        for place in ((layer, target) for layer in range(self.config.num_layers) for target in targets):
            pair = self.modules.get(place)
            if pair != common:
                others[module_name(*place)] = None if pair is None else list(pair)
        facts = {"rank": common.rank, "scale": common.scale, "targets": targets}
        return {**facts, "modules": others} if others else facts

    @torch.no_grad()
    def load(self, tensors: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Copy adapters in by module name. Raises EngineError naming the first module that is missing,
        unknown, of another shape, or not finite in float32; nothing is changed then.
        """
        mine = self.tensors()
        for name in tensors:
            if name not in mine:
                raise EngineError(f"adapter: {name} is not among this engine's targets {self._targets()}")
        for name, (a, b) in mine.items():
            if name not in tensors:
                raise EngineError(f"adapter: {name} is missing")
            new_a, new_b = tensors[name]
            if new_a.shape != a.shape or new_b.shape != b.shape:
                raise EngineError(
                    f"adapter: {name} has A {tuple(new_a.shape)}, B {tuple(new_b.shape)}; expected "
                    f"{tuple(a.shape)}, {tuple(b.shape)}"
                )
            if not all(bool(torch.isfinite(half.float()).all()) for half in (new_a, new_b)):
                raise EngineError(f"adapter: {name} holds values that are not finite in float32")
        for name, (a, b) in mine.items():
            a.copy_(tensors[name][0])
            b.copy_(tensors[name][1])

    def _targets(self) -> str:
        layers = sorted({layer for layer, _ in self.modules})
        where = f" in layers {', '.join(map(str, layers))}" if len(layers) < self.config.num_layers else ""
        return ", ".join(self.identity()["targets"]) + where
