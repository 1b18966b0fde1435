"""Blocks of families equal dense masked attention: rows and pages, both summation orders, gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proactor.engine.blocks import segment_families, stack
from proactor.engine.segments import Segment
from proactor.kernels import tree_tiles
from proactor.kernels.attention_block import AttentionBlock
from proactor.kernels.past import Past
from proactor.kernels.precision import wide_dtype
from proactor.kernels.tree_attention import attend, attention_reference, tree_attention
from proactor.kernels.tree_exact import EXACT_BLOCK

HEADS = [(1, 1, 2), (7, 1, 6), (8, 1, 4), (4, 2, 10), (3, 3, 16)]
# blocks as (families, members, rows a member, context, own)
LAYOUTS = {
    "one row": [(1, 1, 1, 0, 1)],
    "causal run": [(1, 1, 9, 0, 9)],
    "siblings": [(1, 5, 3, 7, 3)],
    "several blocks": [(2, 3, 4, 11, 4), (1, 1, 6, 0, 6), (3, 1, 1, 5, 1)],
    "longer than a block of keys": [(1, 2, 3, 45, 3), (1, 1, 40, 0, 40)],
}


class Case:
    """Random blocks over random keys; ``visible`` [T, S] says by the definition who sees whom."""

    def __init__(
        self,
        layout: str,
        heads: tuple[int, int, int],
        seed: int = 0,
        padded: bool = False,
        causal: bool = False,
    ) -> None:
        torch.manual_seed(seed)
        self.causal = causal
        self.hq, self.hkv, self.d = heads
        self.rows = sum(f * n * lq for f, n, lq, _, _ in LAYOUTS[layout])
        self.keys = max(self.rows, max(c + n * o for _, n, _, c, o in LAYOUTS[layout])) + 3
        self.visible = torch.zeros(self.rows, self.keys, dtype=torch.bool)
        order, at = torch.randperm(self.rows), 0
        self.blocks = []
        for f, n, lq, c, o in LAYOUTS[layout]:
            rows = order[at : at + f * n * lq].view(f, n, lq)
            at += f * n * lq
            self.blocks.append(self._block(rows, f, n, lq, c, o, padded))

    def _block(self, rows: Tensor, f: int, n: int, lq: int, c: int, o: int, padded: bool) -> AttentionBlock:
        context, own = torch.empty(f, c, dtype=torch.int64), torch.empty(f, n, o, dtype=torch.int64)
        far = torch.zeros(f, c, dtype=torch.bool)
        near = (torch.arange(o) > torch.arange(lq)[:, None]).expand(f, n, lq, o).clone()
        for i in range(f):
            keys = torch.randperm(self.keys)
            context[i], own[i] = keys[:c], keys[c : c + n * o].view(n, o)
            if padded and i % 2 == 0:
                far[i, (c + 1) // 2 :] = True
        for i in range(f):
            for j in range(n):
                for q in range(lq):
                    self.visible[rows[i, j, q], context[i][~far[i]]] = True
                    self.visible[rows[i, j, q], own[i, j][~near[i, j, q]]] = True
        masks = (far if bool(far.any()) else None, near if bool(near.any()) else None)
        return AttentionBlock(rows, context, own, None, *masks, self.causal)

    def tensors(self, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
        shapes = ((self.rows, self.hq), (self.keys, self.hkv), (self.keys, self.hkv))
        q, k, v = (torch.randn(*s, self.d, dtype=dtype).requires_grad_() for s in shapes)
        return q, k, v


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_dense_attention(layout: str, heads: tuple[int, int, int], padded: bool, exact: bool) -> None:
    case = Case(layout, heads, padded=padded)
    q, k, v = case.tensors()
    scale = heads[2] ** -0.5
    ours = tree_attention(q, k, v, case.blocks, scale, exact)
    dense = attention_reference(q, k, v, case.visible, scale)
    torch.testing.assert_close(ours, dense, rtol=1e-11, atol=1e-11)
    grad = torch.randn_like(dense)
    for mine, reference in zip(
        torch.autograd.grad(ours, [q, k, v], grad), torch.autograd.grad(dense, [q, k, v], grad), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-11)
    with torch.no_grad():
        torch.testing.assert_close(
            tree_attention(q, k, v, case.blocks, scale, exact), dense, rtol=1e-11, atol=1e-11
        )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("tile", [1, 40, 300, 1000])
@pytest.mark.parametrize("heads", [(4, 2, 10), (3, 3, 16)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_change_nothing(
    layout: str, heads: tuple[int, int, int], tile: int, causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut between heads, families, members and rows, a block gives what it gives whole."""
    case = Case(layout, heads, padded=True, causal=causal)
    tensors = case.tensors()
    whole = tree_attention(*tensors, case.blocks, 0.3)
    grad = torch.randn_like(whole)
    expected = [whole, *torch.autograd.grad(whole, tensors, grad)]
    monkeypatch.setattr(tree_tiles, "TILE", tile)
    monkeypatch.setattr(tree_tiles, "LEAST_ROWS", 4)
    cut = tree_attention(*tensors, case.blocks, 0.3)
    for mine, reference in zip([cut, *torch.autograd.grad(cut, tensors, grad)], expected, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


TREE = [Segment(0, 9, -1), Segment(9, 3, 0), Segment(12, 7, 0), Segment(19, 5, 2), Segment(24, 1, 2)]


@pytest.mark.parametrize("origin", [0, 9])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float64, 1e-11), (torch.bfloat16, 6e-3)])
def test_a_tree_of_unequal_answers_in_small_tiles(
    dtype: torch.dtype, error: float, origin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding rows, runs that are cut, and rows of an earlier pass whose gradients are added to its own."""
    torch.manual_seed(0)
    monkeypatch.setattr(tree_tiles, "TILE", 40)
    monkeypatch.setattr(tree_tiles, "LEAST_ROWS", 2)
    blocks = stack(segment_families(TREE, origin), overhead=10**9)
    assert any(block.valid is not None for block in blocks) and all(block.causal for block in blocks)
    q, k, v = (torch.randn(25, heads, 8).to(dtype) for heads in (4, 2, 2))
    leaves = [t.detach().requires_grad_() for t in (q[origin:], k[origin:], v[origin:])]
    wide = wide_dtype(dtype)
    sums = torch.zeros(origin, 2, 8, dtype=wide), torch.zeros(origin, 2, 8, dtype=wide)
    past = Past(k[:origin], v[:origin], sums) if origin else None
    ours = tree_attention(leaves[0], leaves[1], leaves[2], blocks, 0.3, past=past)
    exact = [t.double().requires_grad_() for t in (q, k, v)]
    visible = torch.zeros(25, 25, dtype=torch.bool)
    for first, length, parent in TREE:
        rows = slice(first, first + length)
        visible[rows, rows] = torch.ones(length, length, dtype=torch.bool).tril()
        if parent >= 0:
            above = TREE[parent].start + TREE[parent].length - 1
            visible[rows, : above + 1] |= visible[above, : above + 1]
    dense = attention_reference(exact[0], exact[1], exact[2], visible, 0.3)[origin:]
    grad = torch.randn_like(dense).to(dtype)
    dq, dk, dv = torch.autograd.grad(ours, leaves, grad)
    wanted = torch.autograd.grad(dense, exact, grad.double())
    whole = torch.cat([sums[0], dk.to(wide)]), torch.cat([sums[1], dv.to(wide)])
    for mine, reference in (
        (ours, dense),
        (dq, wanted[0][origin:]),
        (whole[0], wanted[1]),
        (whole[1], wanted[2]),
    ):
        assert float((mine.double() - reference).norm() / reference.norm()) < error


def test_the_largest_tile_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 24 scores: two heads of three families of four members of twenty rows."""
    block = AttentionBlock(
        torch.zeros(3, 4, 20, dtype=torch.int64),
        torch.zeros(3, 4, dtype=torch.int64),
        torch.zeros(3, 4, 8, dtype=torch.int64),
    )
    whole = {}
    for tile in (1, 500, 2000, 6000, 10**6):
        monkeypatch.setattr(tree_tiles, "TILE", tile)
        whole[tile] = tree_tiles.tile_scores(block, 2, 2) / 24
    assert whole == {1: 16, 500: 20, 2000: 80, 6000: 240, 10**6: 480}


def test_padding_queries_count_once() -> None:
    """Members of different length: padding repeats a real row, whose output and gradient must not double."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(5, 2, 4, dtype=torch.float64).requires_grad_() for _ in range(3))
    rows = torch.tensor([[[0, 1, 2], [3, 4, 4]]])
    near = torch.tensor([[False, True, True], [False, False, True], [False, False, False]])
    hidden = torch.stack(
        [near, torch.tensor([[False, True, True], [False, False, True], [False, False, True]])]
    )
    block = AttentionBlock(
        rows, torch.empty(1, 0, dtype=torch.int64), rows, torch.arange(5), None, hidden[None]
    )
    visible = torch.zeros(5, 5, dtype=torch.bool)
    for i, seen in enumerate(([0], [0, 1], [0, 1, 2], [3], [3, 4])):
        visible[i, seen] = True
    ours, dense = tree_attention(q, k, v, [block], 0.5), attention_reference(q, k, v, visible, 0.5)
    torch.testing.assert_close(ours, dense, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(dense)
    for mine, reference in zip(
        torch.autograd.grad(ours, [q, k, v], grad), torch.autograd.grad(dense, [q, k, v], grad), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("frozen", ["q", "k", "v", "qk", "qv", "kv"])
def test_gradient_where_only_some_inputs_need_one(frozen: str) -> None:
    case = Case("siblings", (4, 2, 10))
    tensors = case.tensors()
    inputs = [t.detach() if name in frozen else t for name, t in zip("qkv", tensors, strict=True)]
    leaves = [t for t in inputs if t.requires_grad]
    ours = tree_attention(inputs[0], inputs[1], inputs[2], case.blocks, 0.3)
    dense = attention_reference(inputs[0], inputs[1], inputs[2], case.visible, 0.3)
    for mine, reference in zip(
        torch.autograd.grad(ours.sum(), leaves), torch.autograd.grad(dense.sum(), leaves), strict=True
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("unit", [2, 3, 16])
def test_pages_are_read_through_the_table(unit: int, exact: bool) -> None:
    """Two samples of a prompt, whose full pages are the context; keys that no row sees are large."""
    torch.manual_seed(unit)
    prompt, lengths = 2 * unit, (unit + 1, 2 * unit)
    table = torch.randperm(9)[:6]
    context, own = table[:2][None], table[2:].view(1, 2, 2)
    k = torch.full((2, 9 * unit, 8), 1e9, dtype=torch.float64)
    v = torch.full((2, 9 * unit, 8), 1e9, dtype=torch.float64)
    q = torch.randn(2, 4, 8, dtype=torch.float64)
    hidden = torch.arange(2 * unit) >= torch.tensor(lengths)[:, None]
    block = AttentionBlock(torch.arange(2).view(1, 2, 1), context, own, None, None, hidden[None, :, None])
    expected = []
    for i, length in enumerate(lengths):
        pages = torch.cat([context[0], own[0, i]])
        slots = (pages[:, None] * unit + torch.arange(unit)).flatten()[: prompt + length]
        fresh = slots if i == 0 else slots[prompt:]
        k[:, fresh], v[:, fresh] = torch.randn(2, 2, len(fresh), 8, dtype=torch.float64)
        seen = torch.ones(1, len(slots), dtype=torch.bool)
        keys, values = k[:, slots].transpose(0, 1), v[:, slots].transpose(0, 1)
        expected.append(attention_reference(q[i : i + 1], keys, values, seen, 0.4))
    out = attend(q, k, v, [block], 0.4, unit, exact)
    torch.testing.assert_close(out, torch.cat(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_fixed_order_does_not_depend_on_company(kv_heads: int) -> None:
    """In fixed order a row has the same bits alone, in a batch, and for any split of context and own keys."""
    torch.manual_seed(0)
    length = 2 * EXACT_BLOCK + 5
    k, v = torch.randn(kv_heads, 200, 16), torch.randn(kv_heads, 200, 16)
    q = torch.randn(3, 2 * kv_heads, 16)
    paths = [torch.randperm(200)[:length] for _ in range(3)]

    def one(i: int, split: int) -> Tensor:
        block = AttentionBlock(torch.tensor([[[0]]]), paths[i][None, :split], paths[i][None, None, split:])
        return attend(q[i : i + 1], k, v, [block], 0.25, exact=True)

    alone = torch.cat([one(i, 0) for i in range(3)])
    for split in (1, EXACT_BLOCK, length - 1):
        assert torch.equal(torch.cat([one(i, split) for i in range(3)]), alone)
    together = AttentionBlock(
        torch.arange(3).view(3, 1, 1),
        torch.stack([p[:9] for p in paths]),
        torch.stack([p[9:] for p in paths])[:, None],
    )
    assert torch.equal(attend(q, k, v, [together], 0.25, exact=True), alone)


def test_padding_a_context_does_not_change_bits_in_fixed_order() -> None:
    """Stacked beside a family with a longer context, a row keeps its bits."""
    torch.manual_seed(0)
    k, v, q = torch.randn(2, 200, 16), torch.randn(2, 200, 16), torch.randn(1, 4, 16)
    context, own = torch.randperm(200)[:45], torch.randperm(200)[:7]
    alone = AttentionBlock(torch.tensor([[[0]]]), context[None], own[None, None])
    hidden = (torch.arange(60) >= 45)[None]
    padded = AttentionBlock(
        torch.tensor([[[0]]]), torch.cat([context, own[:1].expand(15)])[None], own[None, None], None, hidden
    )
    assert torch.equal(
        attend(q, k, v, [padded], 0.25, exact=True), attend(q, k, v, [alone], 0.25, exact=True)
    )


@pytest.mark.parametrize("exact", [False, True])
def test_large_scores_stay_finite(exact: bool) -> None:
    """The largest score may stand among the context or among a row's own keys."""
    case = Case("several blocks", (2, 1, 4))
    q, k, v = case.tensors(torch.float32)
    ours = tree_attention(q * 300, k, v, case.blocks, 0.5, exact)
    dense = attention_reference(q * 300, k, v, case.visible, 0.5)
    torch.testing.assert_close(ours, dense, rtol=1e-3, atol=1e-3)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(ours.sum(), [q, k, v]))


@pytest.mark.parametrize("exact", [False, True])
def test_half_precision_gradients(exact: bool) -> None:
    case = Case("several blocks", (4, 2, 16))
    q, k, v = case.tensors(torch.float32)
    halves = [t.detach().bfloat16().requires_grad_() for t in (q, k, v)]
    ours = tree_attention(halves[0], halves[1], halves[2], case.blocks, 0.25, exact)
    dense = attention_reference(q, k, v, case.visible, 0.25)
    assert ours.dtype == torch.bfloat16
    grad = torch.randn_like(dense)
    gradients = torch.autograd.grad(ours, halves, grad.bfloat16())
    for mine, reference in zip(gradients, torch.autograd.grad(dense, [q, k, v], grad), strict=True):
        assert float((mine.float() - reference).norm() / reference.norm()) < 1e-2


@pytest.mark.parametrize("exact", [False, True])
def test_scores_are_not_rounded_to_a_half_type(exact: bool) -> None:
    """Scores of tens: rounded to bfloat16, weights would err by several percent."""
    case = Case("longer than a block of keys", (4, 2, 16))
    q, k, v = (t.detach() for t in case.tensors())
    halves = [t.bfloat16().requires_grad_() for t in (q * 32, k, v)]
    wide = [t.detach().double().requires_grad_() for t in halves]
    ours = tree_attention(halves[0], halves[1], halves[2], case.blocks, 0.5, exact)
    dense = attention_reference(wide[0], wide[1], wide[2], case.visible, 0.5)
    grad = torch.randn_like(dense).bfloat16()
    [dv], [reference] = (
        torch.autograd.grad(ours, halves[2], grad),
        torch.autograd.grad(dense, wide[2], grad.double()),
    )
    for mine, exact in ((ours, dense), (dv, reference)):
        assert float((mine.double() - exact).norm() / exact.norm()) < 5e-3
