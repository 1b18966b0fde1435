"""Span attention beyond its record: spans and work lists by definition, layouts, errors, repeatability."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proactor.kernels import spans as spans_module
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.past import Past
from proactor.kernels.span_attention import span_attention, span_attention_reference
from proactor.kernels.spans import Spans

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = torch.device("cpu" if interpreted() or not torch.cuda.is_available() else "cuda")
CPU = torch.device("cpu")
Tree = tuple[list[int], list[int], list[int], list[int]]


@st.composite
def trees(draw: st.DrawFn) -> Tree:
    """Starts, lengths, parents and cuts of up to seven segments, in one order."""
    count = draw(st.integers(1, 7))
    lengths = [draw(st.integers(1, 9)) for _ in range(count)]
    parents = [draw(st.integers(-1, i - 1)) for i in range(count)]
    cuts = [
        draw(st.integers(0, lengths[p])) if p >= 0 and draw(st.booleans()) else lengths[max(p, 0)]
        for p in parents
    ]
    return (
        [sum(lengths[:i]) for i in range(count)],
        lengths,
        parents,
        [c if p >= 0 else 0 for c, p in zip(cuts, parents)],
    )


def mask_by_definition(tree: Tree) -> np.ndarray:
    """Walk up from every row."""
    starts, lengths, parents, cuts = tree
    mask = np.zeros((sum(lengths), sum(lengths)), bool)
    for i, (start, length) in enumerate(zip(starts, lengths)):
        for row in range(start, start + length):
            mask[row, start : row + 1] = True
            at = i
            while parents[at] >= 0:
                above = parents[at]
                mask[row, starts[above] : starts[above] + cuts[at]] = True
                at = above
    return mask


@settings(max_examples=150, deadline=None)
@given(trees(), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.integers(0, 7))
def test_spans_and_work_lists_say_what_the_tree_says(
    tree: Tree, rows: int, keys: int, split: bool, before: int
) -> None:
    """The rows of the first ``before`` segments are keys alone."""
    origin = sum(tree[1][:before])
    wanted = mask_by_definition(tree)
    wanted[:origin] = False
    made = Spans.tree(*tree, origin=origin)
    assert (made.visible() == wanted[origin:]).all()
    assert made.pairs == wanted.sum()
    tiles, spans = (x.numpy() for x in made.tiles(rows, CPU))
    seen = np.zeros_like(wanted, dtype=int)
    for first, end, base, low, high in tiles:
        assert 0 < end - first <= rows
        for a, b in spans[low:high]:
            seen[first:end, a:b] += 1
        seen[first:end, base:end] += np.arange(base, end) <= np.arange(first, end)[:, None]
    assert (seen == wanted).all()
    with pytest.MonkeyPatch.context() as patch:
        if split:
            patch.setattr(spans_module, "LEAST_BLOCKS", 1)
            patch.setattr(spans_module, "PROGRAMS", 3)
        work = made.key_work(keys, rows, 1, CPU)
    seen = np.zeros_like(wanted, dtype=int)
    slots = []
    for first, stop, low, high, slot in work.items.numpy():
        slots += [slot] if slot >= 0 else []
        for begin, end, limit in work.entries.numpy()[low:high]:
            key = np.arange(first, stop)
            seen[begin:end, first:stop] += (key < limit) & (key <= np.arange(begin, end)[:, None])
    assert (seen == wanted).all()
    assert sorted(slots) == list(range(work.slots))
    assert sum(work.sums[:, 3].tolist()) == work.slots
    covered = sorted({(first, stop) for first, stop, *_ in work.items.tolist()})
    assert [row for first, stop in covered for row in range(first, stop)] == list(range(len(wanted)))


def test_segments_that_follow_one_another_are_one_run() -> None:
    """A chain is causal attention, without spans; adjacent siblings are one range of visitors."""
    chain = Spans.tree([0, 5, 8], [5, 3, 4], [-1, 0, 1])
    assert len(chain.spans) == 0 and chain.base.tolist() == [0, 0, 0]
    siblings = Spans.tree([0, 5, 8, 12], [5, 3, 4, 2], [-1, 0, 0, 0])
    assert siblings.visitors[0] == [(5, 14, 5)]


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("lengths", ([0], [0], [-1])),
        ("lengths", ([0, 1], [1], [-1, 0])),
        ("starts", ([0, 4], [3, 2], [-1, 0])),
        ("starts", ([0, 2], [3, 2], [-1, 0])),
        ("parents", ([0, 3], [3, 2], [-1, 1])),
        ("parents", ([2, 0], [3, 2], [-1, 0])),
        ("cuts", ([0, 3], [3, 2], [-1, 0], [0, 4])),
        ("origin", ([0, 3], [3, 2], [-1, 0], None, 2)),
        ("origin", ([0, 3], [3, 2], [-1, 0], None, 6)),
    ],
)
def test_bad_segments_are_named(name: str, arguments: tuple[list[int], ...]) -> None:
    with pytest.raises(KernelError, match=f"^{name}: "):
        Spans.tree(*arguments)


def test_bad_sequences_are_named() -> None:
    for edges in ([], [1, 3], [0, 4, 2]):
        with pytest.raises(KernelError, match=r"^(cu_seqlens|lengths): "):
            Spans.causal(edges)


def _draw(rows: int, heads: int, kv_heads: int, dim: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device=DEVICE).manual_seed(3)
    shapes = ((rows, heads, dim), (rows, kv_heads, dim), (rows, kv_heads, dim))
    q, k, v = (torch.randn(s, generator=generator, device=DEVICE) for s in shapes)
    return q, k, v


TREE = Spans.tree([0, 9, 16, 25], [9, 7, 9, 5], [-1, 0, 1, 0], [0, 4, 7, 9])


@pytest.mark.parametrize("wrong", ["k", "v", "spans", "q"])
def test_bad_arguments_are_named(wrong: str) -> None:
    q, k, v = _draw(30, 6, 3, 16)
    bad = {"k": k[:, :, :8], "v": v.double(), "spans": Spans.causal([0, 29]), "q": q.flatten(1)}
    arguments: dict[str, Any] = {"q": q, "k": k, "v": v, "spans": TREE, wrong: bad[wrong]}
    with pytest.raises(KernelError, match=f"^{wrong}: "):
        span_attention(**arguments, scale=1.0)
    with pytest.raises(KernelError, match=r"^k: "):
        span_attention(q[:, :5], k, v, TREE, 1.0)


def _fused(way: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[Tensor], list[Tensor]]:
    """(output, gradient) of a fused projection [T, (6 + 3 + 3) * 16] read by slices: ours, the reference."""
    monkeypatch.setenv("PROACTOR_KERNELS", way)
    fused = torch.cat([x.flatten(1) for x in _draw(30, 6, 3, 16)], 1)
    seed = torch.randn(30, 96, generator=torch.Generator(device=DEVICE).manual_seed(4), device=DEVICE)
    results = []
    for function, x in ((span_attention, fused), (span_attention_reference, fused.double())):
        x = x.clone().requires_grad_()
        q, k, v = (part.unflatten(1, (-1, 16)) for part in x.split([96, 48, 48], 1))
        assert not q.is_contiguous()
        out = function(q, k, v, TREE, 0.3)
        # a gradient that is not contiguous: what a transposed consumer hands back
        (grad,) = torch.autograd.grad(out, [x], seed.to(x.dtype).t().contiguous().t())
        results.append([out, grad])
    return results[0], results[1]


@needs_triton
@pytest.mark.parametrize("way", ["triton", "reference"])
def test_slices_of_a_fused_projection(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, wanted = _fused(way, monkeypatch)
    for a, b in zip(ours, wanted):
        torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-5)


@needs_triton
def test_split_key_tiles_sum_the_same_and_repeat_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, wanted = _fused("triton", monkeypatch)
    monkeypatch.setattr(spans_module, "LEAST_BLOCKS", 1)
    monkeypatch.setattr(spans_module, "PROGRAMS", 100)
    TREE._cache.clear()
    split, _ = _fused("triton", monkeypatch)
    again, _ = _fused("triton", monkeypatch)
    assert any(work.slots for work in TREE._cache.values() if isinstance(work, spans_module.KeyWork))
    TREE._cache.clear()
    assert torch.equal(split[1], again[1]) and not torch.equal(split[1], whole[1])
    torch.testing.assert_close(split[1].double(), wanted[1], rtol=1e-5, atol=1e-5)


@needs_triton
def test_what_the_kernels_do_not_take_goes_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    q, k, v = (x.double() for x in _draw(30, 6, 3, 16))
    torch.testing.assert_close(
        span_attention(q, k, v, TREE, 0.3), span_attention_reference(q, k, v, TREE, 0.3)
    )
    q, k, v = _draw(30, 2, 1, 136)
    torch.testing.assert_close(
        span_attention(q, k, v, TREE, 0.1), span_attention_reference(q, k, v, TREE, 0.1)
    )


@needs_triton
def test_large_scores_and_hidden_infinities_do_not_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of ±1000 neither overflow nor vanish; an infinite key of a sibling stays unseen."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    q, k, v = _draw(30, 2, 1, 16)
    ours = span_attention(q * 100, k, v, TREE, 1.0)
    wanted = span_attention_reference(q.double() * 100, k.double(), v.double(), TREE, 1.0)
    torch.testing.assert_close(ours.double(), wanted, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        sibling = slice(25, 30)
        before = span_attention(q, k, v, TREE, 0.25)
        k[sibling], v[sibling] = float("inf"), float("nan")
        assert torch.equal(span_attention(q, k, v, TREE, 0.25)[:25], before[:25])


@pytest.mark.parametrize("form", ["torch", pytest.param("triton", marks=needs_triton)])
def test_a_past_is_read_in_place_and_its_gradients_are_added(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first two segments are a past; a third one's gradients stand in the sums already."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton" if form == "triton" else "reference")
    spans = Spans.tree([0, 9, 16, 25, 30], [9, 7, 9, 5, 4], [-1, 0, 1, 0, 3], origin=16)
    q, k, v = (x.double() if form == "torch" else x for x in _draw(34, 4, 2, 16))
    leaves = [x.detach().double().requires_grad_() for x in (q[16:], k, v)]
    expected = span_attention_reference(*leaves, spans, 0.25)
    slope = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    slope = slope.to(DEVICE)
    wanted = torch.autograd.grad(expected, leaves, slope)
    sums = tuple(torch.ones_like(k[:16]) for _ in range(2))
    own = [x.detach().requires_grad_() for x in (q[16:], k[16:], v[16:])]
    out = span_attention(*own, spans, 0.25, Past(k[:16], v[:16], (sums[0], sums[1])))
    found = torch.autograd.grad(out, own, slope.to(out.dtype))
    close = {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(out.double(), expected, **close)
    torch.testing.assert_close(found[0].double(), wanted[0], **close)
    for i, total in enumerate(sums):
        torch.testing.assert_close(found[1 + i].double(), wanted[1 + i][16:], **close)
        torch.testing.assert_close(total.double() - 1, wanted[1 + i][:16], **close)


def test_a_past_of_other_rows_is_named() -> None:
    spans = Spans.tree([0, 5], [5, 3], [-1, 0], origin=5)
    q, k, v = _draw(3, 2, 1, 8)
    with pytest.raises(KernelError, match=r"^past: 0 rows for spans with 5 before the first"):
        span_attention(q, k, v, spans, 0.3)
    with pytest.raises(KernelError, match=r"^spans: 3 rows with queries for q with 2"):
        span_attention(q[:2], k[:2], v[:2], spans, 0.3, Past(k, v))
