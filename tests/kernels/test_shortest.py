"""The least of several times, with the calls taking turns."""

from __future__ import annotations

import pytest

from proactor.kernels import shortest as module


def test_the_least_time_of_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    clock = iter([0.0, 3.0, 10.0, 11.0, 20.0, 22.0, 30.0, 35.0])  # a: 3 and 2, b: 1 and 5
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    calls = [lambda: order.append("a"), lambda: order.append("b")]
    assert module.shortest(calls, 2) == [2.0, 1.0]
    assert order == ["a", "b", "a", "b"]
