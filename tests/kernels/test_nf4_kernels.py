"""The Triton forms of NF4 give the torch forms' bits, inputs lying between NaN."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from proactor.kernels import nf4
from proactor.kernels.check import copy_between_nans, poisoned_memory
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.nf4 import MIDPOINTS, NF4Tensor, dequantize_nf4, quantize_nf4
from proactor.kernels.nf4_records import draw_nf4
from tests.kernels.fence import fenced_memory

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = torch.device("cpu" if interpreted() else "cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def both(monkeypatch: pytest.MonkeyPatch, run) -> tuple:  # type: ignore[no-untyped-def, type-arg]
    outputs = []
    for mode in ("reference", "triton"):
        monkeypatch.setenv("PROACTOR_KERNELS", mode)
        with poisoned_memory():
            outputs.append(run())
    return tuple(outputs)


def fenced(weight: NF4Tensor) -> NF4Tensor:
    """Its floating parts between NaN."""
    parts = {
        n: copy_between_nans(v)
        for n in ("absmax", "nested_absmax")
        if (v := getattr(weight, n)) is not None and v.is_floating_point()
    }
    return replace(weight, **parts)


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (5, 13), (1, 63), (1, 65), (300, 64), (129, 131)])
def test_dequantised_bits(
    shape: tuple[int, int], dtype: torch.dtype, nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = fenced(draw_nf4(shape, nested, torch.Generator(device=DEVICE).manual_seed(3), DEVICE))
    theirs, ours = both(monkeypatch, lambda: dequantize_nf4(weight, dtype))
    assert ours.dtype == dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("blocksize", [32, 128, 4096])
def test_other_block_sizes(blocksize: int, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 70 * 97
    drawn = draw_nf4((70, 97), False, torch.Generator(device=DEVICE).manual_seed(3), DEVICE)
    scales = torch.rand(-(-size // blocksize), device=DEVICE) + 0.5
    weight = NF4Tensor(drawn.packed, scales, drawn.code, None, None, 0.0, (70, 97), torch.float32, blocksize)
    theirs, ours = both(monkeypatch, weight.dequantize)
    assert torch.equal(ours, theirs)


def test_types_and_block_sizes_beyond_the_kernel_take_the_torch_form(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "launch_dequantize", None)  # would fail if called
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    weight = draw_nf4((3, 80), False, torch.Generator(device=DEVICE), DEVICE)
    assert weight.dequantize(torch.float64).dtype == torch.float64
    odd = NF4Tensor(
        weight.packed, weight.absmax[:3], weight.code, None, None, 0.0, (3, 80), torch.float32, 80
    )
    assert odd.dequantize().shape == (3, 80)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (1, 64), (3, 64), (33, 67), (1, 4097)])
def test_quantised_bits(shape: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator(device=DEVICE).manual_seed(1)
    weight = torch.randn(shape, generator=generator, device=DEVICE)
    weight *= torch.randn(shape[0], 1, generator=generator, device=DEVICE).exp()
    weight.view(-1)[:40] *= 0  # a block of small values, or of nothing but zeros
    weight = copy_between_nans(weight.to(dtype))
    for nested in (True, False):
        theirs, ours = both(monkeypatch, lambda nested=nested: quantize_nf4(weight, nested))
        assert torch.equal(ours.packed, theirs.packed) and torch.equal(ours.absmax, theirs.absmax)
        assert ours.nested_offset == theirs.nested_offset


def test_ties_zeros_and_tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.zeros(5, 64, device=DEVICE)
    weight[0, :15], weight[0, 15] = MIDPOINTS.to(DEVICE), 1.0
    weight[1] = 1e-39
    weight[2] = torch.linspace(-3, 3, 64) * 1e38
    weight[3, 0] = -2e-38
    for w in (weight, weight.view(1, -1)[:, :-1], weight[1:2, :3], weight[4:5, :3]):
        theirs, ours = both(monkeypatch, lambda w=w: quantize_nf4(w, nested=False))
        assert torch.equal(ours.packed, theirs.packed) and torch.equal(ours.absmax, theirs.absmax)


def test_values_beside_a_midpoint_round_as_in_the_torch_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a division and the product with a reciprocal fall on different sides."""
    generator = torch.Generator(device=DEVICE).manual_seed(2)
    scale = torch.rand(400, 1, generator=generator, device=DEVICE) + 0.5
    middle = scale * MIDPOINTS.to(DEVICE)
    up = torch.nextafter(middle, torch.full_like(middle, 9.0))
    down = torch.nextafter(middle, torch.full_like(middle, -9.0))
    weight = torch.cat((scale, middle, up, down, scale.expand(-1, 18)), 1)
    theirs, ours = both(monkeypatch, lambda: quantize_nf4(weight, nested=False))
    assert torch.equal(ours.packed, theirs.packed)


def test_ties_of_bfloat16_go_to_even(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = torch.tensor([0x3F808000, 0x3F818000, 0x3F808001, 0x3F817FFF], dtype=torch.int32, device=DEVICE)
    packed = torch.full((128,), 0xF0, dtype=torch.uint8, device=DEVICE)  # 1 and -1 times the scale
    code = draw_nf4((1, 64), False, torch.Generator(device=DEVICE), DEVICE).code
    weight = NF4Tensor(packed, scales.view(torch.float32), code, None, None, 0.0, (4, 64), torch.bfloat16)
    theirs, ours = both(monkeypatch, weight.dequantize)
    assert torch.equal(ours, theirs) and ours[:, 0].tolist() == [1.0, 1.015625, 1.0078125, 1.0078125]


@pytest.mark.parametrize("shape", [(1, 1), (5, 13), (65, 64)])
def test_nothing_is_written_past_the_end(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    weight = draw_nf4(shape, True, torch.Generator(device=DEVICE).manual_seed(3), DEVICE)
    with fenced_memory():
        quantize_nf4(weight.dequantize(torch.float32), nested=False)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 70, 199])
def test_values_that_are_not_finite_are_refused(bad: float, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    weight = torch.randn(2, 100, device=DEVICE)
    weight.view(-1)[at] = bad
    with pytest.raises(KernelError, match="not finite"):
        quantize_nf4(weight)
