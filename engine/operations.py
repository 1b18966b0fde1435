"""Floating-point operations of passes over token trees, counted from a model's shapes.

A product of matrices is two operations for each pair of numbers that it multiplies. What is not a product
(norms, softmax, the optimizer) and what moves weights (dequantising) is not counted.
"""

from __future__ import annotations

from dataclasses import dataclass

from proactor.engine.footprint import adapter_parameters
from proactor.engine.lora import shapes
from proactor.engine.lora_config import LoRA
from proactor.engine.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Work:
    """What a pass computes: ``rows``, their ``pairs`` with the keys they see, and the ``heads`` among them,
    whose logits are needed.
    """

    rows: int = 0
    pairs: int = 0
    heads: int = 0


@dataclass(frozen=True, slots=True)
class Operations:
    """Operations forward: of a row in all layers' frozen linears (``linear``) and adapters, of a pair of a
    row and a key it sees in all layers, and of a row of the head.
    """

    linear: int
    adapter: int
    pair: int
    head: int

    @classmethod
    def of(cls, config: ModelConfig, lora: LoRA | None) -> Operations:
        """Those of a model and its adapter."""
        weights = sum(outputs * inputs for outputs, inputs in shapes(config).values())
        return cls(
            linear=2 * config.num_layers * weights,
            adapter=2 * adapter_parameters(config, lora) if lora else 0,
            pair=4 * config.num_layers * config.num_heads * config.head_dim,
            head=2 * config.vocab_size * config.hidden_size,
        )

    def forward(self, work: Work, adapter: bool = True) -> dict[str, float]:
        """By part of the model, without a graph."""
        row = self.linear + (self.adapter if adapter else 0)
        return {
            "linears": row * work.rows,
            "attention": self.pair * work.pairs,
            "head": self.head * work.heads,
        }

    def backward(self, work: Work) -> dict[str, float]:
        """By part of the model: no weight gradient but the adapter's, five products of attention for the
        forward's two, logits kept.
        """
        return {
            "linears": (self.linear + 2 * self.adapter) * work.rows,
            "attention": 2.5 * self.pair * work.pairs,
            "head": self.head * work.heads,
        }
