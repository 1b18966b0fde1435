"""NF4 products on a CPU: the order of the codes, both forms, and what is held."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor

from proactor.kernels import nf4, nf4_cpu, nf4_library
from proactor.kernels.errors import KernelError
from proactor.kernels.linear import library_linear
from proactor.kernels.lora import lora_linear, lora_linear_reference
from proactor.kernels.lora_update import Adapter
from proactor.kernels.nf4 import NF4Tensor, dequantize_torch, quantize_nf4
from proactor.kernels.nf4_cpu import (
    HostNF4,
    can_host,
    deinterleave,
    host,
    host_back,
    host_linear,
    interleave,
    takes_fused,
)

fused = pytest.mark.skipif(not nf4_library.library_fuses(), reason="bitsandbytes has no fused product here")
SHAPES = ((96, 192), (32, 192))


def weights(*shapes: tuple[int, int], nested: bool = True, seed: int = 0) -> list[NF4Tensor]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes]
    return [quantize_nf4(weight, nested) for weight in drawn]


def rows(count: int, width: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def dense(parts: list[NF4Tensor]) -> Tensor:
    return torch.cat([dequantize_torch(part, torch.float64) for part in parts])


def test_codes_lie_as_bitsandbytes_packs_them() -> None:
    (weight,) = weights((96, 192))
    state = bnb.QuantState(
        weight.scales(), shape=torch.Size((96, 192)), code=weight.code, blocksize=64, quant_type="nf4",
        dtype=torch.bfloat16,
    )  # fmt: skip
    packed, state = bnb._convert_weight_packed_for_cpu(weight.packed.clone(), state)
    codes = interleave(weight.packed, weight.shape)
    assert torch.equal(codes.view(96, 96), packed)
    assert torch.equal(deinterleave(codes), weight.packed)
    held = host(weight, dtype=torch.bfloat16)
    assert held.coarse is None or torch.equal(held.coarse, state.absmax)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("nested", [True, False])
def test_the_stack_keeps_every_bit(dtype: torch.dtype, nested: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_cpu, "PART", 32 * 192)  # several parts a weight
    parts = weights(*SHAPES, nested=nested)
    held = host(*parts, dtype=dtype)
    assert held.shape == (128, 192) and (held.coarse is None or dtype == torch.bfloat16)
    for target in (torch.bfloat16, torch.float32):
        wanted = torch.cat([dequantize_torch(part, torch.bfloat16) for part in parts]).to(target)
        assert torch.equal(held.dequantize(target), wanted)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 4e-3)])
@pytest.mark.parametrize("count", [1, 5, 40])
def test_parts_give_the_product_and_its_gradient(
    dtype: torch.dtype, most: float, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nf4_cpu, "PART", 32 * 192)
    monkeypatch.setattr(nf4_cpu, "takes_fused", lambda x, weight: False)
    parts = weights(*SHAPES)
    held, exact = host(*parts, dtype=dtype), dense(parts).to(torch.bfloat16).double()
    x, dy, bias = rows(count, 192, dtype), rows(count, 128, dtype, 2), rows(1, 128, dtype, 3)[0]
    wanted = x.double() @ exact.t() + bias.double()
    assert error(host_linear(x, held, bias, library_linear), wanted) < most
    assert error(host_back(dy, held, library_linear), dy.double() @ exact) < most


@fused
@pytest.mark.parametrize("count", [1, 4, 7, 40])
def test_the_fused_product_is_near_the_exact_one(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_cpu, "crossover", lambda columns: 64)
    parts = weights(*SHAPES)
    held, x = host(*parts, dtype=torch.bfloat16), rows(count, 192, torch.bfloat16)
    bias = rows(1, 128, torch.bfloat16, 3)[0]
    found = host_linear(x, held, bias, library_linear)
    gap = error(found, x.double() @ dense(parts).t() + bias.double())
    print(f"fused, {count} rows: {gap:.1e}")
    assert takes_fused(x, held) and gap < 5e-3
    assert not torch.equal(found, host_linear(x, hidden_codes(held), bias, library_linear))


def hidden_codes(held: HostNF4) -> HostNF4:
    """The same weight without its fused product."""
    return replace(held, coarse=None)


@fused
def test_the_librarys_function_gives_the_bits_of_its_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    held, x = host(*weights(*SHAPES), dtype=torch.bfloat16), rows(5, 192, torch.bfloat16)
    assert held.coarse is not None
    function = nf4_library._product()
    if function is None:
        pytest.skip(f"bitsandbytes {nf4_library._version()} is called by its operation")
    direct = nf4_library.fused_linear(x, held.codes, held.coarse, held.shape)
    monkeypatch.setattr(nf4_library, "_product", lambda: None)
    assert torch.equal(direct, nf4_library.fused_linear(x, held.codes, held.coarse, held.shape))


@fused
def test_what_the_product_would_read_beyond_is_refused() -> None:
    held, x = host(*weights(*SHAPES), dtype=torch.bfloat16), rows(5, 192, torch.bfloat16)
    assert held.coarse is not None
    wrong = [
        (x.float(), held.codes, held.coarse),
        (x[:, :128], held.codes, held.coarse),
        (rows(192, 5, torch.bfloat16).t(), held.codes, held.coarse),
        (x, held.codes[1:], held.coarse),
        (x, held.codes, held.coarse[:, 1:]),
        (x, held.codes, held.coarse.float()),
    ]
    for rows_, codes, scales in wrong:
        with pytest.raises(KernelError, match="wanted"):
            nf4_library.fused_linear(rows_, codes, scales, held.shape)


@fused
def test_only_few_rows_in_bfloat16_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_cpu, "crossover", lambda columns: 16)
    held = host(*weights(*SHAPES), dtype=torch.bfloat16)
    assert [takes_fused(rows(n, 192, torch.bfloat16), held) for n in (0, 1, 16, 17)] == [
        False,
        True,
        True,
        False,
    ]
    assert not takes_fused(rows(1, 192, torch.float32), held)
    assert host(*weights((48, 192)), dtype=torch.bfloat16).coarse is None, "32 outputs are read together"
    assert host(*weights(*SHAPES), dtype=torch.float32).coarse is None


@fused
def test_the_crossover_is_one_of_the_counts_and_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[int] = []

    def seconds(forms: Sequence[Any], tries: int) -> list[float]:
        timed.append(len(forms))
        return [1.0, 2.0] if len(timed) < 4 else [2.0, 1.0]  # fused wins at the first three counts

    monkeypatch.setattr(nf4_cpu, "shortest", seconds)
    nf4_cpu.crossover.cache_clear()
    assert nf4_cpu.crossover(128) == nf4_cpu.COUNTS[2]
    assert nf4_cpu.crossover(128) == nf4_cpu.COUNTS[2] and len(timed) == 4
    nf4_cpu.crossover.cache_clear()


def test_without_the_library_torch_dequantises_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: Any) -> Tensor:
        raise AssertionError("asked of the library")

    monkeypatch.setattr(nf4, "_library_agrees", lambda: False)
    monkeypatch.setattr(nf4, "library_dequantize", refused)
    monkeypatch.setattr(nf4_cpu, "_fuses", lambda: False)
    parts = weights(*SHAPES)
    held, x = host(*parts, dtype=torch.bfloat16), rows(3, 192, torch.bfloat16)
    assert held.coarse is None
    assert error(host_linear(x, held, None, library_linear), x.double() @ dense(parts).t()) < 4e-3


@pytest.mark.parametrize("shape", [(4, 128), (3, 64), (5, 192), (2, 1024)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_torch_and_the_library_dequantise_to_equal_bits(shape: tuple[int, int], dtype: torch.dtype) -> None:
    if not nf4_library.library_available():
        pytest.skip("bitsandbytes has no CPU library here")
    (weight,) = weights(shape)
    assert nf4_library.library_takes(weight.packed, shape, 64, dtype)
    found = nf4_library.library_dequantize(weight.packed, weight.scales(), shape, 64, dtype)
    assert torch.equal(found, dequantize_torch(weight, dtype))


def test_rows_that_are_not_whole_blocks_are_left_to_torch() -> None:
    (weight,) = weights((4, 96))
    assert not nf4_library.library_takes(weight.packed, (4, 96), 64, torch.float32)
    assert not can_host(weight)
    with pytest.raises(KernelError, match="weights: 96 columns are not whole blocks of 64"):
        host(weight, dtype=torch.bfloat16)


def test_weights_of_one_stack_are_alike() -> None:
    (first,) = weights((32, 128))
    larger = replace(
        first, absmax=first.scales()[::2].clone(), nested_absmax=None, nested_code=None, blocksize=128
    )
    for other, problem in (
        (weights((32, 64))[0], "64 columns beside 128"),
        (larger, "blocks of 128 beside 64"),
        (replace(first, dtype=torch.float16), "torch.float16 beside torch.bfloat16"),
    ):
        assert can_host(other) and not can_host(first, other)
        with pytest.raises(KernelError, match=f"weights: {problem}"):
            host(first, other, dtype=torch.bfloat16)


def test_lora_trains_on_it() -> None:
    parts = weights(*SHAPES)
    held, exact = host(*parts, dtype=torch.float32), dense(parts).to(torch.bfloat16).double()
    a, b = rows(4, 192, torch.float32, 5), [rows(96, 2, torch.float32, 6), rows(32, 2, torch.float32, 7)]
    leaves = [t.requires_grad_() for t in (rows(6, 192, torch.float32), a, *b)]
    adapter = Adapter(a, b, [(0, 96), (96, 128)], [2, 2], [0.5, 0.5])
    lora_linear(leaves[0], lambda: held, None, adapter).square().sum().backward()
    wide = [t.detach().double().requires_grad_() for t in leaves]
    doubled = Adapter(wide[1], wide[2:], adapter.spans, [2, 2], [0.5, 0.5])
    lora_linear_reference(wide[0], exact, None, doubled).square().sum().backward()
    for leaf, wanted in zip(leaves, wide, strict=True):
        assert leaf.grad is not None and wanted.grad is not None
        assert error(leaf.grad, wanted.grad) < 1e-5
