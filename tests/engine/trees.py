"""Hypothesis strategies for groups over a tiny alphabet, where prefixes collide all the time, and what their
trees must hold.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from hypothesis import strategies as st
from torch import Tensor

from proactor.engine import Engine, Group, Sample
from proactor.engine.model import Decoder
from proactor.engine.tree import ROOT, Tree
from proactor.kernels.ordered import OrderedWeight
from tests.engine.engines import outside, prompts

tokens = st.lists(st.integers(0, 2), min_size=1, max_size=7)
long_tokens = st.lists(st.integers(0, 1), min_size=1, max_size=40)


@st.composite
def groups(draw: st.DrawFn, ids: st.SearchStrategy[list[int]] = tokens, parents: bool = True) -> list[Group]:
    """Groups with random masks and temperatures; some hang off a sample of an earlier one."""
    made: list[Group] = []
    for _ in range(draw(st.integers(1, 6))):
        before = [s for g in made for s in g.samples]
        parent = (
            draw(st.sampled_from(before)) if parents and before and draw(st.integers(0, 3)) == 0 else None
        )
        prompt = draw(ids)
        if parent is not None:
            prompt = parent.prompt_ids + parent.token_ids + (prompt if draw(st.booleans()) else [])
        samples = [_sample(draw, prompt, draw(ids)) for _ in range(draw(st.integers(1, 3)))]
        key = "shared" if parents else draw(st.sampled_from([None, "a", "b"]))
        made.append(Group(prompt, samples, tree=key, parent=parent))
    return made


def _sample(draw: st.DrawFn, prompt: list[int], ids: list[int]) -> Sample:
    mask = [draw(st.booleans()) for _ in ids] if draw(st.booleans()) else None
    return Sample(prompt, ids, mask=mask, temperature=draw(st.sampled_from([1.0, 0.7])))


def path(tree: Tree, node: int) -> list[int]:
    """Token ids from the root to the end of a node."""
    ids: list[int] = []
    while node != ROOT:
        ids = [*tree.nodes[node].ids.tolist(), *ids]
        node = tree.nodes[node].parent
    return ids


def ancestors(tree: Tree, node: int) -> Iterator[int]:
    """A node and all above it."""
    while node != ROOT:
        yield node
        node = tree.nodes[node].parent


def caterpillar(turns: int) -> list[Group]:
    """A dialogue of turns of one to three tokens, two samples of three tokens at each."""
    trunk = prompts(1, length=turns * 2)[0]
    ends = [2 * i + 1 + i % 2 for i in range(turns)]
    return [
        Group(trunk[:u], [outside(trunk[:u], [5 + i, 7, j], advantage=j - 0.5) for j in range(2)], tree="one")
        for i, u in enumerate(ends)
    ]


def widened(engine: Engine) -> Decoder:
    """The engine's decoder in float64, in place."""
    decoder, lora = engine.decoder, engine.decoder.lora
    assert lora is not None
    decoder.dtype = torch.float64
    for name in ("embed", "head", "norm", "cos", "sin"):
        setattr(decoder, name, getattr(decoder, name).double())
    for layer in decoder.layers:
        layer.norm1, layer.norm2 = layer.norm1.double(), layer.norm2.double()
        for base in layer.linears.values():
            held = base.ready
            assert isinstance(held, Tensor | OrderedWeight)
            dense = held.dense() if isinstance(held, OrderedWeight) else held
            base.ready, base.dtype = dense.double(), torch.float64
            base.bias = None if base.bias is None else base.bias.double()
    lora.flat, lora.grad = lora.flat.double(), lora.grad.double()
    lora.leaves = [lora._leaf(f) for f in lora.factors]
    lora.adapters = lora._adapters()
    return decoder
