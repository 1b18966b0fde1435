"""LoRA adapters of every layer in one flat float32 buffer, with the gradient in a second one.

One buffer means one all-reduce, one optimizer call and one tensor to save. Autograd's leaves are views of it:
a stacked A for the targets that read one input (q, k, v; gate, up) and one B a target; each leaf's ``.grad``
is a view of the flat gradient, so a caller's own optimizer can take the leaves too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.engine.config import LoRA, Target
from proactor.engine.model_config import ModelConfig
from proactor.engine.types import EngineError
from proactor.kernels.lora import Adapter

GROUPS: tuple[tuple[Target, ...], ...] = (("q", "k", "v"), ("o",), ("gate", "up"), ("down",))
MODULE: dict[Target, str] = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def module_name(layer: int, target: Target) -> str:
    """Hugging Face's name of a linear: ``model.layers.3.self_attn.q_proj``."""
    return f"model.layers.{layer}.{MODULE[target]}"


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
    """One leaf: ``flat[start : start + rows * columns]`` as [rows, columns], of the targets ``names``."""

    layer: int
    kind: str
    names: tuple[Target, ...]
    start: int
    rows: int
    columns: int


class LoRABuffer:
    """All adapters of a model. A starts Kaiming-uniform as in PEFT, B zero: no change at first."""

    def __init__(self, config: ModelConfig, lora: LoRA, device: torch.device, seed: int = 0) -> None:
        self.config, self.lora = config, lora
        largest = max(max(shapes(config)[target]) for target in lora.targets)
        if lora.rank > largest:
            raise EngineError(f"lora.rank={lora.rank}: above {largest}, the model's largest linear")
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
                names = tuple(t for t in group if t in self.lora.targets)
                if not names:
                    continue
                rank, columns = self.lora.rank, size[names[0]][1]
                out.append(Factor(layer, "a", names, start, rank * len(names), columns))
                start += rank * len(names) * columns
                for name in names:
                    out.append(Factor(layer, "b", (name,), start, size[name][0], rank))
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
            offsets, at = {}, 0
            for name in group:
                offsets[name] = (at, at + size[name][0])
                at += size[name][0]
            spans = [offsets[name] for name in factor.names]
            adapters[factor.layer, group] = Adapter(leaf, b, spans, self.lora.rank, self.lora.scale)
        return adapters

    @torch.no_grad()
    def _initialise(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
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

    def tensors(self) -> dict[str, tuple[Tensor, Tensor]]:
        """{Hugging Face's module name: (A [r, K], B [N, r])}, as views."""
        rank, out = self.lora.rank, {}
        b = {
            (f.layer, f.names[0]): leaf
            for f, leaf in zip(self.factors, self.leaves, strict=True)
            if f.kind == "b"
        }
        for factor, leaf in zip(self.factors, self.leaves, strict=True):
            if factor.kind == "a":
                for i, name in enumerate(factor.names):
                    part = leaf.detach()[i * rank : (i + 1) * rank]
                    out[module_name(factor.layer, name)] = (part, b[factor.layer, name].detach())
        return out

    @torch.no_grad()
    def load(self, tensors: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Copy adapters in by module name. Raises EngineError naming the first module that is missing,
        unknown, of another shape, or not finite in float32; nothing is changed then.
        """
        mine = self.tensors()
        for name in tensors:
            if name not in mine:
                raise EngineError(
                    f"adapter: {name} is not among this engine's targets {', '.join(self.lora.targets)}"
                )
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
