"""Least bytes and operations of a decode step and of a training step: what the measured times are held to.

Counted from the model's shape alone. A floor is the larger of bytes over the card's copy rate and operations
over its rate of bf16 products, both measured in the same run. At 4.3 TB/s and 790 TFLOP/s a decode step of
Qwen2.5-14B at a context of 2,048 takes at least 2.08, 3.54, 8.21 and 26.9 ms for 1, 16, 64 and 256 sequences
(`tests/bench/gpu/test_floors.py`); these are computed, not measured.
"""

from __future__ import annotations

import math

from proactor.kernels.op import ModelShape

NF4_BYTES = 0.5 + (1 + 4 / 256) / 64
"""Bytes of a weight: 4 bits, a byte of scale for 64 weights, a float32 for 256 scales."""
RANK = 16
HALF = 2
"""Bytes of a bfloat16."""


def linear_weights(shape: ModelShape) -> int:
    """Weights of all linears of all layers, the head left out."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    attention = shape.hidden * (2 * queries + 2 * keys)
    return shape.layers * (attention + 3 * shape.hidden * shape.intermediate)


def adapter_weights(shape: ModelShape, rank: int = RANK) -> int:
    """Weights of a LoRA of ``rank`` on all seven linears of all layers."""
    queries, keys, h, i = (
        shape.heads * shape.head_dim,
        shape.kv_heads * shape.head_dim,
        shape.hidden,
        shape.intermediate,
    )
    sides = 2 * (queries + h) + 2 * (keys + h) + 3 * (h + i)
    return shape.layers * rank * sides


def decode_bytes(shape: ModelShape, batch: int, context: int) -> float:
    """Bytes of a decode step: NF4 linears, adapter and head once, the keys and values of ``context`` tokens
    of each sequence, and every intermediate row written and read once.
    """
    weights = NF4_BYTES * linear_weights(shape)
    weights += HALF * (adapter_weights(shape) + shape.vocabulary * shape.hidden)
    pages = 2 * HALF * shape.layers * shape.kv_heads * shape.head_dim * context
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # a layer: two norms with their sums, q k v, attention, o, gate and up, their product, down
    layer = 4 * shape.hidden + 2 * queries + 2 * keys + 2 * shape.hidden + 3 * shape.intermediate
    rows = 2 * HALF * (shape.layers * layer + shape.vocabulary)
    return weights + batch * (pages + rows)


def decode_flops(shape: ModelShape, batch: int, context: int) -> float:
    """Operations of a decode step."""
    products = 2 * (linear_weights(shape) + adapter_weights(shape) + shape.vocabulary * shape.hidden)
    attention = 4 * shape.heads * shape.head_dim * context * shape.layers
    return batch * (products + attention)


def train_flops(shape: ModelShape, rows: int, pairs: int, head_rows: int, recompute: bool = False) -> float:
    """Operations of a forward and backward pass: frozen linears twice, attention 3.5 times, adapter thrice.

    ``pairs``: (query row, visible key) of the tree; ``head_rows``: rows whose logits are needed, two products
    each. ``recompute``: with gradient checkpointing, where layers and head go forward twice.
    """
    linear, adapter = 2 * linear_weights(shape) * rows, 2 * adapter_weights(shape) * rows
    attention = 4 * pairs * shape.heads * shape.head_dim * shape.layers
    head = 2 * shape.vocabulary * shape.hidden * head_rows
    once = 2 * linear + 3 * adapter + 3.5 * attention + 2 * head
    return once + (linear + adapter + attention + head if recompute else 0)


def rounding_gap(shape: ModelShape) -> float:
    """Expected distance (nats) of two bf16 forwards that round differently.

    Each of the 2 x layers additions to the residual stream errs by 2^-9 of it, independently; logits of
    spread 1 then differ by sqrt(2 layers) 2^-9.
    """
    return math.sqrt(2 * shape.layers) * 2**-9
