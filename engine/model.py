"""The decoder: one forward for sampler and trainer; only the attention view differs.

Qwen2/2.5, Qwen3, Llama and Mistral differ by configuration alone. Rows are flat: a row is one token of one
sequence or tree node, with a position. The view decides which rows it sees.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from proactor.engine.base_linear import BaseLinear, form_of, stack_linears
from proactor.engine.lora import GROUPS, LoRABuffer, shapes
from proactor.engine.lora_config import Target
from proactor.engine.model_config import ModelConfig
from proactor.engine.row_adapters import RowAdapters
from proactor.kernels.linear import Linear, library_linear, padded_rows
from proactor.kernels.lora import Remade, lora_linear
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.norm import add_rms_norm, rms_norm
from proactor.kernels.rope import rope
from proactor.kernels.swiglu import swiglu


class AttentionView(Protocol):
    """Where keys and values live and who sees whom."""

    def rotate(
        self, layer: int, qkv: Tensor, cos: Tensor, sin: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """q, k (both rotated) and v of qkv [T, Hq + 2 Hkv, D]; k and v are None if `rotate` cached them."""
        ...

    def attend(self, layer: int, q: Tensor, k: Tensor | None, v: Tensor | None) -> Tensor:
        """[T, Hq * D] of q [T, Hq, D], k and v [T, Hkv, D], as `rotate` returned them."""
        ...


@dataclass(slots=True)
class Layer:
    """One decoder layer's frozen tensors."""

    norm1: Tensor
    norm2: Tensor
    linears: dict[tuple[Target, ...], BaseLinear]
    q_norm: Tensor | None = None
    k_norm: Tensor | None = None


@dataclass(slots=True)
class Exactness:
    """How linears are computed. ``exact``: a row's bits do not depend on the batch, which needs one form of
    linear and at least ``min_rows`` rows; they are padded to few counts, which bounds memory (`padded_rows`).
    """

    linear: Linear = library_linear
    min_rows: int = 1
    exact: bool = False

    def padding(self, rows: int) -> int:
        """Rows to add to ``rows`` before a linear."""
        return padded_rows(rows, self.min_rows) - rows if self.exact else 0


@dataclass(slots=True)
class Decoder:
    """Frozen base model with an adapter, or bare. Built by `Decoder.build`; `wearing` gives it another one.

    ``counts``: of all that share the base.
    """

    config: ModelConfig
    dtype: torch.dtype
    embed: Tensor
    head: Tensor
    norm: Tensor
    layers: list[Layer]
    cos: Tensor
    sin: Tensor
    lora: LoRABuffer | None = None
    form: Exactness = field(default_factory=Exactness)
    counts: Counter[str] = field(default_factory=Counter)

    @classmethod
    def build(
        cls,
        config: ModelConfig,
        weights: dict[str, Tensor | NF4Tensor],
        dtype: torch.dtype,
        lora: LoRABuffer | None,
        resident: bool,
        exact: bool = False,
    ) -> Decoder:
        """Take over ``weights`` by Hugging Face's names; popped when used, so that none is held twice."""

        def plain(name: str) -> Tensor:
            tensor = weights.pop(name)
            assert isinstance(tensor, Tensor), name
            return tensor.to(dtype)

        embed = plain("model.embed_tokens.weight")
        head = embed if config.tie_embeddings else plain("lm_head.weight")
        layers = []
        for i in range(config.num_layers):
            prefix = f"model.layers.{i}"
            linears = {
                group: stack_linears(weights, i, group, config, dtype, resident, exact) for group in GROUPS
            }
            q_norm = plain(f"{prefix}.self_attn.q_norm.weight") if config.qk_norm else None
            k_norm = plain(f"{prefix}.self_attn.k_norm.weight") if config.qk_norm else None
            norm1, norm2 = (
                plain(f"{prefix}.input_layernorm.weight"),
                plain(f"{prefix}.post_attention_layernorm.weight"),
            )
            layers.append(Layer(norm1, norm2, linears, q_norm, k_norm))
        positions = torch.arange(config.context_length, dtype=torch.float32)
        angles = torch.outer(positions, config.rope.inv_freq(config.head_dim))
        factor = config.rope.attention_factor
        cos, sin = (angles.cos() * factor).to(dtype), (angles.sin() * factor).to(dtype)
        device = embed.device
        return cls(
            config,
            dtype,
            embed,
            head,
            plain("model.norm.weight"),
            layers,
            cos.to(device),
            sin.to(device),
            lora,
        )

    def wearing(self, lora: LoRABuffer | None) -> Decoder:
        """The same base with another adapter, or none; nothing is copied."""
        return self if lora is self.lora else replace(self, lora=lora)

    @property
    def rows_computed(self) -> int:
        """Rows that went through the layers, with any adapter."""
        return self.counts["rows"]

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self.embed.device

    def linear_shapes(self) -> set[tuple[int, int]]:
        """(N, K) of every product a row meets: stacked base linears, adapters and the head."""
        size = shapes(self.config)
        products = {(self.head.shape[0], self.head.shape[1])}
        for group in GROUPS:
            inputs = size[group[0]][1]
            products.add((sum(size[t][0] for t in group), inputs))
        for adapter in self.lora.adapters.values() if self.lora else ():
            products |= {(factor.shape[0], factor.shape[1]) for factor in (adapter.a, *adapter.b)}
        return products

    def hidden(
        self,
        ids: Tensor,
        positions: Tensor,
        view: AttentionView,
        adapters: RowAdapters | None = None,
    ) -> Tensor:
        """Last hidden rows before the final norm: ids, positions int64 [T] -> [T, H].

        ``adapters``: those of the rows; None: this decoder's own on all rows.
        """
        rows = ids.shape[0]
        self.counts["rows"] += rows
        if adapters is None:
            adapters = [] if self.lora is None else [(self.lora, None)]
        pad = self.form.padding(rows)
        if pad:
            ids, positions = (torch.cat([t, t[:1].expand(pad)]) for t in (ids, positions))
            adapters = [
                (lora, None if mask is None else torch.cat([mask, mask[:1].expand(pad)]))
                for lora, mask in adapters
            ]
        cos, sin = self.cos[positions[:rows]], self.sin[positions[:rows]]
        h, delta = self.embed[ids], None
        for i, layer in enumerate(self.layers):
            delta, h = self._layer(i, layer, h, delta, cos, sin, rows, view, adapters)
        return (h if delta is None else h + delta)[:rows]

    def _layer(
        self,
        i: int,
        layer: Layer,
        h: Tensor,
        delta: Tensor | None,
        cos: Tensor,
        sin: Tensor,
        rows: int,
        view: AttentionView,
        adapters: RowAdapters,
    ) -> tuple[Tensor, Tensor]:
        """(the layer's last addition to the residual stream, the stream before it).

        The next norm adds the two in its own pass.
        """
        c = self.config

        def linear(x: Tensor, group: tuple[Target, ...], remade: Remade | None = None) -> Tensor:
            base = layer.linears[group]
            here = [(pair, mask) for lora, mask in adapters if (pair := lora.adapters.get((i, group)))]
            first, mask = here[0] if here else (None, None)
            return lora_linear(x, base.weight, base.bias, first, mask, self.form.linear, remade, here[1:])

        def normed(weight: Tensor, h: Tensor) -> Remade:
            return Remade(h, lambda h: rms_norm(h, weight, c.rms_eps))

        if delta is None:
            x = rms_norm(h, layer.norm1, c.rms_eps)
        else:
            x, h = add_rms_norm(delta, h, layer.norm1, c.rms_eps)
        qkv = linear(x, GROUPS[0], normed(layer.norm1, h))[:rows].view(rows, -1, c.head_dim)
        if layer.q_norm is not None and layer.k_norm is not None:
            q, k, v = qkv.split((c.num_heads, c.num_kv_heads, c.num_kv_heads), dim=1)
            q, k = rms_norm(q, layer.q_norm, c.rms_eps), rms_norm(k, layer.k_norm, c.rms_eps)
            heads: tuple[Tensor, Tensor | None, Tensor | None] = (rope(q, cos, sin), rope(k, cos, sin), v)
        else:
            heads = view.rotate(i, qkv, cos, sin)
        out = view.attend(i, *heads)
        if h.shape[0] > rows:
            out = torch.nn.functional.pad(out, (0, 0, 0, h.shape[0] - rows))
        x, h = add_rms_norm(linear(out, GROUPS[1]), h, layer.norm2, c.rms_eps)
        gate_up = linear(x, GROUPS[2], normed(layer.norm2, h))
        return linear(swiglu(gate_up), GROUPS[3], Remade(gate_up, swiglu)), h

    def final_norm(self, h: Tensor) -> Tensor:
        """Final RMSNorm of rows [R, H], computed on rows padded by `Exactness.padding`."""
        pad = self.form.padding(h.shape[0])
        if pad:
            h = torch.cat([h, h[:1].expand(pad, -1)])
        out = rms_norm(h, self.norm, self.config.rms_eps)
        return out[: out.shape[0] - pad]

    def head_linear(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """The head's product, computed on rows padded by `Exactness.padding`."""
        pad = self.form.padding(x.shape[0])
        if not pad:
            return self.form.linear(x, weight, bias)
        return self.form.linear(torch.cat([x, x[:1].expand(pad, -1)]), weight, bias)[: x.shape[0]]

    def linear_forms(self) -> tuple[str, ...]:
        """How the base linears are held and multiplied, in words, one entry a kind."""
        held = [base.ready for layer in self.layers for base in layer.linears.values()]
        return tuple(dict.fromkeys(form_of(weight, self.dtype) for weight in held))

    def nbytes(self) -> dict[str, int]:
        """Bytes by kind: dense and nf4 linears, embeddings (with the head), adapter (with its gradient) and
        what it is folded to (`Adapter.folded`).
        """
        sizes = [base.nbytes() for layer in self.layers for base in layer.linears.values()]
        dense, nf4 = sum(size[0] for size in sizes), sum(size[1] for size in sizes)
        tables = self.embed.nbytes + (0 if self.head is self.embed else self.head.nbytes)
        adapter, folded = (2 * self.lora.flat.nbytes, self.lora.folded_bytes) if self.lora else (0, 0)
        return {"dense": dense, "nf4": nf4, "embeddings": tables, "adapter": adapter, "folded": folded}
