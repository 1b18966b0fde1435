"""The fused NF4 linear: a lossless layout, assembly that decodes every pattern, refused arguments."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from proactor.kernels import nf4_linear as module
from proactor.kernels import nf4_linear_kernels
from proactor.kernels.check import copy_between_nans, poisoned_memory
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted, jit, tl
from proactor.kernels.nf4 import NF4_CODE, NF4Tensor
from proactor.kernels.nf4_decode import decode, level_table, prmt_assembly
from proactor.kernels.nf4_linear import fused_nf4_linear, measure_crossover, nf4_linear
from proactor.kernels.nf4_pack import PackedNF4, can_repack, dequantize_packed, repack, unpack
from proactor.kernels.nf4_records import draw_nf4
from tests.kernels.fence import fenced_memory

needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = torch.device("cpu" if interpreted() else "cuda")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def drawn(shape: tuple[int, int], nested: bool = True, seed: int = 0) -> NF4Tensor:
    return draw_nf4(shape, nested, torch.Generator(device=DEVICE).manual_seed(seed), DEVICE)


def same(a: NF4Tensor, b: NF4Tensor) -> bool:
    pairs = [(getattr(a, name), getattr(b, name)) for name in NF4Tensor.__slots__]
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def every_pattern() -> NF4Tensor:
    """A weight [2048, 128] whose storage holds each of the 65,536 runs of four codes once."""
    patterns = torch.arange(65536, device=DEVICE)
    packed = torch.stack((patterns >> 8, patterns & 255), 1).view(-1).to(torch.uint8)
    scales = torch.ones(65536 * 4 // 64, device=DEVICE)
    return NF4Tensor(packed, scales, NF4_CODE.to(DEVICE), None, None, 0.0, (2048, 128), torch.float32)


# --- layout ---


@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("shape", [(1, 64), (64, 128), (70, 192), (130, 256), (3, 320)])
def test_repacking_loses_no_bit(
    shape: tuple[int, int], nested: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = drawn(shape, nested)
    packed = repack(weight)
    assert packed.words.shape == (-(-shape[0] // 64), -(-shape[1] // 128), 64, 16)
    assert same(unpack(packed)[0], weight)
    for mode in ("reference", "triton") if HAS_TRITON else ("reference",):
        monkeypatch.setenv("PROACTOR_KERNELS", mode)
        for dtype in DTYPES:
            with poisoned_memory():
                assert torch.equal(dequantize_packed(packed, dtype), weight.dequantize(dtype))


@needs_triton
def test_every_four_code_pattern_survives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    weight = every_pattern()
    packed = repack(weight)
    assert same(unpack(packed)[0], weight)
    codes = torch.stack((weight.packed >> 4, weight.packed & 15), 1).view(2048, 128).int()
    assert torch.equal(dequantize_packed(packed), NF4_CODE.to(DEVICE)[codes])


def test_the_layout_is_the_one_described() -> None:
    weight = drawn((70, 256))
    words = repack(weight).words.cpu()
    codes = torch.stack((weight.packed >> 4, weight.packed & 15), 1).view(70, 256).cpu()
    for row, column in ((0, 0), (5, 1), (63, 17), (64, 63), (69, 64), (66, 127), (3, 130), (69, 255)):
        half, i, t, e = column % 128 // 64, column % 64 // 16, column % 16 // 2, column % 2
        word = int(words[row // 64, column // 128, row % 64, 2 * t + half])
        assert word >> 4 * (2 * i + e) & 15 == int(codes[row, column])


@pytest.mark.parametrize("nested", [True, False])
def test_stacked_weights_keep_their_own_scales(nested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [
        replace(drawn((n, 256), nested, n), nested_offset=n / 100 if nested else 0.0) for n in (128, 64, 30)
    ]
    packed = repack(*parts)
    assert packed.shape == (222, 256) and all(same(a, b) for a, b in zip(unpack(packed), parts, strict=True))
    assert 0.5 < packed.nbytes / (222 * 256) < 0.7
    if HAS_TRITON:
        monkeypatch.setenv("PROACTOR_KERNELS", "triton")
        assert torch.equal(dequantize_packed(packed), torch.cat([p.dequantize() for p in parts]))
        x = torch.randn(3, 256, device=DEVICE)
        expected = torch.cat([x @ p.dequantize(torch.float32).t() for p in parts], 1)
        torch.testing.assert_close(fused_nf4_linear(x, packed), expected, rtol=1e-5, atol=1e-4)


def test_what_cannot_be_repacked_is_refused() -> None:
    good = drawn((64, 256))
    coarse = NF4Tensor(
        good.packed,
        good.absmax[::2].float(),
        good.code,
        None,
        None,
        0.0,
        good.shape,
        good.dtype,
        blocksize=128,
    )
    cases: list[tuple[tuple[NF4Tensor, ...], str]] = [
        ((), "none given"),
        ((coarse,), "blocksize 128"),
        ((drawn((64, 65)),), "65 columns are not whole blocks of 64"),
        ((replace(good, code=good.code.flip(0)),), "sixteen NF4 levels"),
        ((good, drawn((64, 128))), "columns beside"),
        ((good, drawn((64, 256), nested=False)), "nested and single-level"),
        ((good, replace(good, dtype=torch.float16)), "beside"),
        ((drawn((70, 256)), good), "no whole tiles"),
        ((drawn((64, 64)), drawn((64, 64))), "nested blocks"),
    ]
    for weights, problem in cases:
        assert not can_repack(*weights)
        with pytest.raises(KernelError, match=f"weights: .*{problem}"):
            repack(*weights)
    assert can_repack(good, good)


# --- decoding ---


def prmt(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """PTX prmt.b32: byte j of the result is byte s of b:a, s the low three bits of the selector's nibble j.

    The top bit of a nibble would spread the sign.
    """
    both = a.astype(np.uint64) | b.astype(np.uint64) << np.uint64(32)
    out = np.zeros_like(selector, dtype=np.uint64)
    for j in range(4):
        nibble = selector.astype(np.uint64) >> np.uint64(4 * j) & np.uint64(15)
        byte = both >> (nibble & np.uint64(7)) * np.uint64(8) & np.uint64(255)
        spread = np.where(byte & np.uint64(128), 255, 0).astype(np.uint64)
        out |= np.where(nibble & np.uint64(8), spread, byte) << np.uint64(8 * j)
    return out.astype(np.uint32)


def run_ptx(assembly: str, word: np.ndarray) -> list[np.ndarray]:
    """The few instructions of the decoder, on numpy: the eight 16-bit results."""
    registers: dict[str, np.ndarray] = {"$8": word.astype(np.uint32)}
    values: dict[int, np.ndarray] = {}

    def value(name: str) -> np.ndarray:
        return registers[name] if name in registers else np.full_like(word, int(name, 0), dtype=np.uint32)

    for line in assembly.strip("{} ").split(";"):
        name, _, rest = line.strip().partition(" ")
        operands = [o.strip() for o in rest.split(",")]
        if not name or name == ".reg":
            continue
        if name == "mov.b32" and operands[0].startswith("{"):
            low, high, source = (int(operands[0][2:]), int(operands[1][1:-1]), value(operands[2]))
            values[low], values[high] = (source & 0xFFFF).astype(np.uint16), (source >> 16).astype(np.uint16)
            continue
        target, *sources = [operands[0], *(value(o) for o in operands[1:])]
        if name == "mov.b32":
            result = sources[0]
        elif name == "and.b32":
            result = sources[0] & sources[1]
        elif name == "shr.b32":
            result = sources[0] >> sources[1]
        elif name == "lop3.b32":
            assert int(sources[3][0]) == (0xF0 & 0xCC | 0xAA)  # a & b | c
            result = sources[0] & sources[1] | sources[2]
        elif name == "prmt.b32":
            result = prmt(*sources)
        else:
            raise AssertionError(f"unknown instruction {name}")
        registers[str(target)] = result
    return [values[i] for i in range(8)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_assembly_decodes_all_patterns_of_four_codes(dtype: torch.dtype) -> None:
    levels = NF4_CODE.to(dtype).view(torch.int16).numpy().view(np.uint16)
    low = np.arange(65536, dtype=np.uint32)
    for word in (low | (low[::-1] << 16), low << 16 | 0x9ABC, low | np.uint32(0xF0000000)):
        for i, got in enumerate(run_ptx(prmt_assembly(dtype), word)):
            assert np.array_equal(got, levels[word >> np.uint32(4 * i) & 15])


def test_the_assembly_uses_two_permutes_a_weight() -> None:
    assert len(re.findall(r"prmt\.b32", prmt_assembly(torch.bfloat16))) == 16


if HAS_TRITON:

    @jit
    def decode_kernel(words_ptr, levels_ptr, out_ptr, ASSEMBLY: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
        words = tl.load(words_ptr + row * 8 + tl.arange(0, 8)[None, :])
        tl.store(out_ptr + row * 64 + tl.arange(0, 64)[None, :], decode(words, levels_ptr, ASSEMBLY, ROWS))


@needs_triton
@pytest.mark.parametrize("form", [0, 1, 2])
def test_both_forms_decode_all_patterns_in_column_order(form: int) -> None:
    if form and interpreted():
        pytest.skip("the interpreter runs no assembly")
    dtype = torch.float16 if form == 2 else torch.bfloat16
    codes = torch.arange(65536, device=DEVICE)
    words = (codes | (65535 - codes) << 16).to(torch.int32).view(-1, 8)  # [8192, 8]
    out = torch.empty(words.shape[0], 64, dtype=dtype, device=DEVICE)
    decode_kernel[(words.shape[0] // 1024,)](words, level_table(dtype, DEVICE), out, form, 1024)
    column = torch.arange(64, device=DEVICE)
    nibble = 2 * (column // 16) + column % 2
    index = words[:, column % 16 // 2] >> 4 * nibble & 15
    assert torch.equal(out.float(), NF4_CODE.to(DEVICE, dtype).float()[index])


# --- product ---


@needs_triton
@pytest.mark.parametrize(("m", "n", "k"), [(1, 64, 128), (5, 70, 192), (33, 130, 640), (66, 9, 320)])
def test_splitting_the_sum_changes_little_and_repeats_exactly(
    m: int, n: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = repack(drawn((n, k)))
    x = copy_between_nans(torch.randn(m, k, device=DEVICE))
    bias = copy_between_nans(torch.randn(n, device=DEVICE))
    exact = x.double() @ dequantize_packed(packed, torch.float32).double().t() + bias.double()
    outputs = []
    for most in (1, 2, 8):
        monkeypatch.setattr(nf4_linear_kernels, "MOST_SPLITS", most)
        with poisoned_memory():
            outputs.append(fused_nf4_linear(x, packed, bias))
        assert float((outputs[-1].double() - exact).abs().max() / exact.abs().max()) < 1e-5
    assert torch.equal(outputs[-1], fused_nf4_linear(x, packed, bias))


@needs_triton
@pytest.mark.parametrize("most", [1, 8])
def test_nothing_is_written_past_the_end(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_linear_kernels, "MOST_SPLITS", most)
    packed = repack(drawn((70, 320)))
    with fenced_memory():
        fused_nf4_linear(torch.randn(3, 320, device=DEVICE), packed)
        dequantize_packed(packed)


@needs_triton
def test_a_row_is_the_same_in_any_batch_of_one_tile() -> None:
    packed, x = repack(drawn((70, 384))), torch.randn(16, 384, device=DEVICE)
    whole = fused_nf4_linear(x, packed)
    for m in (1, 2, 7, 15):
        assert torch.equal(fused_nf4_linear(x[:m], packed), whole[:m])


@needs_triton
def test_rows_decide_between_fused_and_dense(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    monkeypatch.setitem(module.CROSSOVER, "default", 4)
    fused: list[int] = []
    plain = module.fused_nf4_linear
    monkeypatch.setattr(
        module, "fused_nf4_linear", lambda x, w, b=None: fused.append(x.shape[0]) or plain(x, w, b)
    )
    weight = drawn((20, 128))
    packed, bias = repack(weight), torch.randn(20, device=DEVICE)
    half = (torch.bfloat16, 3e-2)
    for rows in (1, 4, 5, 40):
        x = torch.randn(rows, 128, device=DEVICE).to(half[0])
        y = nf4_linear(x, packed, bias)
        assert y.dtype == half[0]
        expected = x.float() @ weight.dequantize(torch.float32).t() + bias
        assert float((y.float() - expected).abs().max() / expected.abs().max()) < half[1]
        torch.testing.assert_close(nf4_linear(x, weight, bias), y, rtol=half[1], atol=0.3)
    assert fused == [1, 4]


def test_leading_dimensions_and_gradients() -> None:
    weight = replace(drawn((20, 128)), dtype=torch.float32)
    x = torch.randn(2, 3, 128, device=DEVICE, requires_grad=True)
    bias = torch.randn(20, device=DEVICE, requires_grad=True)
    y = nf4_linear(x, repack(weight), bias)
    expected = torch.nn.functional.linear(x, weight.dequantize(), bias)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)
    seed = torch.randn_like(y)
    for mine, theirs in zip(
        torch.autograd.grad(y, [x, bias], seed), torch.autograd.grad(expected, [x, bias], seed), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_bad_input_is_refused_by_name() -> None:
    weight: PackedNF4 = repack(drawn((20, 128)))
    x = torch.randn(2, 128, device=DEVICE)
    cases: list[tuple[Tensor, Tensor | None, str]] = [
        (x.double(), None, "x: torch.float64"),
        (x.int(), None, "x: torch.int32"),
        (x[:, :64], None, "x: shape"),
        (x, torch.zeros(19, device=DEVICE), "bias: shape"),
        (x.to("meta"), None, "weight: on"),
    ]
    for wrong, bias, problem in cases:
        with pytest.raises(KernelError, match=problem):
            nf4_linear(wrong, weight, bias)
    with pytest.raises(KernelError, match="device: cpu is not a CUDA device"):
        measure_crossover("cpu")
    assert nf4_linear(x[:0], weight).shape == (0, 20)
