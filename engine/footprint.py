"""Bytes that a model takes on a GPU, from its shapes: what it holds, and what a row of each pass needs.

Counted from the tensors of the Triton path, not measured on a card. `saved_row` changes with the tensors that
a layer's backward reads; `tests/engine/test_footprint.py` holds it to what autograd keeps.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from proactor.engine.checkpoint import is_linear, weight_shapes
from proactor.engine.lora import GROUPS, shapes
from proactor.engine.lora_config import LoRA
from proactor.engine.lora_targets import adapted, total_rank
from proactor.engine.model_config import ModelConfig
from proactor.kernels.logprob import CHUNK_BYTES, KEEP_BYTES
from proactor.kernels.nf4 import BLOCK, NESTED_BLOCK
from proactor.kernels.nf4_pack import TILE_COLUMNS, TILE_ROWS

NF4_TABLES = 64 + 1024
"""The sixteen levels and the 256 nested ones, float32."""
SPAN_PARTS = 64 << 20
"""Most float32 partial sums of the tree attention's key gradients (`Spans.key_work`)."""
COLUMNS = 256
"""Ids, positions, targets, statistics and other columns of a row."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of one model.

    Held: ``weights``, ``adapter`` (all, with gradients), ``optimizer`` (their moments). ``loading``: scratch
    while weights are read. ``token``: KV of a token. ``row``, ``trained_row``: of a row in a pass without and
    with gradient. ``product`` (the largest weight, dequantised) and ``head``, ``trained_head`` (chunks of
    logits): of a pass of any size. ``logits``: of a decoding sequence, and ``parts`` for each `SPLIT` tokens
    of the longest one. ``size``: of a number.
    """

    weights: int
    adapter: int
    optimizer: int
    loading: int
    token: int
    row: int
    trained_row: int
    product: int
    head: int
    trained_head: int
    logits: int
    parts: int
    size: int

    @property
    def kept_row(self) -> int:
        """Bytes of a row in a tree that is computed in chunks: its keys and values, and their gradients."""
        return self.token + self.token // self.size * 4

    @property
    def held(self) -> int:
        """Bytes that stay for as long as the engine lives."""
        return self.weights + self.adapter + self.optimizer

    def pass_bytes(self, rows: int, gradient: bool) -> int:
        """Bytes of a pass over a tree of ``rows``, with or without ``gradient``."""
        head, row = (self.trained_head, self.trained_row) if gradient else (self.head, self.row)
        return self.product + head + rows * row

    def most_rows(self, room: int, gradient: bool) -> int:
        """Rows of the largest pass that fits in ``room`` bytes."""
        row = self.trained_row if gradient else self.row
        return max(0, room - self.pass_bytes(0, gradient)) // row

    @classmethod
    def of(
        cls, config: ModelConfig, lora: LoRA | Iterable[LoRA] | None, nf4: bool, dtype: torch.dtype
    ) -> Footprint:
        """The footprint of a model and its adapter or adapters, of which a pass with gradient has one;
        ``nf4``: linears stay 4-bit, else all is ``dtype``.
        """
        loras = [lora] if isinstance(lora, LoRA) else list(lora or ())
        size, tensor = dtype.itemsize, shapes(config)
        largest = max(sum(tensor[t][0] for t in group) * tensor[group[0]][1] for group in GROUPS)
        parameters = sum(adapter_parameters(config, lora) for lora in loras)
        layers = config.num_layers
        ranks = max((total_rank(lora, layers) for lora in loras), default=0)
        trained = layers * saved_row(config, size) + (ranks + 6 * config.hidden_size) * size
        return cls(
            weights=weight_bytes(config, nf4, size),
            adapter=8 * parameters,
            optimizer=8 * parameters,
            loading=(size + 2) * largest,  # repacking takes 4 bytes a weight, stacking dense parts ``size``
            token=token_bytes(config, size),
            row=passing_row(config, size),
            trained_row=trained + passing_row(config, size),
            product=nf4 * largest * max(size, 6 * (size > 2)),  # float32 is widened from the stored bfloat16
            head=CHUNK_BYTES,
            trained_head=CHUNK_BYTES + KEEP_BYTES + SPAN_PARTS,
            logits=2 * config.vocab_size * (2 * size + 1),  # a sample that ends and one that begins; a mask
            parts=2 * config.num_heads * (config.head_dim + 1) * 4,  # float32, of shared and of own pages
            size=size,
        )


def adapter_parameters(config: ModelConfig, lora: LoRA) -> int:
    """Numbers of A and B of all adapted linears."""
    size = shapes(config)
    pairs = adapted(lora, config.num_layers)
    return sum(pair.rank * sum(size[target]) for (_, target), pair in pairs.items())


def token_bytes(config: ModelConfig, size: int) -> int:
    """Bytes of a token's keys and values in all layers, ``size`` bytes a number."""
    return 2 * config.num_layers * config.num_kv_heads * config.head_dim * size


def weight_bytes(config: ModelConfig, nf4: bool, size: int) -> int:
    """Bytes of all weights and of the rotary tables; the 4-bit ones with double quantisation."""
    total = config.context_length * config.head_dim * size
    for name, shape in weight_shapes(config).items():
        if nf4 and is_linear(name):
            total += nf4_bytes(shape[0], shape[1])
        else:
            total += torch.Size(shape).numel() * size
    return total


def nf4_bytes(rows: int, columns: int) -> int:
    """Bytes of a `PackedNF4` weight, its rows and columns padded to whole tiles."""
    padded = -(-rows // TILE_ROWS) * TILE_ROWS * -(-columns // TILE_COLUMNS) * TILE_COLUMNS
    blocks = padded // BLOCK
    return padded // 2 + blocks + 8 * -(-blocks // NESTED_BLOCK) + NF4_TABLES


def saved_row(config: ModelConfig, size: int) -> int:
    """Bytes that autograd keeps of a row and layer for the backward, ``size`` bytes a number, without x A."""
    q, kv = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    kept = [
        2 * config.hidden_size,  # the residual stream at both norms
        q + kv,  # q and k, rotated
        kv,  # v
        q,  # the attention's output
        2 * config.intermediate_size,  # gate and up
    ]
    if config.qk_norm:
        kept.append(q + kv)  # q and k before their norms, in the projection that v is a part of
    return sum(kept) * size + 4 * config.num_heads  # log-sum-exp


def passing_row(config: ModelConfig, size: int) -> int:
    """Most bytes of a row that live inside one layer's forward or backward, and are not kept."""
    qkv = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    return (max(3 * config.intermediate_size, 5 * qkv) + 4 * config.hidden_size) * size + COLUMNS
