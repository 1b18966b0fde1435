"""The adapter linear equals its formula, forward and backward, and keeps no base weight between the two."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import Tensor

from proactor.kernels import lora_update
from proactor.kernels.check import copy_between_nans, poisoned_memory
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.linear import Linear, exact_linear, library_linear, onednn_linear
from proactor.kernels.lora import Remade, lora_linear, lora_linear_reference
from proactor.kernels.lora_kernels import launch_down
from proactor.kernels.lora_update import Adapter, lora_add
from proactor.kernels.nf4_pack import repack
from proactor.kernels.nf4_records import draw_nf4
from proactor.kernels.norm import add_rms_norm, rms_norm
from proactor.kernels.swiglu import swiglu
from tests.kernels.fence import fenced_memory

SHAPES = [
    # rows, inputs, outputs of each target, targets that have an adapter, rank
    (1, 5, (7,), (0,), 1),
    (13, 17, (9, 3, 3), (0, 1, 2), 4),
    (6, 11, (8, 5, 5), (0, 2), 3),
    (31, 33, (15, 15), (1,), 2),
]


def case(shape: tuple[int, int, tuple[int, ...], tuple[int, ...], int], dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    rows, k, widths, targets, rank = shape
    torch.manual_seed(rows)
    edges = [sum(widths[:i]) for i in range(len(widths) + 1)]
    spans = [(edges[t], edges[t + 1]) for t in targets]
    a = torch.randn(rank * len(targets), k, dtype=dtype, requires_grad=True)
    b = [torch.randn(widths[t], rank, dtype=dtype, requires_grad=True) for t in targets]
    x = torch.randn(rows, k, dtype=dtype, requires_grad=True)
    weight, bias = torch.randn(edges[-1], k, dtype=dtype), torch.randn(edges[-1], dtype=dtype)
    return x, weight, bias, Adapter(a, b, spans, [rank] * len(b), [1.75] * len(b))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_forward_and_gradients_equal_the_formula(
    shape: tuple[int, int, tuple[int, ...], tuple[int, ...], int], biased: bool, masked: bool
) -> None:
    x, weight, bias, adapter = case(shape)
    used = bias if biased else None
    mask = (torch.arange(len(x)) % 2).double() if masked else None
    ours = lora_linear(x, lambda: weight, used, adapter, mask)
    theirs = lora_linear_reference(x, weight, used, adapter, mask)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    leaves = [x, adapter.a, *adapter.b]
    grad = torch.randn_like(ours)
    for mine, reference in zip(
        torch.autograd.grad(ours, leaves, grad), torch.autograd.grad(theirs, leaves, grad)
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_gradient_and_without_adapter(
    shape: tuple[int, int, tuple[int, ...], tuple[int, ...], int],
) -> None:
    x, weight, bias, adapter = case(shape)
    with torch.no_grad():
        expected = lora_linear_reference(x, weight, bias, adapter)
        torch.testing.assert_close(
            lora_linear(x, lambda: weight, bias, adapter), expected, rtol=1e-12, atol=1e-12
        )
        assert torch.equal(lora_linear(x, lambda: weight, bias), torch.nn.functional.linear(x, weight, bias))
    out = lora_linear(x, lambda: weight, bias)
    (dx,) = torch.autograd.grad(out.sum(), [x])
    torch.testing.assert_close(dx, weight.sum(0).expand_as(x), rtol=1e-12, atol=1e-12)


def test_input_without_gradient_still_trains_the_adapter() -> None:
    """The first layer reads embeddings, which carry none."""
    x, weight, bias, adapter = case(SHAPES[1])
    fixed = x.detach()
    leaves = [adapter.a, *adapter.b]
    ours = torch.autograd.grad(lora_linear(fixed, lambda: weight, bias, adapter).square().sum(), leaves)
    theirs = torch.autograd.grad(lora_linear_reference(fixed, weight, bias, adapter).square().sum(), leaves)
    for mine, reference in zip(ours, theirs):
        torch.testing.assert_close(mine, reference, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("form", [library_linear, onednn_linear, exact_linear])
def test_both_cpu_forms_agree_in_float32(form: Linear) -> None:
    x, weight, bias, adapter = case(SHAPES[1], torch.float32)
    expected = lora_linear_reference(x, weight, bias, adapter)
    out = lora_linear(x, lambda: weight, bias, adapter, None, form)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    leaves = [x, adapter.a, *adapter.b]
    for mine, reference in zip(
        torch.autograd.grad(out.square().sum(), leaves), torch.autograd.grad(expected.square().sum(), leaves)
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-3)


def test_half_precision_input_keeps_float32_factors() -> None:
    x, weight, bias, adapter = case(SHAPES[1], torch.float32)
    half = x.detach().bfloat16().requires_grad_()
    out = lora_linear(half, lambda: weight.bfloat16(), bias.bfloat16(), adapter)
    assert out.dtype == torch.bfloat16
    out.float().square().sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    assert adapter.a.grad is not None and adapter.a.grad.dtype == torch.float32
    expected = lora_linear_reference(x, weight, bias, adapter)
    assert float(((out.float() - expected).norm() / expected.norm()).detach()) < 2e-2


def test_the_base_weight_is_not_kept_for_the_backward() -> None:
    """A 4-bit base is dequantised at each use: twice a step, and held by nobody in between."""
    x, weight, bias, adapter = case(SHAPES[1])
    made: list[weakref.ref[Tensor]] = []

    def source() -> Tensor:
        fresh = weight.clone()
        made.append(weakref.ref(fresh))
        return fresh

    for low_rank in (adapter, None):
        made.clear()
        out = lora_linear(x, source, bias, low_rank)
        gc.collect()
        assert len(made) == 1 and made[0]() is None
        out.sum().backward()
        assert len(made) == 2


needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = torch.device("cpu" if interpreted() else "cuda")


@pytest.mark.parametrize("mode", ["reference", pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("what", ["norm", "added norm", "swiglu"])
def test_an_input_made_again_gives_the_same_gradients(
    mode: str, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, and the input itself is freed after the forward."""
    monkeypatch.setenv("PROACTOR_KERNELS", mode)
    _, weight, adapter, mask = adapter_case(5, 24, 30, [(0, 9), (12, 30)], 4, torch.float32)
    leaves = [adapter.a.requires_grad_(), *(b.requires_grad_() for b in adapter.b)]
    generator = torch.Generator(device=DEVICE).manual_seed(3)
    first, second, scale = (
        torch.randn(shape, generator=generator, device=DEVICE)
        for shape in ((5, 48 if what == "swiglu" else 24), (5, 24), (24,))
    )
    leaves.append(first.requires_grad_())

    def run(again: bool) -> tuple[Tensor, weakref.ref[Tensor]]:
        if what == "swiglu":
            x, kept, make = swiglu(first), first, swiglu
        else:
            x, kept = (
                add_rms_norm(first, second, scale, 1e-6)
                if what == "added norm"
                else (rms_norm(first, scale, 1e-6), first)
            )
            make = partial(rms_norm, weight=scale, eps=1e-6)
        y = lora_linear(
            x, lambda: weight, None, adapter, mask, library_linear, Remade(kept, make) if again else None
        )
        return y, weakref.ref(x)

    (saved, _), (ours, x) = run(False), run(True)
    gc.collect()
    assert x() is None and torch.equal(ours, saved)
    seed = torch.randn_like(saved)
    gradients = [torch.autograd.grad(y, leaves, seed) for y in (ours, saved)]
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(*gradients, strict=True))


# --- Triton ---


def adapter_case(
    m: int, k: int, n: int, spans: list[tuple[int, int]], rank: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Adapter, Tensor]:
    generator = torch.Generator(device=DEVICE).manual_seed(m + k)

    def draw(*shape: int) -> Tensor:
        return copy_between_nans(torch.randn(shape, generator=generator, device=DEVICE))

    a = copy_between_nans(draw(rank * len(spans), k) / k**0.5)
    b = [draw(stop - start, rank) for start, stop in spans]
    adapter = Adapter(a, b, spans, [rank] * len(b), [1.5] * len(b))
    mask = copy_between_nans((torch.arange(m, device=DEVICE) % 2).to(dtype))
    return copy_between_nans(draw(m, k).to(dtype)), copy_between_nans(draw(n, k).to(dtype)), adapter, mask


def relative(ours: Tensor, exact: Tensor) -> float:
    return float((ours.double() - exact).abs().max() / exact.abs().max())


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
)
@pytest.mark.parametrize(
    ("m", "k", "n", "spans", "rank"),
    [
        (1, 1100, 150, [(0, 130), (135, 140), (140, 150)], 4),
        (17, 600, 90, [(80, 90), (0, 70)], 40),
        (64, 70, 9, [(1, 8)], 64),
        (2, 33, 40, [(0, 4), (5, 9), (9, 20), (20, 21), (30, 40)], 3),
    ],
)
def test_few_rows_without_gradient(
    m: int,
    k: int,
    n: int,
    spans: list[tuple[int, int]],
    rank: int,
    dtype: torch.dtype,
    limit: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The narrow product in parts along K, and one addition over all spans."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    x, weight, adapter, mask = adapter_case(m, k, n, spans, rank, dtype)
    for used in (mask, None):
        with torch.no_grad(), poisoned_memory():
            ours = lora_linear(x, lambda: weight, None, adapter, used)
        exact = lora_linear_reference(
            x.double(), weight.double(), None, adapter, None if used is None else used.double()
        )
        assert ours.dtype == dtype and relative(ours, exact.detach()) < limit


@needs_triton
def test_base_weight_in_four_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused forward, dequantised backward: as with the dense copy."""
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    weight = draw_nf4((60, 128), True, torch.Generator(device=DEVICE).manual_seed(0), DEVICE)
    weight = replace(weight, dtype=torch.float32)
    dense, packed = weight.dequantize(), repack(weight)
    x, _, adapter, mask = adapter_case(5, 128, 60, [(0, 32), (40, 60)], 8, torch.float32)
    leaves = [x, adapter.a, *adapter.b]
    for leaf in leaves:
        leaf.requires_grad_()
    expected = lora_linear(x, lambda: dense, None, adapter, mask)
    seed = torch.randn_like(expected)
    grads = torch.autograd.grad(expected, leaves, seed)
    for source in (lambda: weight, lambda: packed):
        ours = lora_linear(x, source, None, adapter, mask)
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
        for mine, theirs in zip(torch.autograd.grad(ours, leaves, seed), grads, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-3)
        alone = lora_linear(x, source, None)
        (dx,) = torch.autograd.grad(alone, [x], seed)
        torch.testing.assert_close(dx, seed @ dense, rtol=1e-4, atol=1e-4)


@needs_triton
def test_masked_rows_and_columns_outside_the_spans_keep_their_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    x, weight, adapter, mask = adapter_case(6, 40, 30, [(3, 9), (12, 29)], 4, torch.float32)
    with torch.no_grad():
        base = lora_linear(x, lambda: weight)
        y = lora_linear(x, lambda: weight, None, adapter, mask)
    changed = torch.zeros_like(y, dtype=torch.bool)
    for start, stop in adapter.spans:
        changed[1::2, start:stop] = True
    assert torch.equal(y != base, changed)


@needs_triton
def test_nothing_is_written_past_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    adapter = adapter_case(6, 40, 30, [(0, 9), (12, 30)], 4, torch.float32)[2]
    with fenced_memory():
        y, x = torch.empty(6, 30, device=DEVICE).zero_(), torch.ones(6, 40, device=DEVICE)
        launch_down(x, adapter.a)
        lora_add(y, torch.ones(6, 8, device=DEVICE), adapter.b, adapter.spans, 4, 1.0)


@needs_triton
def test_ranks_and_types_beyond_the_kernels_take_the_torch_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    monkeypatch.setattr(lora_update, "launch_add", None)  # would fail if called
    for rank, dtype in ((65, torch.float32), (2, torch.float64)):
        x, weight, adapter, mask = adapter_case(3, 70, 20, [(0, 20)], rank, torch.float32)
        x, weight = x.to(dtype), weight.to(dtype)
        ours = lora_linear(x, lambda w=weight: w, None, adapter, mask.to(dtype))
        torch.testing.assert_close(
            ours, lora_linear_reference(x, weight, None, adapter, mask.to(dtype)), rtol=1e-4, atol=1e-4
        )


@needs_triton
def test_bad_adapters_are_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    x, weight, good, mask = adapter_case(3, 40, 30, [(3, 9), (12, 29)], 4, torch.float32)
    cases: list[tuple[Adapter, Tensor, str]] = [
        (replace(good, a=good.a[1:]), mask, "adapter: a"),
        (replace(good, b=good.b[:1], a=good.a[:4]), mask, "spans: 2 for 1"),
        (replace(good, b=[good.b[0][1:], good.b[1]]), mask, "b: "),
        (replace(good, spans=[(3, 9), (8, 25)]), mask, "spans: .*overlap"),
        (replace(good, spans=[(-3, 3), (12, 29)]), mask, "spans: .*below 0"),
        (replace(good, spans=[(3, 9), (14, 31)]), mask, "adapter: spans .* pass 30"),
        (good, mask[1:], "row_mask: "),
    ]
    for adapter, rows, problem in cases:
        with pytest.raises(KernelError, match=problem), torch.no_grad():
            lora_linear(x, lambda: weight, None, adapter, rows)
    y, xa = torch.zeros(3, 30, device=DEVICE), torch.zeros(3, 8, device=DEVICE)
    for wrong_y, wrong_xa, problem in (
        (y.t(), xa, "y: "),
        (y, xa[:, 1:], "xa: "),
        (y, xa.bfloat16(), "xa: "),
        (y[:, :20].contiguous(), xa, "spans: .*pass 20"),
    ):
        with pytest.raises(KernelError, match=problem):
            lora_add(wrong_y, wrong_xa, good.b, good.spans, 4, 1.0, mask)


@pytest.mark.parametrize("mode", ["reference", "triton"])
def test_a_float32_mask_switches_rows_of_any_type(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's mask is float32 whatever the rows are."""
    if mode == "triton" and not HAS_TRITON:
        pytest.skip("triton has no wheel for this system")
    monkeypatch.setenv("PROACTOR_KERNELS", mode)
    torch.manual_seed(0)
    weight, a, b = (
        torch.randn(24, 32),
        torch.randn(4, 32, requires_grad=True),
        torch.randn(24, 4, requires_grad=True),
    )
    adapter = Adapter(a, [b], [(0, 24)], [4], [2.0])
    x = torch.randn(5, 32).half().requires_grad_()
    mask = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
    y = lora_linear(x, lambda: weight.half(), None, adapter, mask)
    y.sum().backward()
    plain = x.detach() @ weight.half().t()
    assert y.dtype == torch.float16 and x.grad is not None
    torch.testing.assert_close(y[mask == 0], plain[mask == 0], rtol=1e-2, atol=1e-2)
    assert float((y - plain)[mask == 1].detach().abs().min(1).values.max()) > 0
    with torch.no_grad():
        found = lora_linear(x, lambda: weight.half(), None, adapter, mask)
    wide = Adapter(a.detach().double(), [b.detach().double()], [(0, 24)], [4], [2.0])
    wanted = lora_linear_reference(x.detach().double(), weight.half().double(), None, wide, mask.double())
    for each, most in ((found, 2e-2), (y.detach(), 4e-2)):  # with gradient each product is rounded to float16
        torch.testing.assert_close(each.double(), wanted, rtol=1e-3, atol=most)


@pytest.mark.parametrize("mode", ["reference", "triton"])
def test_rows_of_several_adapters_are_each_as_with_its_own_alone(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of unlike ranks, scales and spans; one row has none."""
    if mode == "triton" and not HAS_TRITON:
        pytest.skip("triton has no wheel for this system")
    monkeypatch.setenv("PROACTOR_KERNELS", mode)
    x, weight, first, _ = adapter_case(7, 40, 30, [(3, 9), (12, 29)], 4, torch.float32)
    second = replace(adapter_case(7, 40, 30, [(0, 30)], 2, torch.float32)[2], scales=[0.5])
    place = torch.tensor([0, 1, 2, 1, 0, 1, 0], device=DEVICE)  # 2: the base
    masks = [(place == i).float() for i in range(2)]
    with torch.no_grad():
        mixed = lora_linear(x, lambda: weight, None, first, masks[0], others=[(second, masks[1])])
        alone = [lora_linear(x, lambda: weight, None, adapter) for adapter in (first, second, None)]
    for row, i in enumerate(place.tolist()):
        assert torch.equal(mixed[row], alone[i][row])
        assert sum(torch.equal(mixed[row], other[row]) for other in alone) == 1, "they differ"
    with pytest.raises(KernelError, match="others: several adapters in one product have no gradient"):
        lora_linear(x, lambda: weight, None, first, masks[0], others=[(second, masks[1])])
    with torch.no_grad(), pytest.raises(KernelError, match="adapter: None, beside others"):
        lora_linear(x, lambda: weight, others=[(second, masks[1])])
