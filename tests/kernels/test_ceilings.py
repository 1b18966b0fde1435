"""Ceilings of a device and the floors that follow."""

from __future__ import annotations

import torch

from proactor.kernels.ceilings import Ceilings, seconds_of


def test_the_larger_part_is_the_floor() -> None:
    rates = Ceilings(copy=100.0, product=1000.0)
    assert rates.floor(50, 100) == (0.5, "memory")
    assert rates.floor(10, 400) == (0.4, "arithmetic")


def test_a_call_is_warmed_up_and_timed_thrice_at_least() -> None:
    calls: list[int] = []
    assert seconds_of(lambda: calls.append(1), torch.device("cpu"), 0.0) >= 0
    assert len(calls) == 4
