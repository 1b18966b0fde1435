"""Least bytes and operations of an engine's phases, by the names of their ranges.

Counted from the shapes and from what is held: each weight is read once a pass, the keys and values of a
context once a sequence. A frozen linear has two products a row in training, forward and backward; a head too.
"""

from __future__ import annotations

from dataclasses import dataclass

from proactor.engine.lora import shapes
from proactor.engine.model import Decoder
from proactor.engine.model_config import ModelConfig


@dataclass(frozen=True, slots=True)
class Work:
    """The least that a phase reads (bytes) and computes (operations)."""

    bytes: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


def linear_weights(config: ModelConfig) -> int:
    """Weights of all linears of all layers, the head left out."""
    return config.num_layers * sum(rows * columns for rows, columns in shapes(config).values())


def decode_work(decoder: Decoder, batch: int, context: int) -> dict[str, Work]:
    """A decode step of ``batch`` sequences that each see ``context`` tokens: its model and its head."""
    c, held = decoder.config, decoder.nbytes()
    size = decoder.embed.element_size()
    keys = 2 * c.num_layers * c.num_kv_heads * c.head_dim * context * size
    attention = 4 * c.num_layers * c.num_heads * c.head_dim * context
    weights = held["dense"] + held["nf4"] + held["adapter"] / 2
    return {
        "sample: model": Work(weights + batch * keys, batch * (2 * linear_weights(c) + attention)),
        "sample: head": _head(decoder, batch),
    }


def pass_work(decoder: Decoder, rows: int) -> Work:
    """One pass of ``rows`` rows through all layers, without attention."""
    held = decoder.nbytes()
    return Work(held["dense"] + held["nf4"], 2.0 * rows * linear_weights(decoder.config))


def train_work(decoder: Decoder, rows: int, head_rows: int) -> dict[str, Work]:
    """A gradient of trees of ``rows`` rows, ``head_rows`` of which predict; attention is left out."""
    model = pass_work(decoder, rows)
    head = _head(decoder, head_rows)
    return {"train: model": model, "train: head and loss": head, "train: backward": model + head}


def _head(decoder: Decoder, rows: int) -> Work:
    c = decoder.config
    return Work(decoder.head.nbytes, 2.0 * rows * c.vocab_size * c.hidden_size)
