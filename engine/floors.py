"""Least bytes and operations of an engine's phases, by the names of their ranges.

Counted from the shapes and from what is held: each weight is read once a pass, the keys and values of a
context once a sequence. A frozen linear has two products a row in training, forward and backward; a head too.
"""

from __future__ import annotations

from dataclasses import dataclass

from proactor.engine.model import Decoder
from proactor.engine.operations import Operations


@dataclass(frozen=True, slots=True)
class Work:
    """The least that a phase reads (bytes) and computes (operations)."""

    bytes: float
    flops: float

    def __add__(self, other: Work) -> Work:
        return Work(self.bytes + other.bytes, self.flops + other.flops)


def decode_work(decoder: Decoder, batch: int, context: int) -> dict[str, Work]:
    """A decode step of ``batch`` sequences that each see ``context`` tokens: its model and its head."""
    c, held = decoder.config, decoder.nbytes()
    size = decoder.embed.element_size()
    keys = 2 * c.num_layers * c.num_kv_heads * c.head_dim * context * size
    count = Operations.of(c, None)
    weights = held["dense"] + held["nf4"] + held["adapter"] / 2
    return {
        "sample: model": Work(weights + batch * keys, batch * (count.linear + count.pair * context)),
        "sample: head": _head(decoder, batch),
    }


def pass_work(decoder: Decoder, rows: int) -> Work:
    """One pass of ``rows`` rows through all layers, without attention."""
    held = decoder.nbytes()
    return Work(held["dense"] + held["nf4"], rows * Operations.of(decoder.config, None).linear)


def train_work(decoder: Decoder, rows: int, head_rows: int) -> dict[str, Work]:
    """A gradient of trees of ``rows`` rows, ``head_rows`` of which predict; attention is left out."""
    model = pass_work(decoder, rows)
    head = _head(decoder, head_rows)
    return {"train: model": model, "train: head and loss": head, "train: backward": model + head}


def _head(decoder: Decoder, rows: int) -> Work:
    return Work(decoder.head.nbytes, rows * Operations.of(decoder.config, None).head)
