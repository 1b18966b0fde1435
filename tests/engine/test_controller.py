"""The load controller: estimates against their definition, decisions by property, and the log."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from proactor.engine.controller import (
    Controller,
    ControllerConfig,
    Decision,
    Readings,
    choose_victims,
    log_lines,
    replay,
)
from proactor.engine.estimates import LengthEstimate, StepEstimate
from proactor.engine.types import EngineError

counts = st.integers(0, 300)


@st.composite
def readings(draw: st.DrawFn) -> Readings:
    total = draw(st.integers(1, 5000))
    used = draw(st.integers(0, total))
    admitted = draw(counts)
    decodes = draw(st.integers(0, 256))
    return Readings(
        waiting=draw(counts),
        admitted=admitted,
        decoding=draw(st.integers(0, admitted)),
        backlog=draw(st.integers(0, 100_000)),
        pages_total=total,
        pages_used=used,
        pages_promised=draw(st.integers(0, 6000)),
        pages_short=draw(st.sampled_from([0, 0, 0, 5])),
        last_decodes=decodes,
        last_kv=decodes * draw(st.integers(1, 2000)),
        last_rows=draw(st.sampled_from([0, 0, 64, 700])),
        last_seconds=draw(st.floats(1e-6, 10.0)),
        ended=tuple(draw(st.lists(st.integers(1, 500), max_size=40))),
    )


histories = st.lists(readings(), min_size=1, max_size=30)


def decide(history: list[Readings], config: ControllerConfig | None = None) -> list[Decision]:
    controller = Controller(config)
    return [controller.decide(reading) for reading in history]


def serve(
    controller: Controller,
    size: int,
    steps: int,
    *,
    waiting: int = 0,
    context: int = 100,
    cost: str = "affine",
) -> Decision:
    """Steady readings of ``size`` sequences, or of those it lets run, on a machine of that cost."""
    decision = controller.decide(Readings(waiting=waiting, pages_total=10_000))
    for _ in range(steps):
        run = min(size, decision.max_seqs)
        seconds = {"affine": 1e-2 + 1e-4 * run, "flat": 1e-2, "linear": 1e-2 * max(1.0, run / 32)}[cost]
        decision = controller.decide(
            Readings(
                waiting=waiting,
                admitted=run,
                decoding=run,
                pages_total=10_000,
                last_decodes=run,
                last_kv=run * context,
                last_seconds=seconds + 1e-6 * run * context,
            )
        )
    return decision


# -- what it learns ---


@given(lengths=st.lists(st.integers(1, 60), min_size=8, max_size=60), age=st.integers(0, 70))
def test_the_remaining_length_is_the_mean_over_those_that_got_longer(lengths: list[int], age: int) -> None:
    estimate = LengthEstimate(window=40, enough=8)
    for length in lengths:
        estimate.observe([length])
    last = lengths[-40:]
    longer = [length - age for length in last if length > age]
    mean = sum(longer) / len(longer) if len(longer) >= 4 else max(age, 1)
    assert estimate.remaining(age, 100) == pytest.approx(min(mean, 100 - age))
    assert estimate.mean == pytest.approx(sum(last) / len(last))
    deviation = (sum((x - estimate.mean) ** 2 for x in last) / len(last)) ** 0.5
    assert estimate.deviation == pytest.approx(deviation, abs=1e-6)


def test_the_worst_case_counts_until_enough_samples_have_ended() -> None:
    estimate = LengthEstimate(window=40, enough=8)
    estimate.observe([10] * 7)
    assert estimate.remaining(3, 100) == 97
    estimate.observe([10])
    assert estimate.remaining(3, 100) == 7


def test_lengths_are_read_whole_while_more_are_observed() -> None:
    """As `Engine.counters` reads them from another thread."""
    estimate, read = LengthEstimate(window=40, enough=8), list[float]()

    class Lengths(list[int]):
        def __iter__(self) -> Iterator[int]:
            for length in super().__iter__():
                yield length
                read.append(estimate.remaining(0, 100))

    estimate.observe(Lengths([10] * 9))
    estimate.observe(Lengths([20, 20, 20]))
    assert read == [100] * 9 + [10] * 3 and estimate.remaining(0, 100) == 150 / 12


def test_costs_by_bucket_are_those_of_the_machine_whatever_the_context() -> None:
    rng, estimate = random.Random(0), StepEstimate((1, 2, 4, 8, 16, 32, 64, 128), window=32, memory=1000)

    def seconds(size: int, context: float) -> float:
        return max(0.01, 0.0005 * size) + 2e-6 * size * context

    for _ in range(40):
        for size in (4, 16, 32, 64):
            kv = size * rng.randrange(100, 900)
            estimate.observe(size, kv, 0, seconds(size, kv / size) * rng.uniform(0.98, 1.02))
        estimate.observe(16, 16 * 500, 200, seconds(16, 500) + 200 * 3e-5)
    assert estimate.visited == [4, 16, 32, 64]
    for size, context in ((4, 100), (16, 900), (32, 3000), (48, 500), (64, 500)):
        assert estimate.cost(size, context) == pytest.approx(seconds(size, context), rel=0.08)
    assert estimate.cost(1, 0) == pytest.approx(0.01, rel=0.1), "a step has a floor"
    assert estimate.cost(128, 500) == pytest.approx(seconds(128, 500), rel=0.08), "on the line"
    flat = estimate.cost(128, 0, optimism=1.0)
    assert flat == pytest.approx(estimate.cost(64, 0)), "as the largest that was timed"
    assert estimate.row_cost == pytest.approx(3e-5, rel=0.2)


def test_the_median_ignores_steps_that_something_else_held_up() -> None:
    estimate = StepEstimate((8, 16), window=32, memory=1000)
    for i in range(32):
        estimate.observe(8, 800, 0, 5.0 if i % 4 == 3 else 0.01)
    assert estimate.cost(8, 100) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("steps", [6, 40])
def test_chance_over_contexts_that_hardly_vary_is_no_slope(steps: int) -> None:
    for seed in range(30):
        rng, estimate = random.Random(seed), StepEstimate((1, 2), window=64, memory=1000)
        for _ in range(steps):
            estimate.observe(1, rng.randrange(30, 38), 0, 0.01 * rng.uniform(0.8, 1.2))
        assert estimate.cost(1, 1000) < 0.04, "a slope of chance would be ten times that"


@given(sizes=st.sets(st.integers(1, 9), min_size=1), decodes=st.integers(1, 12))
def test_sequences_count_for_the_smallest_bucket_that_holds_them(sizes: set[int], decodes: int) -> None:
    buckets = sorted(sizes)
    found = StepEstimate(buckets, window=8, memory=50).bucket(decodes)
    assert found in sizes and found >= min(decodes, buckets[-1])
    assert not any(decodes <= b < found for b in buckets)


def test_a_bucket_that_is_not_timed_again_is_forgotten() -> None:
    estimate = StepEstimate((8, 16), window=8, memory=50)
    for _ in range(8):
        estimate.observe(16, 1600, 0, 0.02)
    for _ in range(80):
        estimate.observe(8, 800, 0, 0.01)
    assert estimate.visited == [8]


# -- the batch ---


def test_the_batch_grows_to_the_knee_and_no_further() -> None:
    decision = serve(Controller(), 256, 400, waiting=1000, cost="linear")
    # beyond 32 a step costs in proportion: no sequence more is worth its place
    assert 24 <= decision.max_seqs <= 48
    assert serve(Controller(), 256, 400, waiting=1000, cost="flat").max_seqs == 256


def test_a_longer_queue_never_asks_for_a_smaller_batch_and_is_worth_a_larger_one() -> None:
    knees = []
    for waiting in (0, 16, 64, 256):
        controller = Controller()
        serve(controller, 256, 300, waiting=1000)
        knees.append(serve(controller, 256, 1, waiting=waiting).max_seqs)
    assert knees == sorted(knees) and knees[0] < knees[-1]


@pytest.mark.parametrize("seed", range(20))
def test_few_noisy_steps_do_not_strand_the_batch_at_a_small_size(seed: int) -> None:
    """Costs that vary by chance over contexts that hardly vary are no slope."""
    rng, controller = random.Random(seed), Controller()
    decision = controller.decide(Readings(pages_total=9000))
    for step in range(300):
        run = min(4 if step < 20 else 256, decision.max_seqs)
        kv = run * 85 + step
        readings = Readings(
            waiting=0 if step < 20 else 100,
            admitted=run,
            decoding=run,
            pages_total=9000,
            last_decodes=run,
            last_kv=kv,
            last_seconds=(0.012 + 2e-4 * run + 2e-6 * kv) * rng.uniform(0.8, 1.2),
        )
        decision = controller.decide(readings)
    assert decision.max_seqs >= 96


def test_longer_contexts_make_the_knee_smaller() -> None:
    knees = []
    for context in (10, 1000, 10_000):
        controller = Controller()
        knees.append(serve(controller, 256, 400, waiting=20, context=context).max_seqs)
    assert knees == sorted(knees, reverse=True) and knees[0] > knees[-1]


@given(history=histories)
def test_limits_hold(history: list[Readings]) -> None:
    config = ControllerConfig(max_seqs=100, max_rows=512)
    for reading, decision in zip(history, decide(history, config), strict=True):
        assert 1 <= decision.max_seqs <= 100
        assert 0 <= decision.prefill_rows <= 512
        assert bool(decision.free_pages) == bool(reading.pages_short)


# -- pages ---


@given(history=histories)
def test_it_never_promises_more_than_the_pool_has_left_by_its_own_estimate(history: list[Readings]) -> None:
    for reading, decision in zip(history, decide(history), strict=True):
        left = reading.pages_total - reading.pages_used - reading.pages_promised
        assert 0 <= decision.room <= max(0, left)
        assert not (reading.pages_short and decision.room), "nothing new while pages are missing"
        assert decision.free_pages >= reading.pages_short


@given(history=histories, more=st.integers(0, 3000))
def test_fuller_pools_never_get_more_room(history: list[Readings], more: int) -> None:
    last = history[-1]
    for field in ("pages_used", "pages_promised"):
        fuller = replace(last, **{field: getattr(last, field) + more})
        assert decide([*history[:-1], fuller])[-1].room <= decide(history)[-1].room


@given(history=histories, shorts=st.integers(1, 12))
def test_each_preemption_widens_the_margin_and_quiet_narrows_it(history: list[Readings], shorts: int) -> None:
    controller = Controller()
    for reading in history:
        controller.decide(reading)
    calm = Readings(pages_total=4000, admitted=64)
    controller.decide(replace(calm, ended=tuple(range(1, 400, 3))))
    rooms = [controller.decide(calm)]
    for _ in range(shorts):
        controller.decide(replace(calm, pages_short=1))
        rooms.append(controller.decide(calm))
    widths = [row.caution for row in rooms]
    assert widths[1] > widths[0] or widths[0] > 6.9
    assert all(width <= 8.0 for width in widths)
    assert all(b.room <= a.room for a, b in pairwise(rooms) if b.caution >= a.caution)
    later = [controller.decide(calm) for _ in range(50)]
    assert all(b.room >= a.room for a, b in pairwise(later))


@given(candidates=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 9)), min_size=1), pages=counts)
def test_victims_are_the_least_computed_and_one_always_stays(
    candidates: list[tuple[int, int]], pages: int
) -> None:
    named = [(i, computed, freed) for i, (computed, freed) in enumerate(candidates)]
    victims = choose_victims(named, pages)
    spared = [computed for i, computed, _ in named if i not in victims]
    assert spared, "the one that is furthest goes on"
    assert max((candidates[i][0] for i in victims), default=0) <= min(spared)
    freed = [candidates[i][1] for i in victims]
    assert sum(freed) >= pages or len(spared) == 1
    assert not victims or sum(freed[:-1]) < pages, "none too many"


# -- prompts ---


@given(history=histories)
def test_prompts_are_computed_whenever_some_wait_and_nothing_decodes(history: list[Readings]) -> None:
    history = [*history, replace(history[-1], decoding=0, backlog=5, waiting=1)]
    assert decide(history)[-1].prefill_rows > 0


SLOW = Readings(last_decodes=33, last_kv=33, last_seconds=1.0)


@given(history=histories)
@example(history=[SLOW, SLOW])  # what prompts add seems nothing beside steps that took so long
def test_of_two_steps_in_a_row_one_computes_prompts_that_wait(history: list[Readings]) -> None:
    busy = Readings(9, 40, 40, 500, 9000, last_decodes=40, last_kv=4000, last_seconds=0.01)
    with_prompts = replace(busy, last_rows=100, last_seconds=0.02)
    later = [busy] * 5 + [with_prompts] * 40
    history = [*(replace(reading, backlog=reading.backlog + 1) for reading in history), *later]
    rows = [decision.prefill_rows for decision in decide(history)]
    assert all(a or b for a, b in pairwise(rows))
    assert 0 in rows[-40:], "now and then decoding is timed alone"


# -- the log ---


@given(history=histories)
def test_a_log_replayed_gives_the_same_decisions(history: list[Readings]) -> None:
    lines = list(log_lines(ControllerConfig(), zip(history, decide(history), strict=True)))
    assert list(replay(lines)) == []


@given(history=histories, data=st.data())
def test_a_decision_that_was_altered_is_found(history: list[Readings], data: st.DataObject) -> None:
    lines = list(log_lines(ControllerConfig(), zip(history, decide(history), strict=True)))
    at = data.draw(st.integers(1, len(history)))
    row = json.loads(lines[at])
    row["decision"]["max_seqs"] += 1
    lines[at] = json.dumps(row)
    assert [number for number, _, _ in replay(lines)] == [at + 1]


@pytest.mark.parametrize(
    "lines", [["{}"], ['{"config": {"speed": 1}}'], ['{"config": {}}', '{"readings": {}}'], ["no"], ["[]"]]
)
def test_what_is_no_log_is_refused_with_its_line(lines: list[str]) -> None:
    with pytest.raises(EngineError, match=r"line|speed"):
        list(replay(lines))


@settings(max_examples=50)
@given(history=histories, seed=st.integers(0, 99))
def test_in_deterministic_mode_decisions_do_not_depend_on_seconds(history: list[Readings], seed: int) -> None:
    rng = random.Random(seed)
    sizes = [8, 16, 24, 32, 48, 64]
    timed = [
        Readings(40, size, size, 500, 9000, last_decodes=size, last_kv=size * rng.randrange(50, 500))
        for size in sizes * 6
    ]
    # a machine without a knee, and one on which a step costs with the square of its sequences
    flat, steep = (
        [
            replace(
                reading, last_seconds=1e-3 * max(1, reading.last_decodes) ** power * rng.uniform(0.9, 1.1)
            )
            for reading in [*timed, *history]
        ]
        for power in (0, 2)
    )
    config = ControllerConfig(deterministic=True)
    assert decide(flat, config) == decide(steep, config)
    assert decide(flat) != decide(steep), "outside it they do"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"max_seqs": 300}, "buckets"),
        ({"buckets": (4, 2)}, "rising"),
        ({"buckets": ()}, "rising"),
        ({"slack": 1.0}, "slack"),
        ({"caution": 9.0}, "caution"),
        ({"max_batch": 4}, "unknown"),
        ({"headroom": 1.0}, "headroom"),
    ],
)
def test_impossible_settings_are_refused(values: dict[str, object], named: str) -> None:
    with pytest.raises(EngineError, match=named):
        ControllerConfig(**values)
