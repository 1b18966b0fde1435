"""Timing for the GPU benchmark, with fake clocks: budget, rotation, samples, ceilings."""

from __future__ import annotations

import pytest
import torch

from bench.gpu import card, timing
from bench.gpu.card import Ceilings
from bench.gpu.form import Form
from bench.gpu.timing import (
    Budget,
    DeviceStopwatch,
    copies,
    copy_arguments,
    measure,
    nbytes,
    steady,
    summary,
)
from tests.bench.gpu.fake import CPU, FakeClock, FakeWatch


def test_budget_keeps_a_reserve_and_learns_how_long_jobs_take() -> None:
    clock = FakeClock()
    budget = Budget(20.0, clock, reserve=3.0)
    assert budget.left == 17.0
    assert budget.allows(17.0)
    assert not budget.allows(17.5)
    clock.now += 9.0
    budget.took(9.0)
    assert (budget.spent, budget.left) == (9.0, 8.0)
    assert not budget.allows(1.0)  # the next may take 9 s as well
    clock.now += 50.0
    assert budget.left == 0.0


def test_ceilings_arithmetic() -> None:
    assert card.copy_rate(1000, 0.5) == 4000.0
    assert card.product_rate(10, 2.0) == 1000.0
    assert Ceilings(100.0, 1000.0).floor(50, 100) == (0.5, "memory")
    assert Ceilings(100.0, 1000.0).floor(50, 2000) == (2.0, "arithmetic")


def test_ceilings_are_measured_by_the_same_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out)
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **kw: real(*(min(s, 2048) for s in shape), **kw))
    ceilings, record = card.ceilings(FakeWatch(), CPU, 2**40, card.PRODUCTS[1:2])
    assert ceilings.copy == pytest.approx(2 * 2048 * 2 / 1e-3)
    assert ceilings.product == pytest.approx(2 * 8192**3 / 1e-3)
    assert record["copy"]["median"] == pytest.approx(1e-3)
    assert set(record) == {"copy", "product 8192"}


def test_forms_are_timed_by_turns_over_rotated_copies() -> None:
    order: list[str] = []
    forms = {name: [lambda name=name, i=i: order.append(f"{name}{i}") for i in range(3)] for name in "ab"}
    watch = FakeWatch()
    times = measure(watch, forms, seconds=0.0)
    warm = 2 * 3  # every copy twice
    assert order[: 2 * warm] == [f"{n}{i}" for n in "ab" for _ in range(2) for i in range(3)]
    assert order[2 * warm : 2 * warm + 8] == [
        "a0",
        "a1",
        "b0",
        "b1",
        "a2",
        "a0",
        "b2",
        "b0",
    ]  # 2 calls of 1 ms make a sample
    assert times["a"].samples == timing.LEAST_SAMPLES
    assert times["a"].median == pytest.approx(1e-3)
    assert times["a"].host == pytest.approx(1e-4)
    assert watch.samples[-1] == (2, pytest.approx(2e-4))  # the device waits as long as the host needs


def test_summary_takes_the_median_and_percentiles() -> None:
    figures = summary([(float(t), 1.0) for t in (9, 1, 3, 2, 4, 100, 5, 6, 7, 8, 0)], 4)
    assert (figures.median, figures.low, figures.high, figures.samples, figures.calls) == (
        5.0,
        2.0,
        8.0,
        11,
        4,
    )
    assert figures.spread == pytest.approx(1.2)


def test_a_loop_is_timed_as_it_runs_without_a_head_start() -> None:
    calls: list[int] = []
    watch = FakeWatch()
    figures = steady(watch, lambda: calls.append(1), seconds=0.0)
    assert (figures.calls, figures.samples) == (timing.LOOP_CALLS, timing.LEAST_LOOPS)
    assert figures.median == pytest.approx(1e-3)
    assert len(calls) == 2 + timing.LOOP_CALLS * timing.LEAST_LOOPS
    assert {lead for _, lead in watch.samples} == {0.0}


def test_copies_outrun_the_cache_within_memory() -> None:
    assert copies(read=10, held=40, cache=100, free=10**6) == 31
    assert copies(read=1000, held=4000, cache=100, free=10**6) == 2
    assert copies(read=10, held=40, cache=100, free=100) == 2
    assert copies(read=10, held=40, cache=100, free=1) == 1
    assert copies(read=1, held=1, cache=10**9, free=10**9) == timing.MOST_COPIES


def test_copies_lie_apart_and_nested_tensors_count() -> None:
    arguments = {
        "x": torch.ones(4),
        "nested": (torch.ones(2), [Form(lambda: None, [torch.ones(3)])]),
        "eps": 1.0,
    }
    assert nbytes(arguments) == 36
    sets = copy_arguments(arguments, 3)
    assert sets[0] is arguments
    assert len({s["x"].data_ptr() for s in sets}) == len({s["nested"][0].data_ptr() for s in sets}) == 3


def test_device_stopwatch_waits_for_the_host_and_reads_events(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            done.append("event")

        def synchronize(self) -> None:
            done.append("wait")

        def elapsed_time(self, end: Event) -> float:
            return 2.0  # milliseconds

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: done.append("idle"))
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: done.append(f"sleep {cycles}"))
    watch = DeviceStopwatch()  # 2,000,000 cycles in 2 ms: 1e9 a second
    done.clear()
    device, host = watch.sample([lambda: done.append("call")] * 2, lead=1e-3)
    assert done == ["idle", "sleep 1550000", "event", "call", "call", "event", "wait"]
    assert device == 2e-3
    assert host >= 0
