"""The CPU linears agree, and the probe finds the row count from which they are batch-invariant."""

from __future__ import annotations

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proactor.kernels import linear
from proactor.kernels.errors import KernelError
from proactor.kernels.linear import (
    ROW_STEP,
    FastestLinear,
    cpu_forms,
    exact_linear,
    exact_minimum,
    fastest_cpu_linear,
    library_linear,
    onednn_available,
    onednn_linear,
    padded_rows,
    widened_linear,
)

needs_onednn = pytest.mark.skipif(not onednn_available(), reason="this build of torch has no oneDNN linear")


@needs_onednn
@pytest.mark.parametrize("rows,k,n", [(1, 5, 7), (3, 33, 17), (19, 65, 129)])
@pytest.mark.parametrize("biased", [False, True])
def test_forms_agree(rows: int, k: int, n: int, biased: bool) -> None:
    torch.manual_seed(rows)
    x, weight = torch.randn(rows, k), torch.randn(n, k)
    bias = torch.randn(n) if biased else None
    exact = (x.double() @ weight.double().t() + (0 if bias is None else bias.double())).float()
    for form in (library_linear, onednn_linear, exact_linear, fastest_cpu_linear()):
        torch.testing.assert_close(form(x, weight, bias), exact, rtol=1e-5, atol=1e-5)


@needs_onednn
def test_from_the_minimum_on_rows_are_bit_identical() -> None:
    shapes = {(96, 64), (64, 96), (8, 64), (64, 8), (16, 512)}
    minimum = exact_minimum(exact_linear, shapes, torch.float32)
    torch.manual_seed(5)
    for n, k in shapes:
        x, weight = torch.randn(416, k), torch.randn(n, k)
        full = exact_linear(x, weight, None)
        for rows in {padded_rows(rows, minimum) for rows in range(1, 417)}:
            assert torch.equal(exact_linear(x[:rows].contiguous(), weight, None), full[:rows]), (n, k, rows)


def test_the_probe_sees_a_form_that_depends_on_the_batch() -> None:
    def switches(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = library_linear(x.double(), weight.double()).float()
        return out if x.shape[0] > 100 else out + 1e-3

    def never_exact(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return library_linear(x.double(), weight.double()).float() + x.shape[0]

    assert exact_minimum(switches, {(8, 8)}, torch.float32) == 104
    with pytest.raises(KernelError, match="deterministic mode"):
        exact_minimum(never_exact, {(8, 8)}, torch.float32)


def test_without_onednn_the_library_form_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "onednn_available", lambda: False)
    assert cpu_forms(torch.float32) == [library_linear]


def test_each_shape_and_row_count_takes_the_form_that_was_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quick form takes no time on few rows and much on many; the choice is made once."""
    calls: list[int] = []

    def quick(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        calls.append(len(x))
        time.sleep(0.02 if len(x) > 8 else 0)
        return torch.empty(len(x), len(weight))

    def slow(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        time.sleep(0.005)
        return library_linear(x, weight, bias)

    monkeypatch.setattr(linear, "SMALL", 0)
    monkeypatch.setattr(linear, "library_linear", slow)
    monkeypatch.setattr(linear, "cpu_forms", lambda dtype: [slow, quick])
    fastest, weight = FastestLinear(), torch.randn(3, 5)
    fastest(torch.randn(2, 5), weight)
    probed = len(calls)
    fastest(torch.randn(3, 5), weight)
    assert probed > 1 and calls[probed:] == [3]
    many = torch.randn(20, 5)
    torch.testing.assert_close(fastest(many, weight), library_linear(many, weight))
    count = len(calls)
    fastest(many, weight)
    assert len(calls) == count


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("chunk", [1, 40, 1 << 20])
def test_widened_products_are_rounded_once(
    dtype: torch.dtype, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "WIDENED", chunk)
    torch.manual_seed(0)
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((5, 17), (9, 17), (9,)))
    for w in (weight, torch.randn(17, 9).to(dtype).t()):
        exact = x.double() @ w.double().t() + bias.double()
        torch.testing.assert_close(widened_linear(x, w, bias), exact.float().to(dtype), rtol=1e-3, atol=1e-3)


@given(rows=st.integers(1, 20000), minimum=st.integers(1, 20))
def test_padded_rows_hold_all_rows_and_little_more(rows: int, minimum: int) -> None:
    least = max(rows, minimum)
    assert least <= padded_rows(rows, minimum) <= max(least + ROW_STEP - 1, least * 9 / 8)
    assert padded_rows(padded_rows(rows, minimum), minimum) == padded_rows(rows, minimum)


def test_row_counts_are_few() -> None:
    assert len({padded_rows(rows) for rows in range(1, 8193)}) == 64
