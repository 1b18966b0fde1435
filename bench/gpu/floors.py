"""Least bytes and operations of a decode step and of a training step: what the measured times are held to.

Counted from the model's shape alone: operations by `engine/operations.py`, packed weights by
`engine/footprint.py`. A floor is the larger of bytes over the card's copy rate and operations over its rate
of bf16 products, both measured in the same run. At 4.3 TB/s and 790 TFLOP/s a decode step of Qwen2.5-14B at a
context of 2,048 takes at least 2.08, 3.54, 8.21 and 26.9 ms for 1, 16, 64 and 256 sequences
(`tests/bench/gpu/test_floors.py`); these are computed, not measured.
"""

from __future__ import annotations

import math

from bench.shapes import model_config
from proactor.engine.footprint import adapter_parameters, nf4_bytes, token_bytes
from proactor.engine.lora import shapes
from proactor.engine.lora_config import LoRA
from proactor.engine.operations import Operations, Work
from proactor.kernels.op import ModelShape

RANK = 16
HALF = 2
"""Bytes of a bfloat16."""


def operations(shape: ModelShape) -> Operations:
    """Those of a model with a LoRA of `RANK` on all seven linears of all layers."""
    return Operations.of(model_config(shape), LoRA(rank=RANK))


def decode_bytes(shape: ModelShape, batch: int, context: int) -> float:
    """Bytes of a decode step: NF4 linears, adapter and head once, the keys and values of ``context`` tokens
    of each sequence, and every intermediate row written and read once.
    """
    config = model_config(shape)
    weights = shape.layers * sum(nf4_bytes(*size) for size in shapes(config).values())
    weights += HALF * (adapter_parameters(config, LoRA(rank=RANK)) + shape.vocabulary * shape.hidden)
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # a layer: two norms with their sums, q k v, attention, o, gate and up, their product, down
    layer = 4 * shape.hidden + 2 * queries + 2 * keys + 2 * shape.hidden + 3 * shape.intermediate
    rows = 2 * HALF * (shape.layers * layer + shape.vocabulary)
    return weights + batch * (token_bytes(config, HALF) * context + rows)


def decode_flops(shape: ModelShape, batch: int, context: int) -> float:
    """Operations of a decode step."""
    work = Work(rows=batch, pairs=batch * context, heads=batch)
    return sum(operations(shape).forward(work).values())


def train_flops(shape: ModelShape, rows: int, pairs: int, head_rows: int, recompute: bool = False) -> float:
    """Operations of a forward and backward pass.

    ``pairs``: (query row, visible key) of the tree; ``head_rows``: rows whose logits are needed.
    ``recompute``: with gradient checkpointing, where layers and head go forward twice.
    """
    count, work = operations(shape), Work(rows, pairs, head_rows)
    forward = sum(count.forward(work).values())
    return forward * (2 if recompute else 1) + sum(count.backward(work).values())


def rounding_gap(shape: ModelShape) -> float:
    """Expected distance (nats) of two bf16 forwards that round differently.

    Each of the 2 x layers additions to the residual stream errs by 2^-9 of it, independently; logits of
    spread 1 then differ by sqrt(2 layers) 2^-9.
    """
    return math.sqrt(2 * shape.layers) * 2**-9
