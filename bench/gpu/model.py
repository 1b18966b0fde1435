"""A whole model of random NF4 weights, drawn on the device: no file, no download, seconds for 14B."""

from __future__ import annotations

import gc
from dataclasses import replace

import torch
from torch import Tensor

from bench.gpu.floors import RANK
from bench.shapes import model_config
from proactor.engine.checkpoint import is_linear, weight_shapes
from proactor.engine.config import EngineConfig
from proactor.engine.engine import Engine
from proactor.engine.loading import Model
from proactor.engine.lora import LoRABuffer
from proactor.engine.lora_config import LoRA
from proactor.engine.model import Decoder
from proactor.engine.model_config import ModelConfig
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.nf4_records import draw_nf4
from proactor.kernels.op import ModelShape

SPREAD = 0.02
"""Standard deviation of dense weights, as models are initialised."""
SCALE = 0.05
"""Brings the weights of `draw_nf4` to about `SPREAD`, so that rows keep the size that they have in models."""
Weights = dict[str, Tensor | NF4Tensor]


def random_weights(config: ModelConfig, device: torch.device, seed: int) -> Weights:
    """Every tensor of a checkpoint: linears in double-quantised NF4, norms 1, the rest bfloat16."""
    generator = torch.Generator(device=device).manual_seed(seed)
    weights: Weights = {}
    for name, shape in weight_shapes(config).items():
        if is_linear(name):
            drawn = draw_nf4((shape[0], shape[1]), True, generator, device)
            assert drawn.nested_absmax is not None
            drawn.nested_absmax.mul_(SCALE)
            weights[name] = replace(drawn, nested_offset=drawn.nested_offset * SCALE)
        elif name.endswith("norm.weight"):
            weights[name] = torch.ones(shape, dtype=torch.bfloat16, device=device)
        else:
            drawn_dense = torch.empty(shape, dtype=torch.bfloat16, device=device)
            weights[name] = drawn_dense.normal_(0, SPREAD, generator=generator)
    return weights


def random_adapter(config: ModelConfig, device: torch.device, seed: int) -> LoRABuffer:
    """A LoRA on all targets whose B is not 0, so that it changes what the model computes."""
    buffer = LoRABuffer(config, LoRA(rank=RANK, alpha=2 * RANK), device, seed)
    generator = torch.Generator(device=device).manual_seed(seed)
    with torch.no_grad():
        for factor, leaf in zip(buffer.factors, buffer.leaves, strict=True):
            if factor.kind == "b":
                leaf.normal_(0, SPREAD / 4, generator=generator)
    return buffer


def random_decoder(
    shape: ModelShape, device: torch.device, seed: int, weights: Weights | None = None
) -> Decoder:
    """A decoder in bfloat16 whose linears stay 4-bit; takes over ``weights``, drawn if None."""
    config = model_config(shape)
    if weights is None:
        weights = random_weights(config, device, seed)
    adapter = random_adapter(config, device, seed)
    return Decoder.build(config, weights, torch.bfloat16, adapter, resident=False)


def random_engine(
    shape: ModelShape, device: torch.device, seed: int, rows: int, weights: Weights | None = None
) -> Engine:
    """An engine over `random_decoder` without a tokenizer. ``rows``: its token budget and size of cache."""
    decoder = random_decoder(shape, device, seed, weights)
    options = EngineConfig(device=str(device), dtype="bfloat16", token_budget=rows, kv_tokens=rows)
    return Engine(Model(decoder.config, decoder, None), options, seed)


def collect() -> None:
    """Give the memory of dropped models back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
