"""Log-probabilities of pairs equal the full log-softmax: chunk borders, shared rows, both backwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proactor.kernels import logprob
from proactor.kernels.errors import KernelError
from proactor.kernels.logprob import chunk_pairs, exponentials_, log_probabilities, logprob_reference

CASES = [
    # rows, hidden, vocabulary, pairs
    (1, 3, 5, 1),
    (7, 5, 11, 19),
    (23, 9, 101, 23),
]


def case(rows: int, hidden: int, vocabulary: int, pairs: int, dtype: torch.dtype = torch.float64):  # type: ignore[no-untyped-def]
    torch.manual_seed(rows)
    h = torch.randn(rows, hidden, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocabulary, hidden, dtype=dtype)
    extra = torch.randint(0, rows, (pairs - rows,))
    row = torch.cat([torch.arange(rows), extra]).sort().values  # every row named, some by several pairs
    target = torch.randint(0, vocabulary, (pairs,))
    target[-1] = vocabulary - 1
    return h, weight, row, target, torch.rand(rows, dtype=dtype) + 0.5


@pytest.mark.parametrize("chunk", [512, 4, 1])
@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("shape", CASES)
def test_values_and_gradient(
    shape: tuple[int, int, int, int], kept: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logprob, "CHUNK_ROWS", chunk)
    monkeypatch.setattr(logprob, "KEEP_BYTES", 1 << 30 if kept else 0)
    h, weight, row, target, temperature = case(*shape)
    ours, entropy = log_probabilities(h, weight, row, target, temperature)
    theirs, reference_entropy = logprob_reference(h, weight, row, target, temperature[row])
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(entropy, reference_entropy, rtol=1e-11, atol=1e-11)
    grads = torch.randn_like(theirs), torch.randn_like(theirs)
    for used in (slice(0, 2), slice(0, 1), slice(1, 2)):  # both, log p alone, the entropy alone
        mine, expected = (
            torch.autograd.grad(outputs[used], [h], grads[used], retain_graph=True)[0]
            for outputs in ((ours, entropy), (theirs, reference_entropy))
        )
        torch.testing.assert_close(mine, expected, rtol=1e-11, atol=1e-11)


def test_the_same_row_and_target_twice() -> None:
    """Two samples that begin with the same token: their gradients add up."""
    h, weight, *_ = case(1, 3, 5, 1)
    row, target = torch.zeros(3, dtype=torch.int64), torch.tensor([4, 4, 1])
    logp, _ = log_probabilities(h, weight, row, target, torch.ones(1, dtype=torch.float64))
    (mine,) = torch.autograd.grad(logp @ torch.tensor([2.0, 3.0, -1.0], dtype=torch.float64), [h])
    full = (h @ weight.t()).log_softmax(-1)[0]
    (expected,) = torch.autograd.grad(5 * full[4] - full[1], [h])
    torch.testing.assert_close(mine, expected, rtol=1e-12, atol=1e-12)


def test_rows_must_ascend() -> None:
    h, weight, *_ = case(7, 5, 11, 19)
    with pytest.raises(KernelError, match="sorted by row"):
        log_probabilities(h, weight, torch.tensor([1, 0]), torch.tensor([0, 0]), torch.ones(7))


def test_no_gradient_keeps_nothing_and_gives_the_same_bits() -> None:
    h, weight, row, target, temperature = case(23, 9, 101, 23, torch.float32)
    with torch.no_grad():
        plain = log_probabilities(h, weight, row, target, temperature)[0]
    assert torch.equal(plain, log_probabilities(h, weight, row, target, temperature)[0].detach())


def test_half_precision_is_summed_in_float32() -> None:
    h, weight, row, target, temperature = case(23, 64, 101, 40, torch.float32)
    half = h.detach().bfloat16().requires_grad_()
    ours, _ = log_probabilities(half, weight.bfloat16(), row, target, temperature)
    assert ours.dtype == torch.float32
    ours.sum().backward()
    assert half.grad is not None and half.grad.dtype == torch.bfloat16
    expected, _ = logprob_reference(
        half.detach().double(), weight.bfloat16().double(), row, target, temperature[row]
    )
    assert (
        float((ours.detach().double() - expected).abs().max()) < 0.2
    )  # logits of size 30 have steps of 0.125


def test_exponentials_with_masked_logits() -> None:
    logits = torch.randn(3, 9, dtype=torch.float64) * 50
    logits[1, 2:] = float("-inf")
    shifted = logits.clone()
    weights, total = exponentials_(shifted)
    torch.testing.assert_close(weights / total.unsqueeze(1), logits.softmax(-1))
    torch.testing.assert_close(shifted - total.log().unsqueeze(1), logits.log_softmax(-1))


def pairs_of(row: Tensor, rows: int) -> list[int]:
    return [b - a for _, _, a, b in chunk_pairs(row, rows)]


def test_chunks_hold_every_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "CHUNK_ROWS", 4)
    row = torch.tensor([0, 3, 3, 4, 7, 8, 8, 8])
    assert chunk_pairs(row, 9) == [(0, 4, 0, 3), (4, 8, 3, 5), (8, 9, 5, 8)]
    assert sum(pairs_of(row, 9)) == len(row)
