"""Triton passes over logits: chunks, kept and recomputed logits, batch invariance, refused arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proactor.kernels import logprob
from proactor.kernels.errors import KernelError
from proactor.kernels.head_rows import Rows, launch_slopes_, launch_values, pair_offsets
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.logprob import log_probabilities, row_chunks

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = torch.device("cpu" if interpreted() else "cuda")


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")


def problem(rows: int = 9, hidden: int = 6, vocabulary: int = 150, pairs: int = 14) -> dict[str, Tensor]:
    torch.manual_seed(rows)
    row = torch.cat([torch.arange(rows), torch.randint(0, rows, (pairs - rows,))]).sort().values
    target = torch.randint(0, vocabulary, (pairs,))
    target[-1] = vocabulary - 1
    arguments = {"hidden": torch.randn(rows, hidden), "weight": torch.randn(vocabulary, hidden), "row": row}
    arguments |= {"target": target, "temperature": torch.rand(rows) + 0.5}
    return {k: v.to(DEVICE) for k, v in arguments.items()}


def torch_form(monkeypatch: pytest.MonkeyPatch, given: dict[str, Tensor], seed: Tensor) -> list[Tensor]:
    with monkeypatch.context() as patch:
        patch.setenv("PROACTOR_KERNELS", "reference")
        leaf = given["hidden"].clone().requires_grad_()
        logp, entropy = log_probabilities(**given | {"hidden": leaf})
        gradients = torch.autograd.grad([logp, entropy], leaf, [seed, seed.flip(0)], retain_graph=True)
        return [logp.detach(), entropy, *gradients, *torch.autograd.grad(entropy, leaf, seed)]


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("fitting", [1, 4, 100])
def test_chunks_and_both_backward_paths(kept: bool, fitting: int, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem()
    monkeypatch.setattr(logprob, "CHUNK_BYTES", fitting * 150 * 4)
    monkeypatch.setattr(logprob, "KEEP_BYTES", 1 << 30 if kept else 0)
    calls = []

    def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        calls.append(len(x))
        return x @ weight.t()

    seed = torch.randn(len(given["row"]), device=DEVICE)
    leaf = given["hidden"].requires_grad_()
    logp, entropy = log_probabilities(**given, linear=linear)
    chunks = -(-9 // fitting)
    assert len(calls) == chunks and max(calls) == min(9, fitting)
    both, seeds = [logp, entropy], [seed, seed.flip(0)]
    (first,) = torch.autograd.grad(both, leaf, seeds, retain_graph=True)
    assert len(calls) == (chunks if kept else 2 * chunks)
    (second,) = torch.autograd.grad(both, leaf, seeds, retain_graph=True)  # the kept logits are spent
    assert torch.equal(first, second)
    (alone,) = torch.autograd.grad(entropy, leaf, seed)
    for ours, theirs in zip((*both, first, alone), torch_form(monkeypatch, given, seed), strict=True):
        torch.testing.assert_close(ours.detach(), theirs, rtol=2e-5, atol=2e-5)


def test_chunks_fit_their_budget() -> None:
    """Qwen2.5-14B's head: 16,384 rows never need more than 256 MiB of logits at once."""
    weight = torch.empty(152064, 1, dtype=torch.bfloat16, device="meta")
    chunks = row_chunks(16384, weight)
    assert [a for a, _ in chunks[1:]] == [b for _, b in chunks[:-1]] and chunks[-1][1] == 16384
    assert max(b - a for a, b in chunks) * 152064 * 2 <= 256 << 20
    assert {b - a for a, b in chunks[:-1]} == {832}
    assert row_chunks(3, torch.empty(1 << 30, 1, device="meta")) == [(0, 1), (1, 2), (2, 3)]


def passes(logits: Tensor, rows: Rows, dlogp: Tensor, start: int) -> tuple[Tensor, ...]:
    logp = torch.full(rows.target.shape, float("nan"), device=DEVICE)
    entropy, lse = logp.clone(), torch.full_like(rows.scale, float("nan"))
    buffer = torch.full((len(logits) + 2, logits.shape[1]), 7.0, device=DEVICE)
    buffer[1:-1] = logits
    logits = buffer[1:-1]
    launch_values(logits, start, rows, logp, entropy, lse)
    launch_slopes_(logits, start, rows, lse, dlogp)
    assert bool((buffer[:: len(buffer) - 1] == 7).all()), "written outside the chunk"
    return logp, entropy, lse, logits


def test_a_row_does_not_see_its_neighbours() -> None:
    """A row has the same bits alone and in a batch, and no other row's pairs are written."""
    given = problem()
    logits = torch.randn(9, 150, device=DEVICE) * 3
    rows = Rows(1 / given["temperature"], pair_offsets(given["row"], 9), given["target"])
    dlogp = torch.randn(14, device=DEVICE)
    logp, entropy, lse, dz = passes(logits, rows, dlogp, 0)
    for start, stop in ((0, 1), (3, 5), (8, 9)):
        mine = (given["row"] >= start) & (given["row"] < stop)
        part = passes(logits[start:stop], rows, dlogp, start)
        assert torch.equal(part[3], dz[start:stop]) and torch.equal(part[2][start:stop], lse[start:stop])
        for whole, alone in ((logp, part[0]), (entropy, part[1])):
            assert torch.equal(whole[mine], alone[mine])
            assert bool(alone[~mine].isnan().all())


def test_logits_of_minus_infinity_and_of_any_size() -> None:
    """Masked logits weigh nothing, also a whole first tile of them, and 1e4 overflows nothing."""
    logits = torch.randn(4, 150, device=DEVICE)
    logits[0, :70] = float("-inf")
    logits[1] *= 1e4
    logits[2] -= 1e4
    logits[3, 1:] = float("-inf")
    target = torch.tensor([80, int(logits[1].argmax()), 5, 0], device=DEVICE)
    rows = Rows(torch.ones(4, device=DEVICE), pair_offsets(torch.arange(4, device=DEVICE), 4), target)
    logp, entropy, _, dz = passes(logits, rows, torch.ones(4, device=DEVICE), 0)
    wide = logits.double()
    expected = wide.log_softmax(-1)
    torch.testing.assert_close(logp.double(), expected.gather(1, target[:, None])[:, 0], rtol=1e-5, atol=1e-5)
    p = expected.exp()
    torch.testing.assert_close(entropy.double(), -torch.xlogy(p, p).sum(-1), rtol=1e-5, atol=1e-5)
    onehot = torch.nn.functional.one_hot(target, 150)
    torch.testing.assert_close(dz.double(), onehot - p, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 149])
def test_a_bad_logit_makes_its_row_nan_as_in_torch(bad: float, place: int) -> None:
    logits = torch.randn(2, 150, device=DEVICE)
    logits[1, place] = bad
    rows = Rows(
        torch.ones(2, device=DEVICE), torch.arange(3, device=DEVICE), torch.tensor([3, 4], device=DEVICE)
    )
    logp, entropy, _, _ = passes(logits, rows, torch.ones(2, device=DEVICE), 0)
    assert logp.isnan().tolist() == entropy.isnan().tolist() == [False, True]


def test_float64_takes_the_torch_form() -> None:
    given = {k: v.double() if v.is_floating_point() else v for k, v in problem().items()}
    assert log_probabilities(**given)[0].dtype == torch.float64


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("row", torch.tensor([1, 0]), "sorted by row"),
        ("row", torch.tensor([0, 2]), "row: outside 0 … 1"),
        ("row", torch.tensor([-1, 1]), "row: outside 0 … 1"),
        ("row", torch.tensor([0, 1], dtype=torch.int32), "row: not int64"),
        ("target", torch.tensor([0, 150]), "target: outside 0 … 149"),
        ("target", torch.tensor([-1, 3]), "target: outside"),
        ("temperature", torch.tensor([1.0, 0.0]), "temperature: must be above 0"),
        ("temperature", torch.tensor([1.0, float("nan")]), "temperature: must be above 0"),
        ("temperature", torch.ones(3), "temperature: shape"),
        ("weight", torch.randn(150, 5), "weight: shape"),
        ("weight", torch.randn(150, 6).half(), "weight: torch.float16"),
        ("hidden", torch.randn(2, 6, 1), "hidden: not a matrix"),
    ],
)
def test_bad_arguments_are_named(
    name: str, value: Tensor, message: str, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", mode)
    with pytest.raises(KernelError, match=message):
        log_probabilities(**problem(2, 6, 150, 2) | {name: value.to(DEVICE)})
