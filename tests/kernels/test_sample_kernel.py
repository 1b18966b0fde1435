"""Sampling in Triton draws the torch form's tokens for every filter, tie and mask, and refuses bad rows."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from proactor.kernels import sample_kernel, sample_thresholds
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.logprob import log_probabilities
from proactor.kernels.noise import keyed_uniforms
from proactor.kernels.sample import Filters, sample_reference, sample_tokens

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = torch.device("cpu" if interpreted() else "cuda")
Drawn = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def _triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")


def filters(
    rows: int, top_k: int = 0, top_p: float = 1.0, min_p: float = 0.0, allowed: Tensor | None = None
) -> Filters:
    made = (torch.full((rows,), v, device=DEVICE) for v in (top_k, top_p, min_p))
    return Filters(*made, allowed)


def ones(rows: int) -> Tensor:
    return torch.ones(rows, device=DEVICE)


def uniform(rows: int, seed: int = 0) -> Tensor:
    return torch.rand(rows, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(DEVICE)


def agree(logits: Tensor, temperature: Tensor, at: Tensor, settings: Filters | None = None) -> Drawn:
    """Both forms on the same numbers: ids equal, log-probabilities (hence the mass kept) too."""
    wanted = sample_reference(logits.clone(), temperature, at, settings)
    drawn = sample_tokens(logits.clone(), temperature, at, settings)
    assert torch.equal(drawn[0], wanted[0])
    for ours, theirs in zip(drawn[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=3e-6)
    return drawn


@pytest.mark.parametrize("top_k", [0, 1, 5, 500])
@pytest.mark.parametrize("top_p", [1.0, 0.9, 0.3, 1e-6, 0.0])
@pytest.mark.parametrize("min_p", [0.0, 0.2])
def test_filters(top_k: int, top_p: float, min_p: float) -> None:
    torch.manual_seed(top_k)
    logits = torch.randn(3, 141, device=DEVICE) * torch.tensor([0.1, 2.0, 6.0], device=DEVICE)[:, None]
    agree(logits, ones(3), uniform(3, top_k), filters(3, top_k, top_p, min_p))


@pytest.mark.parametrize("top_p", [0.903, 0.5, 0.351, 0.111])
def test_equals_at_the_end_of_a_nucleus(top_p: float) -> None:
    """Integer logits give many ties: the lowest ids are kept, exactly as many as the mass needs."""
    torch.manual_seed(0)
    logits = torch.randint(-1, 2, (2, 300), device=DEVICE).float()
    logits[1] = 0.0
    at = torch.tensor([0.3, 1 - 2**-53], dtype=torch.float64, device=DEVICE)
    ids, _, _ = agree(logits, ones(2), at, filters(2, 0, top_p))
    share = float(torch.tensor(top_p))  # float32
    assert int(ids[1]) == -int(-share * 300 // 1) - 1  # the last id of ceil(p V) equals
    agree(
        logits, ones(2), at, filters(2, 20, top_p)
    )  # all equals at the top-k threshold stay, then the nucleus


def test_temperatures_and_greedy_rows() -> None:
    torch.manual_seed(3)
    logits = torch.randn(8, 200, device=DEVICE)
    logits[0, 150] = logits[0, 70] = logits[0].max() + 1  # equals: the lower id
    temperature = torch.tensor([0.0, 1.0, 0.0, 0.5, 2.0, 0.7, 0.0, 1.3], device=DEVICE)
    ids, logp, policy = agree(logits, temperature, uniform(8))
    assert int(ids[0]) == 70 and torch.equal(logp, policy)
    agree(logits, temperature, uniform(8, 1), filters(8, 3, 0.6))


def test_masks_with_the_best_token_forbidden() -> None:
    torch.manual_seed(4)
    logits = torch.randn(6, 141, device=DEVICE) * 2
    allowed = torch.rand(6, 141, device=DEVICE) < 0.5
    allowed[:, 100] = True
    best = logits.argmax(-1, keepdim=True)
    allowed.scatter_(1, best, False)
    logits.scatter_add_(
        1, best, torch.full((6, 1), 3.0, device=DEVICE)
    )  # min-p is of the best that is allowed
    temperature = torch.tensor([1.0, 0.0, 0.6, 1.0, 1.0, 0.0], device=DEVICE)
    settings = filters(6, 0, 1.0, 0.0, allowed)
    settings.top_k[3], settings.top_p[4:], settings.min_p[2] = 4, 0.7, 0.3
    ids, _, _ = agree(logits, temperature, uniform(6), settings)
    assert bool(allowed.gather(1, ids[:, None]).all())


def test_uniforms_at_the_ends_and_tokens_of_weight_zero() -> None:
    logits = torch.full((4, 141), float("-inf"), device=DEVICE)
    logits[:, 40:80] = torch.randn(40, device=DEVICE)
    at = torch.tensor([0.0, 2.0**-54, 1 - 2.0**-53, 1.0], dtype=torch.float64, device=DEVICE)
    assert agree(logits, ones(4), at)[0].tolist() == [40, 40, 79, 79]


def test_a_uniform_on_a_border_belongs_to_the_token_after_it() -> None:
    logits, eighths = (
        torch.zeros(8, 8, device=DEVICE),
        torch.arange(8, dtype=torch.float64, device=DEVICE) / 8,
    )
    assert agree(logits, ones(8), eighths)[0].tolist() == list(range(8))


def test_a_row_does_not_see_its_neighbours() -> None:
    torch.manual_seed(5)
    logits = torch.randn(5, 141, device=DEVICE) * 3
    temperature, at = torch.rand(5, device=DEVICE) + 0.5, uniform(5)
    settings = filters(5, 9, 0.8, 0.01)
    whole = sample_tokens(logits, temperature, at, settings)
    for rows in ([3], [4, 0]):
        part = sample_tokens(logits[rows], temperature[rows], at[rows], filters(len(rows), 9, 0.8, 0.01))
        assert all(torch.equal(a, b[rows]) for a, b in zip(part, whole, strict=True))


def test_the_sampler_records_what_the_trainer_computes() -> None:
    """The same passes over the same logits: not one bit between them."""
    torch.manual_seed(6)
    logits = torch.randn(6, 300, device=DEVICE) * 4
    temperature = torch.tensor([1.0, 0.7, 1.3, 1.0, 0.5, 2.0], device=DEVICE)
    ids, _, policy = sample_tokens(logits, temperature, uniform(6))
    eye = torch.eye(300, device=DEVICE)
    logp, _ = log_probabilities(
        logits, eye, torch.arange(6, device=DEVICE), ids, temperature, lambda x, w, b: x
    )
    assert torch.equal(logp, policy)


def test_logits_are_only_read() -> None:
    logits = torch.randn(2, 50, device=DEVICE)
    before = logits.clone()
    sample_tokens(logits, ones(2) * 0.5, uniform(2), filters(2, 5))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize(("filtered", "heat"), [(False, 1.0), (False, 0.0), (True, 1.0)])
@pytest.mark.parametrize(
    "case", ["nan", "inf", "minus infinity", "nothing allowed", "only minus infinity allowed"]
)
def test_a_row_without_a_distribution(
    case: str, filtered: bool, heat: float, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROACTOR_KERNELS", mode)
    torch.manual_seed(7)
    logits = torch.randn(2, 141, device=DEVICE)
    settings = filters(2, 0, 0.9) if filtered else None
    if case in ("nan", "inf"):
        logits[1, 100] = float(case)
    elif case == "minus infinity":
        logits[1] = float("-inf")
    else:
        allowed = torch.ones(2, 141, dtype=torch.bool, device=DEVICE)
        allowed[1] = False
        if case == "only minus infinity allowed":
            allowed[1, 0], logits[1, 0] = True, float("-inf")
        settings = filters(2, 0, 1 - 0.1 * filtered, 0.0, allowed)
    with pytest.raises(KernelError, match=r"logits: .* in rows \[1\]"):
        sample_tokens(logits.clone(), ones(2) * heat, uniform(2), settings)
    if mode == "triton":
        ids, logp, policy = sample_tokens(logits, ones(2) * heat, uniform(2), settings, checked=False)
        assert (ids < 0).tolist() == logp.isnan().tolist() == policy.isnan().tolist() == [False, True]


@pytest.mark.parametrize("mode", ["triton", "reference"])
@pytest.mark.parametrize("gap", [39.0, 41.0, 95.0, 1e4])
@pytest.mark.parametrize("settings", [(0, 1.0, 0.0), (3, 1.0, 0.0), (0, 0.8, 0.0), (0, 1.0, 0.2)])
def test_a_mask_far_below_the_best_token_renormalises(
    settings: tuple[int, float, float], gap: float, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A very sure model: what the mask leaves keeps its own proportions, and the policy its log-probability.
    The row beside it, without a mask, keeps its bits.
    """
    monkeypatch.setenv("PROACTOR_KERNELS", mode)
    torch.manual_seed(1)
    n, left = 6, slice(20, 26)
    rounded = (torch.randn(1, 141, device=DEVICE) * 16).round() / 16  # so that differences are exact
    logits = rounded.expand(n, 141).contiguous()
    logits[:, 3] = gap + logits[:, left].amax(-1)
    allowed = torch.zeros(n, 141, dtype=torch.bool, device=DEVICE)
    allowed[:, left] = True
    allowed[-1] = True
    at = (torch.arange(n, dtype=torch.float64, device=DEVICE) + 0.5) / n
    drawn = sample_tokens(logits.clone(), ones(n), at, filters(n, *settings, allowed))
    few = torch.full_like(logits, float("-inf"))
    few[:, left] = logits[:, left]
    alone = sample_tokens(few, ones(n), at, filters(n, *settings))
    assert torch.equal(drawn[0][:-1], alone[0][:-1]) and len(set(drawn[0].tolist())) > 1
    torch.testing.assert_close(drawn[1][:-1], alone[1][:-1], rtol=1e-5, atol=1e-5)
    exact = logits.double().log_softmax(-1).gather(1, drawn[0][:, None])[:, 0]
    torch.testing.assert_close(drawn[2].double(), exact, rtol=1e-5, atol=1e-4)
    own = sample_tokens(logits[-1:].clone(), ones(1), at[-1:], filters(1, *settings))
    assert [column[-1:].tolist() for column in drawn] == [column.tolist() for column in own]
    greedy = sample_tokens(logits.clone(), ones(n) * 0, at, filters(n, *settings, allowed))
    assert greedy[0][:-1].tolist() == [20 + int(logits[0, left].argmax())] * (n - 1)


def test_frequencies_follow_the_distribution() -> None:
    """Chi-square over draws with keyed uniforms: 9 degrees of freedom, 1e-3 on either side."""
    n = 300
    logits = torch.linspace(1, -1.5, 12, device=DEVICE)
    allowed = torch.ones(n, 12, dtype=torch.bool, device=DEVICE)
    allowed[:, 3] = False
    keys = torch.tensor([[17, 2, i, i % 8, 5] for i in range(n)], device=DEVICE)
    settings = filters(n, 0, 1.0, 0.1, allowed)  # 0.1 of the best ends the row before its last id
    ids, logp, _ = sample_tokens(logits.expand(n, 12).contiguous(), ones(n), keyed_uniforms(keys), settings)
    kept = logits.exp() * allowed[0]
    kept[kept < 0.1 * kept.max()] = 0
    assert int((kept > 0).sum()) == 10
    expected = n * kept / kept.sum()
    counts = torch.bincount(ids, minlength=12)
    assert not bool(counts[kept == 0].any())
    chi = float(((counts - expected)[kept > 0] ** 2 / expected[kept > 0]).sum())
    assert 1.15 < chi < 27.9
    torch.testing.assert_close(logp, (expected / n).log()[ids], rtol=1e-5, atol=1e-5)


def test_bad_arguments_are_named() -> None:
    good = {"logits": torch.randn(2, 9, device=DEVICE), "temperature": ones(2), "uniform": uniform(2)}
    for name, value in {
        "logits": torch.zeros(2, 9, dtype=torch.int64, device=DEVICE),
        "temperature": ones(3),
        "uniform": ones(2),
    }.items():
        with pytest.raises(KernelError, match=f"{name}: "):
            sample_tokens(**good | {name: value})
    with pytest.raises(KernelError, match="logits: no vocabulary"):
        sample_tokens(**good | {"logits": torch.zeros(2, 0, device=DEVICE)})
    with pytest.raises(KernelError, match="top_k: shape"):
        sample_tokens(**good, filters=filters(3))
    for allowed in (torch.ones(2, 8, dtype=torch.bool), torch.ones(2, 9)):
        with pytest.raises(KernelError, match="allowed: "):
            sample_tokens(**good, filters=filters(2, allowed=allowed.to(DEVICE)))


@pytest.mark.skipif(not interpreted(), reason="counts what the interpreter runs")
def test_a_search_ends_when_one_weight_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """With few distinct weights, as half types have, well below `ROUNDS` passes."""
    tiles = sample_thresholds.tile_weights
    passes = []

    def counted(*arguments: object, **options: object) -> object:
        passes.append(1)
        return tiles(*arguments, **options)

    for module in (sample_kernel, sample_thresholds):
        monkeypatch.setattr(module, "tile_weights", counted)
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    logits = (torch.arange(20) % 7).float().unsqueeze(0)  # one tile a pass
    for k, kept in ((1, {6, 13}), (4, {6, 13, 5, 12, 19})):
        passes.clear()
        filters = Filters(torch.tensor([k]), torch.tensor([1.0]), torch.tensor([0.0]))
        drawn = {
            int(sample_tokens(logits, torch.ones(1), torch.tensor([u], dtype=torch.float64), filters)[0])
            for u in torch.linspace(0, 0.999, 8).tolist()
        }
        assert drawn <= kept
        assert 2 * 8 < len(passes) <= (2 + 6) * 8, "a drawing reads a tile twice"
