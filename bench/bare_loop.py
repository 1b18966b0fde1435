"""Greedy decoding in plain torch over a static KV cache: the least that a decode step must do.

A step is the layers' products, norms, rotation and attention, the head and an argmax. There is no scheduler,
no page, no adapter, no log-probability and no noise. All sequences have one length, so nothing is masked.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from proactor.engine.lora import GROUPS
from proactor.engine.model import Decoder
from proactor.kernels.linear import Linear
from proactor.kernels.ordered import OrderedWeight


class BareLoop:
    """Decodes with the weights of an engine's decoder: dense ones, without biases and QK norm (Llama).

    ``linear``: the product of its steps, `library_linear` for plain torch, or the one that the engine uses.
    Prompts are read with the engine's: they are not timed.
    """

    def __init__(self, decoder: Decoder, linear: Linear) -> None:
        first = decoder.layers[0]
        biased = any(base.bias is not None for base in first.linears.values())
        if biased or first.q_norm is not None:
            raise SystemExit("bench.bare: the bare loop has neither biases nor QK norm; take a Llama")
        self.config, self.cos, self.sin = decoder.config, decoder.cos, decoder.sin
        self.embed, self.head, self.norm = decoder.embed, decoder.head, decoder.norm
        self.linear, self.step_linear, self.prompt_linear = linear, linear, decoder.form.linear
        self.layers = [
            (layer.norm1, layer.norm2, *(_dense(layer.linears[group].weight()) for group in GROUPS))
            for layer in decoder.layers
        ]
        self.length = 0
        self.ids: list[Tensor] = []  # [B] a token drawn
        self.logits: list[Tensor] = []  # [B, V] a token drawn

    def begin(self, prompts: list[list[int]], new: int) -> None:
        """Read prompts of one length, with room for 2 * ``new`` tokens each, and draw the first ones."""
        c, count = self.config, len(prompts)
        shape = (count, c.num_kv_heads, len(prompts[0]) + 2 * new, c.head_dim)
        self.keys = [self.embed.new_zeros(shape) for _ in self.layers]
        self.values = [self.embed.new_zeros(shape) for _ in self.layers]
        self.length, self.ids, self.logits = 0, [], []
        self._take(torch.tensor(prompts))

    def step(self) -> None:
        """Decode one token of each sequence."""
        self._take(self.ids[-1][:, None])

    def tokens(self, count: int) -> list[list[int]]:
        """The first ``count`` tokens of each sequence."""
        return torch.stack(self.ids[:count], 1).tolist()

    @torch.inference_mode()
    def _take(self, ids: Tensor) -> None:
        """Append the greedy tokens after ids [B, T]."""
        self.linear = self.prompt_linear if not self.length else self.step_linear
        logits = self._logits(ids, self.length)
        self.length += ids.shape[1]
        self.ids.append(logits.argmax(-1))
        self.logits.append(logits)

    def _logits(self, ids: Tensor, at: int) -> Tensor:
        """Logits [B, V] of the last of ids [B, T], which stand at positions ``at`` …"""
        c, (count, length) = self.config, ids.shape
        cos, sin = (table[at : at + length] for table in (self.cos, self.sin))
        cos, sin = torch.cat([cos, cos], -1)[:, None], torch.cat([-sin, sin], -1)[:, None]
        h, norm = self.embed[ids], self._norm
        for i, (norm1, norm2, w_qkv, w_out, w_gate_up, w_down) in enumerate(self.layers):
            qkv = self._product(norm(h, norm1), w_qkv).view(count, length, -1, c.head_dim)
            turned, v = qkv.split((c.num_heads + c.num_kv_heads, c.num_kv_heads), 2)
            turned = turned * cos + turned.roll(c.head_dim // 2, -1) * sin
            q, k = turned.split((c.num_heads, c.num_kv_heads), 2)
            self.keys[i][:, :, at : at + length] = k.transpose(1, 2)
            self.values[i][:, :, at : at + length] = v.transpose(1, 2)
            h = h + self._product(self._attend(i, q, at + length), w_out)
            gate, up = self._product(norm(h, norm2), w_gate_up).chunk(2, -1)
            h = h + self._product(F.silu(gate) * up, w_down)
        return self.linear(norm(h[:, -1], self.norm), self.head, None)

    def _norm(self, x: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(x, weight.shape, weight, self.config.rms_eps)

    def _product(self, x: Tensor, weight: Tensor) -> Tensor:
        return self.linear(x.reshape(-1, x.shape[-1]), weight, None).view(*x.shape[:-1], -1)

    def _attend(self, layer: int, q: Tensor, seen: int) -> Tensor:
        """[B, T, Hq * D] of q [B, T, Hq, D] over the first ``seen`` tokens."""
        count, length, _, width = q.shape
        k, v = self.keys[layer][:, :, :seen], self.values[layer][:, :, :seen]
        attend: Callable[..., Tensor] = F.scaled_dot_product_attention
        if length == 1:  # the heads of a group are rows that see the same keys
            return attend(q.view(count, k.shape[1], -1, width), k, v).reshape(count, 1, -1)
        out = attend(q.transpose(1, 2), k, v, is_causal=True, enable_gqa=True)
        return out.transpose(1, 2).reshape(count, length, -1)


def _dense(weight: object) -> Tensor:
    if isinstance(weight, OrderedWeight):
        return weight.dense()
    assert isinstance(weight, Tensor), "the bare loop multiplies dense weights"
    return weight
