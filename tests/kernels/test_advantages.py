"""Ragged advantages equal those of one group at a time, and NaN stays in its group."""

from __future__ import annotations

import pytest
import torch

from proactor.kernels.advantages import ragged_advantages, ragged_advantages_kernel
from proactor.kernels.errors import KernelError
from proactor.kernels.grpo import CONVENTIONS, Convention, group_advantages
from proactor.kernels.jit import HAS_TRITON, interpreted

DEVICE = torch.device("cpu" if interpreted() else "cuda")
needs_triton = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
FORMS = ["reference", pytest.param("triton", marks=needs_triton)]


@pytest.fixture(params=FORMS, autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("PROACTOR_KERNELS", request.param)
    return str(request.param)


def run(groups: list[list[float]], convention: Convention = "art", eps: float = 1e-6) -> list[list[float]]:
    rewards = torch.tensor([r for g in groups for r in g], dtype=torch.float64, device=DEVICE)
    sizes = torch.tensor([0, *(len(g) for g in groups)])
    out = ragged_advantages(rewards, sizes.cumsum(0).int(), convention, eps)
    assert out.dtype == torch.float32
    return [part.tolist() for part in out.split(sizes[1:].tolist())]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_equals_one_group_at_a_time(convention: Convention) -> None:
    torch.manual_seed(2)
    groups = [(torch.randn(n, dtype=torch.float64) * 10 + 1e3).tolist() for n in (2, 9, 1, 0, 16, 3)]
    for advantages, group in zip(run(groups, convention, 1e-3), groups, strict=True):
        assert advantages == pytest.approx(
            group_advantages(group, convention, 1e-3) if group else [], rel=1e-6
        )


@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e9 + 0.1])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_equal_rewards_give_exact_zeros(value: float, convention: Convention) -> None:
    groups = [[value] * n for n in (2, 3, 7, 9)] + [[0.0, 1.0]]
    advantages = run(groups, convention)
    assert advantages[:-1] == [[0.0] * len(g) for g in groups[:-1]]
    assert advantages[-1][0] == -advantages[-1][1] != 0


def test_a_group_of_one() -> None:
    assert run([[3.0], [0.0, 1.0], [-2.0]], "art")[::2] == [[0.0], [0.0]]
    assert run([[3.0], [0.0, 1.0], [-2.0]], "verl")[::2] == [[3.0], [-2.0]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 1, 8])
def test_a_reward_that_is_not_finite_spoils_its_group_alone(bad: float, place: int) -> None:
    group = [1.0] * 9
    group[place] = bad
    advantages = run([[0.0, 1.0], group, [2.0, 2.0]])
    assert torch.tensor(advantages[1]).isnan().all()
    assert advantages[0] == pytest.approx([-1, 1], rel=1e-5) and advantages[2] == [0.0, 0.0]


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_group_of_nothing_finite_is_nan(convention: Convention) -> None:
    groups = [[float("nan")], [float("inf")], [float("inf")] * 2, [1.0, 2.0]]
    *bad, fine = run(groups, convention)
    assert all(torch.tensor(group).isnan().all() for group in bad) and torch.tensor(fine).isfinite().all()


def test_rewards_in_no_group_are_nan() -> None:
    advantages = ragged_advantages(torch.arange(6.0, device=DEVICE), torch.tensor([1, 4]))
    assert advantages.isnan().tolist() == [True, False, False, False, True, True]


def test_refuses_what_does_not_fit() -> None:
    rewards, offsets = torch.zeros(4, device=DEVICE), torch.tensor([0, 4])
    for bad in ([0, 5], [-1, 4], [3, 1, 4], []):
        with pytest.raises(KernelError, match=r"^offsets: "):
            ragged_advantages(rewards, torch.tensor(bad, dtype=torch.int64))
    with pytest.raises(KernelError, match=r"^offsets: "):
        ragged_advantages(rewards, offsets.float())
    for wrong in (rewards.long(), rewards[None], rewards.half()):
        with pytest.raises(KernelError, match=r"^rewards: "):
            ragged_advantages(wrong, offsets)
    with pytest.raises(KernelError, match=r"^convention: "):
        ragged_advantages(rewards, offsets, "median")  # type: ignore[arg-type]


@needs_triton
def test_kernel_marks_groups_that_leave_the_rewards() -> None:
    """Offsets on a GPU are not checked: the kernel must stay inside the rewards and give NaN."""
    buffer = torch.arange(12.0, device=DEVICE)
    out = torch.full((12,), 7.0, device=DEVICE)
    offsets = torch.tensor([-2, 3, 5, 11], device=DEVICE)
    ragged_advantages_kernel[(3,)](buffer[2:], offsets, out[2:], 8, 1e-6, True, False, 4)
    assert out[:2].tolist() == [7.0, 7.0] and out[10:].tolist() == [7.0, 7.0]
    assert out[2:10].isnan().tolist() == [True] * 3 + [False] * 2 + [True] * 3
