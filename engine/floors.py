"""Least bytes and operations of an engine's phases, by the names of their ranges.

Operations are those of `engine/operations.py`, bytes those that are held: each weight is read once a pass,
the keys and values of a context once a sequence. A frozen linear has two products a row in training, forward
and backward; a head too.
"""

from __future__ import annotations

from dataclasses import dataclass

from proactor.engine.footprint import token_bytes
from proactor.engine.model import Decoder
from proactor.engine.operations import Operations, Work


@dataclass(frozen=True, slots=True)
class Least:
    """The least that a phase reads (bytes) and computes (operations)."""

    bytes: float
    flops: float

    def __add__(self, other: Least) -> Least:
        return Least(self.bytes + other.bytes, self.flops + other.flops)


def decode_work(decoder: Decoder, batch: int, context: int) -> dict[str, Least]:
    """A decode step of ``batch`` sequences that each see ``context`` tokens: its model and its head."""
    held, keys = decoder.nbytes(), context * token_bytes(decoder.config, decoder.embed.element_size())
    weights = held["dense"] + held["nf4"] + held["adapter"] / 2
    flops = _forward(decoder, Work(rows=batch, pairs=batch * context))
    return {
        "sample: model": Least(weights + batch * keys, flops),
        "sample: head": _head(decoder, batch),
    }


def pass_work(decoder: Decoder, rows: int) -> Least:
    """One pass of ``rows`` rows through all layers, without attention."""
    held = decoder.nbytes()
    return Least(held["dense"] + held["nf4"], _forward(decoder, Work(rows=rows)))


def train_work(decoder: Decoder, rows: int, head_rows: int) -> dict[str, Least]:
    """A gradient of trees of ``rows`` rows, ``head_rows`` of which predict; attention is left out."""
    model = pass_work(decoder, rows)
    head = _head(decoder, head_rows)
    return {"train: model": model, "train: head and loss": head, "train: backward": model + head}


def _head(decoder: Decoder, rows: int) -> Least:
    return Least(decoder.head.nbytes, _forward(decoder, Work(heads=rows)))


def _forward(decoder: Decoder, work: Work) -> float:
    return sum(Operations.of(decoder.config, None).forward(work).values())
