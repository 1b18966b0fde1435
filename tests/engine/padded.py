"""The reference of the loss tests: separate sequences, padded, in a plain dense float64 transformer, and each
loss written out sequence by sequence. Nothing of it is the engine's but the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.engine import GRPO, SFT, Group, Sample
from proactor.engine.lora import GROUPS
from proactor.engine.lora_config import Target
from proactor.engine.model import Decoder


@dataclass(slots=True)
class Scored:
    """A sample's trained tokens: log-probabilities, entropies, and log-probabilities of the bare model."""

    sample: Sample
    new: Tensor
    entropy: Tensor
    bare: Tensor


def scored(decoder: Decoder, groups: Sequence[Group]) -> list[Scored]:
    """Every sample as a sequence of its own, with the graph to the adapter's leaves."""
    samples = [s for g in groups for s in g.samples if any(s.trained_mask())]
    rows = [[*s.prompt_ids, *s.token_ids] for s in samples]
    logits, bare = (_logits(decoder, rows, adapter) for adapter in (True, False))
    out = []
    for i, sample in enumerate(samples):
        at = len(sample.prompt_ids) + torch.tensor(sample.trained_mask()).nonzero()[:, 0]
        target = torch.tensor(rows[i])[at][:, None]
        scale = torch.tensor(sample.temperature).reciprocal()  # held in float32
        logp, base = ((x[i][at - 1] * scale).log_softmax(-1) for x in (logits, bare))
        entropy = -(logp.exp() * logp).sum(-1)
        out.append(
            Scored(sample, logp.gather(1, target)[:, 0], entropy, base.gather(1, target)[:, 0].detach())
        )
    return out


def loss_by_hand(config: GRPO | SFT, several: Sequence[Scored]) -> Tensor:
    """The unnormalised sum of a loss, sequence by sequence."""
    return torch.stack([_sequence_loss(config, x) for x in several]).sum()


def _sequence_loss(config: GRPO | SFT, x: Scored) -> Tensor:
    keep = torch.tensor(x.sample.trained_mask())
    weight = _column(x.sample.token_weights())[keep]
    if config.normalizer == "samples":
        weight = weight / len(weight)
    if config.normalizer == "turns":
        lengths = torch.zeros(len(keep))
        for start, end in x.sample.turns():
            lengths[start:end] = end - start
        weight = weight / lengths[keep]
    if isinstance(config, SFT):
        return -(x.new * weight).sum()
    advantage = _column(x.sample.token_advantages())[keep]
    recorded = _column(x.sample.policy_logprobs)[keep]
    old = x.new.detach() if config.old_policy == "recomputed" else recorded
    if isinstance(config.importance_cap, float):  # auto: none without a measured gap
        shift = (old - _column(x.sample.logprobs)[keep]).exp()
        beyond = shift > config.importance_cap
        weight = weight * (
            shift * ~beyond if config.importance == "masked" else shift.clamp(max=config.importance_cap)
        )
    change = x.new - old
    ratio = (change.mean().expand(len(change)) if config.ratio == "sequence" else change).exp()
    high = config.epsilon if config.epsilon_high is None else config.epsilon_high
    bounded = ratio.clamp(1 - config.epsilon, 1 + high)
    if config.clip == "cispo":
        term = -bounded.detach() * advantage * x.new
    else:
        term = -torch.minimum(ratio * advantage, bounded * advantage)
    d = x.bare - x.new
    term = term + config.beta * {"k1": -d, "k2": d * d / 2, "k3": d.exp() - d - 1}[config.kl]
    return ((term - config.entropy_bonus * x.entropy) * weight).sum()


def _column(values: Sequence[float]) -> Tensor:
    """In float32, as the engine holds what was recorded."""
    return torch.tensor(values, dtype=torch.float32)


def gradient_of(decoder: Decoder, loss: Tensor) -> Tensor:
    """The gradient of ``loss`` in the flat adapter; the graph stays."""
    assert decoder.lora is not None
    parts = torch.autograd.grad(loss, decoder.lora.leaves, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


# --- a plain transformer ---


def _logits(decoder: Decoder, rows: Sequence[Sequence[int]], adapter: bool) -> Tensor:
    """[B, L, V] of sequences padded on the right."""
    c, width = decoder.config, max(map(len, rows))
    ids = torch.zeros(len(rows), width, dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
    low_rank = _adapters(decoder) if adapter else {}
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    h = decoder.embed[ids]
    for i, layer in enumerate(decoder.layers):

        def linear(x: Tensor, group: tuple[Target, ...], i: int = i) -> Tensor:
            base = decoder.layers[i].linears[group]
            y = x @ base.weight().t() + (0 if base.bias is None else base.bias)  # type: ignore[union-attr]
            if not low_rank:
                return y
            return y + torch.cat([x @ a.t() @ b.t() for a, b in (low_rank[i, t] for t in group)], -1)

        qkv = (
            linear(_norm(h, layer.norm1, c.rms_eps), GROUPS[0])
            .unflatten(-1, (-1, c.head_dim))
            .transpose(1, 2)
        )
        q, k, v = qkv.split((c.num_heads, c.num_kv_heads, c.num_kv_heads), dim=1)
        q, k = (_rotate(x, decoder.cos[:width], decoder.sin[:width]) for x in (q, k))
        k, v = (x.repeat_interleave(c.num_heads // c.num_kv_heads, dim=1) for x in (k, v))
        scores = (q @ k.transpose(2, 3) * c.head_dim**-0.5).masked_fill(~causal, float("-inf"))
        h = h + linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), GROUPS[1])
        gate, up = linear(_norm(h, layer.norm2, c.rms_eps), GROUPS[2]).chunk(2, -1)
        h = h + linear(torch.nn.functional.silu(gate) * up, GROUPS[3])
    return _norm(h, decoder.norm, c.rms_eps) @ decoder.head.t()


def _adapters(decoder: Decoder) -> dict[tuple[int, Target], tuple[Tensor, Tensor]]:
    """A and scaled B by layer and target."""
    assert decoder.lora is not None
    a: dict[tuple[int, Target], Tensor] = {}
    out: dict[tuple[int, Target], tuple[Tensor, Tensor]] = {}
    for factor, leaf in zip(decoder.lora.factors, decoder.lora.leaves, strict=True):
        if factor.kind == "a":
            a |= {
                (factor.layer, t): part
                for t, part in zip(factor.names, leaf.chunk(len(factor.names)), strict=True)
            }
        else:
            key = factor.layer, factor.names[0]
            out[key] = a[key], leaf * decoder.lora.lora.scale
    return out


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + eps).rsqrt() * weight


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
