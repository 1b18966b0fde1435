"""NF4 bits against bitsandbytes itself, and against the formula written out by hand."""

from __future__ import annotations

import bitsandbytes.functional as bnb
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.kernels import nf4
from proactor.kernels.errors import KernelError
from proactor.kernels.nf4 import NF4_CODE, NF4Tensor, dynamic_code, nf4_nbytes, quantize_nf4

SHAPES = [(64, 64), (33, 67), (1, 1), (7, 13), (128, 320), (3, 64)]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# 128 x 320 values are cut into ten chunks of this, and 33 x 67 ends in the middle of a block
CHUNK = 4096


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4, "CHUNK", CHUNK)


def weight(shape: tuple[int, int], seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(shape[0], 1, generator=generator).exp()  # block scales that differ
    return (torch.randn(shape, generator=generator) * rows).to(dtype)


def assert_same_bits(w: torch.Tensor, nested: bool) -> None:
    packed, state = bnb.quantize_4bit(w, compress_statistics=nested, quant_type="nf4")
    ours = quantize_nf4(w, nested)
    assert torch.equal(ours.packed, packed.view(-1))
    assert torch.equal(ours.absmax, state.absmax)
    assert torch.equal(ours.code, state.code)
    if nested:
        assert ours.nested_absmax is not None and ours.nested_code is not None
        assert torch.equal(ours.nested_absmax, state.state2.absmax)
        assert torch.equal(ours.nested_code, state.state2.code)
        assert ours.nested_offset == state.offset.item()


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_quantised_bits_are_those_of_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, nested: bool
) -> None:
    for seed in range(5):
        assert_same_bits(weight(shape, seed, dtype), nested)


@pytest.mark.parametrize("nested", [True, False])
def test_zeros_constants_and_ties_quantise_as_in_bitsandbytes(nested: bool) -> None:
    half = weight((64, 128))
    half[:32] = 0
    ties = torch.ones(1, 64)
    ties[0, :15] = (NF4_CODE[:-1] + NF4_CODE[1:]) / 2  # exactly between two levels
    for w in (torch.zeros(32, 64), torch.full((32, 64), 0.5), half, torch.zeros(3, 5), ties):
        assert_same_bits(w, nested)


@torch.compiler.set_stance(
    "force_eager"
)  # bitsandbytes would compile its fallback for odd row lengths, for seconds
@pytest.mark.parametrize("shape", [(64, 64), (7, 12), (33, 68), (128, 320), (3, 64), (3, 5)])
@pytest.mark.parametrize("nested", [True, False])
def test_dequantised_bits_are_those_of_bitsandbytes(shape: tuple[int, int], nested: bool) -> None:
    for dtype in DTYPES:
        w = weight(shape, 1, dtype)
        packed, state = bnb.quantize_4bit(w, compress_statistics=nested, quant_type="nf4")
        assert torch.equal(quantize_nf4(w, nested).dequantize(), bnb.dequantize_4bit(packed, state))


@pytest.mark.parametrize("blocksize", [64, 128])
def test_dequantise_follows_the_formula(blocksize: int) -> None:
    """Written out value by value: high nibble first, nested scale of block i // blocksize."""
    generator = torch.Generator().manual_seed(0)
    shape, blocks = (4, 4832), 4 * 4832 // blocksize  # rows end within a block
    assert blocks > 256 or blocksize == 128  # with blocks of 64 there are two coarse scales
    coarse = torch.rand(-(-blocks // 256), generator=generator)
    t = NF4Tensor(
        packed=torch.randint(0, 256, (4 * 2416,), generator=generator).to(torch.uint8),
        absmax=torch.randint(0, 256, (blocks,), generator=generator).to(torch.uint8),
        code=NF4_CODE,
        nested_absmax=coarse,
        nested_code=dynamic_code(),
        nested_offset=0.25,
        shape=shape,
        dtype=torch.bfloat16,
        blocksize=blocksize,
    )
    flat = t.dequantize(torch.float64).view(-1)
    for i in (0, 1, 2, 63, 64, 127, 128, 16383, 16384, 16385, 4831, 4832, 19326, 19327):
        byte, block = int(t.packed[i // 2]), i // blocksize
        index = byte >> 4 if i % 2 == 0 else byte & 15
        scale = dynamic_code()[int(t.absmax[block])] * coarse[block // 256] + torch.tensor(0.25)
        assert flat[i].item() == (NF4_CODE[index] * scale).item()
    assert t.dequantize().dtype == torch.bfloat16


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 140), st.integers(0, 2**31))
def test_error_is_bounded_and_quantising_again_changes_nothing(rows: int, columns: int, seed: int) -> None:
    w = weight((rows, columns), seed)
    once = quantize_nf4(w, nested=False)
    back = once.dequantize()
    scale = once.absmax.repeat_interleave(64)[: w.numel()].view(w.shape)
    widest = (NF4_CODE[1:] - NF4_CODE[:-1]).max() / 2
    assert bool(((back - w).abs() <= scale * (widest + 1e-6)).all())
    twice = quantize_nf4(back, nested=False)
    assert torch.equal(twice.packed, once.packed) and torch.equal(twice.absmax, once.absmax)


def test_codes() -> None:
    assert torch.equal(dynamic_code(), bnb.create_dynamic_map())
    assert torch.equal(NF4_CODE, bnb.get_4bit_type("nf4", device="cpu"))


@pytest.mark.parametrize("nested", [True, False])
def test_bytes_are_known_before_and_after(nested: bool) -> None:
    for shape in SHAPES:
        t = quantize_nf4(weight(shape), nested)
        assert t.nested is nested
        assert t.nbytes == nf4_nbytes(shape, nested)
    assert nf4_nbytes((5120, 5120)) < 0.52 * 5120 * 5120


def test_moving_keeps_everything() -> None:
    t = quantize_nf4(weight((33, 67)))
    moved = t.to("meta")
    assert moved.device.type == "meta" and moved.absmax.device.type == "meta"
    assert moved.nested_code is not None and moved.nested_code.device.type == "meta"
    assert torch.equal(t.to("cpu").dequantize(), t.dequantize())


def test_own_dtype_can_be_set() -> None:
    w = weight((8, 64))
    t = quantize_nf4(w, dtype=torch.bfloat16)
    assert t.dtype == torch.bfloat16 and t.dequantize().dtype == torch.bfloat16
    assert torch.equal(t.packed, quantize_nf4(w).packed)


@pytest.mark.parametrize(
    ("w", "message"),
    [
        (torch.zeros(64), "two-dimensional"),
        (torch.zeros(4, 64, dtype=torch.float64), "float64"),
        (torch.zeros(0, 64), "two-dimensional"),
        (torch.full((4, 64), float("nan")), "not finite"),
        (torch.full((4, 64), float("inf")), "not finite"),
    ],
)
def test_refuses_what_it_cannot_quantise(w: torch.Tensor, message: str) -> None:
    with pytest.raises(KernelError, match=message):
        quantize_nf4(w)


def test_refuses_parts_that_do_not_fit_together() -> None:
    t = quantize_nf4(weight((8, 64)))
    parts = {name: getattr(t, name) for name in NF4Tensor.__slots__}
    cases: list[tuple[dict[str, object], str]] = [
        ({"packed": t.packed[:-1]}, "packed"),
        ({"absmax": t.absmax[:-1]}, "absmax"),
        ({"absmax": t.absmax.float()}, "absmax"),
        ({"nested_absmax": None}, "absmax"),
        ({"nested_code": None}, "together"),
        ({"nested_code": dynamic_code()[:-1]}, "nested"),
        ({"code": NF4_CODE[:-1]}, "code"),
        ({"shape": (8, 65)}, "packed"),
    ]
    for changed, message in cases:
        with pytest.raises(KernelError, match=message):
            NF4Tensor(**{**parts, **changed})
