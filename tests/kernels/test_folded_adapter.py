"""A folded adapter equals its formula, follows its factors, and holds what it says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from proactor.kernels import lora_update
from proactor.kernels.folded_adapter import FOLDED_ROWS, NARROW_ROWS
from proactor.kernels.linear import exact_linear, library_linear, onednn_available
from proactor.kernels.lora import lora_linear, lora_linear_reference
from proactor.kernels.lora_update import Adapter

WIDTHS, INPUTS = (9, 5, 6), 12
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def adapter_of(targets: tuple[int, ...], ranks: list[int], scales: list[float]) -> Adapter:
    """Adapters on these targets of a linear with outputs of `WIDTHS`."""
    edges = [sum(WIDTHS[:i]) for i in range(len(WIDTHS) + 1)]
    a = torch.randn(sum(ranks), INPUTS)
    b = [torch.randn(WIDTHS[t], rank) for t, rank in zip(targets, ranks, strict=True)]
    return Adapter(a, b, [(edges[t], edges[t + 1]) for t in targets], ranks, scales)


def wanted(x: Tensor, weight: Tensor, adapter: Adapter, mask: Tensor | None = None) -> Tensor:
    """The formula in float64."""
    wide = Adapter(
        adapter.a.double(), [b.double() for b in adapter.b], adapter.spans, adapter.ranks, adapter.scales
    )
    return lora_linear_reference(
        x.double(), weight.double(), None, wide, None if mask is None else mask.double()
    )


@given(
    targets=st.sampled_from([(0,), (1,), (0, 2), (1, 2), (0, 1, 2)]),
    rows=st.sampled_from([1, 2, NARROW_ROWS, NARROW_ROWS + 1, FOLDED_ROWS, FOLDED_ROWS + 1]),
    dtype=st.sampled_from(list(TOLERANCE)),
    ranks=st.lists(st.integers(1, 4), min_size=3, max_size=3),
    scales=st.lists(st.sampled_from([0.3, 1.0, 2.0]), min_size=3, max_size=3),
    masked=st.booleans(),
    seed=st.integers(0, 99),
)
def test_equals_the_formula(
    targets: tuple[int, ...],
    rows: int,
    dtype: torch.dtype,
    ranks: list[int],
    scales: list[float],
    masked: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    adapter = adapter_of(targets, ranks[: len(targets)], scales[: len(targets)])
    x, weight = torch.randn(rows, INPUTS).to(dtype), torch.randn(sum(WIDTHS), INPUTS).to(dtype)
    mask = (torch.arange(rows) % 2).float() if masked else None
    with torch.no_grad():
        found = lora_linear(x, lambda: weight, None, adapter, mask)
    assert found.dtype == dtype and bool(adapter.kept) == (rows <= FOLDED_ROWS)
    expected = wanted(x, weight, adapter, mask)
    scale = float(expected.abs().max())
    assert float((found.double() - expected).abs().max()) <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("rows", [1, NARROW_ROWS + 1])
@pytest.mark.parametrize("changed", ["a", "b"])
def test_a_factor_that_changes_is_folded_again(rows: int, changed: str) -> None:
    adapter = adapter_of((0, 1, 2), [2, 2, 2], [2.0, 2.0, 2.0])
    x = torch.randn(rows, INPUTS).to(torch.bfloat16)
    weight = torch.zeros(sum(WIDTHS), INPUTS, dtype=torch.bfloat16)
    with torch.no_grad():
        before = lora_linear(x, lambda: weight, None, adapter)
        (adapter.a if changed == "a" else adapter.b[2]).mul_(-1)
        after = lora_linear(x, lambda: weight, None, adapter)
    start = 0 if changed == "a" else adapter.spans[2][0]
    assert torch.equal(after[:, start:], -before[:, start:])
    assert torch.equal(after[:, :start], before[:, :start])


def test_the_same_factors_are_folded_once_a_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype] = []
    fold = lora_update.fold
    monkeypatch.setattr(lora_update, "fold", lambda *a: made.append(a[-1]) or fold(*a))  # type: ignore[func-returns-value]
    adapter = adapter_of((0,), [2], [1.0])
    weight = torch.zeros(sum(WIDTHS), INPUTS, dtype=torch.bfloat16)
    with torch.no_grad():
        for rows in (1, 1, 9, 1, 9):
            lora_linear(torch.ones(rows, INPUTS).to(torch.bfloat16), lambda: weight, None, adapter)
    assert made == [torch.float32, torch.bfloat16]
    narrow, wide = 4 * 2 * sum(WIDTHS), 2 * (2 * sum(WIDTHS) + 2 * INPUTS)
    assert adapter.folded_bytes == narrow + wide  # in float32 A is the adapter's own


def test_a_linear_of_another_width_has_its_own() -> None:
    adapter = adapter_of((0,), [2], [1.0])
    x = torch.randn(1, INPUTS)
    with torch.no_grad():
        for outputs in (sum(WIDTHS), sum(WIDTHS) + 3):
            weight = torch.zeros(outputs, INPUTS)
            assert lora_linear(x, lambda w=weight: w, None, adapter).shape == (1, outputs)  # type: ignore[misc]


def test_with_gradient_and_in_float64_nothing_is_folded() -> None:
    adapter = adapter_of((0,), [2], [1.0])
    weight = torch.randn(sum(WIDTHS), INPUTS)
    lora_linear(torch.randn(1, INPUTS, requires_grad=True), lambda: weight, None, adapter)
    with torch.no_grad():
        lora_linear(torch.randn(1, INPUTS).double(), lambda: weight.double(), None, adapter)
    assert not adapter.kept


@pytest.mark.skipif(not onednn_available(), reason="this build of torch has no oneDNN linear")
def test_an_exact_linear_keeps_its_form() -> None:
    adapter = adapter_of((0,), [2], [1.0])
    weight = torch.randn(sum(WIDTHS), INPUTS)
    with torch.no_grad():
        lora_linear(torch.randn(8, INPUTS), lambda: weight, None, adapter, None, exact_linear)
        assert not adapter.kept
        lora_linear(torch.randn(8, INPUTS), lambda: weight, None, adapter, None, library_linear)
        assert adapter.kept


def test_factors_that_count_no_changes_are_not_folded() -> None:
    with torch.inference_mode():
        adapter = adapter_of((0, 1), [2, 2], [2.0, 2.0])
        x, weight = torch.randn(2, INPUTS), torch.randn(sum(WIDTHS), INPUTS)
        first = lora_linear(x, lambda: weight, None, adapter)
        adapter.b[0].zero_()
        second = lora_linear(x, lambda: weight, None, adapter)
    assert not adapter.kept and not torch.equal(first, second)
