"""The simulator conserves what passes through it, and the load bench measures what it says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import load
from bench.load_settings import Mix, Setting
from bench.simulated import PAGE, Arrival, Outcome
from bench.simulator import Simulator
from bench.step_times import Computed, Recorded
from proactor.engine.controller import Controller, ControllerConfig
from proactor.engine.load import FixedLimits, LoadPolicy


@dataclass(frozen=True)
class Plain:
    """A machine whose steps take 1, and a tenth a row."""

    name: str = "plain"
    padded: bool = False

    def seconds(self, decodes: int, kv: int, rows: int, row_kv: int) -> float:
        return 1.0 + 0.1 * (decodes + rows)


@st.composite
def traces(draw: st.DrawFn) -> list[Arrival]:
    time, arrivals = 0.0, []
    for _ in range(draw(st.integers(1, 15))):
        time += draw(st.floats(0, 20))
        lengths = tuple(draw(st.lists(st.integers(1, 60), min_size=1, max_size=4)))
        arrivals.append(
            Arrival(time, draw(st.integers(1, 100)), lengths, draw(st.integers(max(lengths), 90)))
        )
    return arrivals


LARGEST = 7 + 4 * 7  # pages of the largest request with all its tokens
ALL = st.sampled_from(
    [
        FixedLimits(1),
        FixedLimits(4),
        FixedLimits(256),
        ControllerConfig(),
        ControllerConfig(deterministic=True),
        ControllerConfig(enough=1, caution=0, headroom=0),
        ControllerConfig(max_seqs=3, max_rows=16),
    ]
)


class Checked(Simulator):
    def _run_step(self) -> float:
        self.check()
        assert self.out.steps < 50_000, "no end in sight"
        return super()._run_step()


def run(
    kind: FixedLimits | ControllerConfig, pages: int, arrivals: list[Arrival]
) -> tuple[Simulator, Outcome]:
    policy: LoadPolicy = Controller(kind) if isinstance(kind, ControllerConfig) else kind
    simulator = Checked(Plain(), policy, pages, noise=0.05)
    return simulator, simulator.run(arrivals)


@settings(max_examples=60, deadline=None)
@given(arrivals=traces(), kind=ALL, pages=st.integers(LARGEST, 3 * LARGEST))
def test_every_request_ends_and_no_token_is_lost_or_drawn_twice(
    arrivals: list[Arrival], kind: FixedLimits | ControllerConfig, pages: int
) -> None:
    simulator, out = run(kind, pages, arrivals)
    assert all(latency is not None and latency > 0 for latency in out.latency), "someone starved"
    assert out.drawn == sum(sum(arrival.lengths) for arrival in arrivals)
    assert out.prompt_rows - out.recomputed == sum(arrival.prompt for arrival in arrivals)
    ended = [length for readings, _ in simulator.log for length in readings.ended] + simulator._lengths
    assert sorted(ended) == sorted(length for arrival in arrivals for length in arrival.lengths)
    assert not isinstance(kind, FixedLimits) or not out.preempted, "the worst case was kept free"


def test_samples_that_get_longer_than_those_before_are_preempted_and_end() -> None:
    short = [Arrival(i * 0.01, 16, (4,), 400) for i in range(40)]
    long = [Arrival(200 + i * 0.01, 16, (300,), 400) for i in range(40)]
    simulator, out = run(ControllerConfig(), 60, [*short, *long])
    assert out.preempted > 0 and out.recomputed > 0
    assert max(decision.caution for _, decision in simulator.log) > 1.0
    fixed = run(FixedLimits(256), 60, [*short, *long])[1]
    assert out.seconds < fixed.seconds, "and it is faster than keeping the worst case free"


def test_a_request_that_fills_the_pool_begins_when_nothing_else_runs() -> None:
    uneven = [Arrival(i * 0.01, 16, (160 if i % 10 else 1,), 160) for i in range(60)]
    filling = Arrival(900.0, 16 * 30, (160, 160), 160)  # its expected pages and the margin are too many
    out = run(ControllerConfig(), 30 + 2 * 10, [*uneven, filling])[1]
    assert out.latency[-1] is not None


def test_the_trace_of_a_request_alone_takes_its_steps() -> None:
    simulator = Simulator(Plain(), FixedLimits(8), 100, noise=0.0, chunk=30)
    out = simulator.run([Arrival(5.0, 70, (10, 4), 20)])
    # 70 rows in three steps, the first tokens with the last; then nine steps: three of two, six of one
    assert out.steps == 3 + 9
    assert out.latency == [pytest.approx(3 * 1.0 + 7.0 + 9 * 1.0 + 0.1 * (3 * 2 + 6))]
    assert out.drawn == 14 and out.prompt_rows == 70


def test_a_padded_machine_pays_for_the_bucket() -> None:
    arrivals = [Arrival(0.0, 1, (9,), 9) for _ in range(5)]

    def seconds(padded: bool) -> float:
        return Simulator(Plain(padded=padded), FixedLimits(8), 100, noise=0.0).run(arrivals).seconds

    assert seconds(True) - seconds(False) == pytest.approx(8 * 0.1 * (8 - 5))


# -- step times ---


def test_recorded_points_are_met_and_interpolated() -> None:
    record = {
        "machine": "m",
        "decode": [
            {"sequences": 1, "points": [[10, 0.011], [110, 0.021]]},
            {"sequences": 4, "points": [[40, 0.024], [440, 0.064]]},
        ],
        "prefill": [[16, 0.02], [64, 0.05]],
    }
    table = Recorded.of(record)
    assert table.seconds(1, 110, 0, 0) == pytest.approx(0.021)
    assert table.seconds(4, 440, 0, 0) == pytest.approx(0.064)
    assert table.seconds(2, 0, 0, 0) == pytest.approx(0.01 + 0.01 / 3)
    assert table.seconds(0, 0, 40, 800) == pytest.approx(0.035)
    assert table.seconds(1, 0, 16, 0) == pytest.approx(0.02), "the fixed part counts once"


def test_the_computed_table_meets_the_limits_that_it_is_made_of() -> None:
    ideal = Computed(bandwidth=4.3e12, fused_rate=790e12, dense_rate=790e12, fixed=0.0)
    # 64 sequences of 2,048 tokens: 25.8 GB of keys and values at 4.3 TB/s, 1.8 TFLOP of linears and head
    assert ideal.seconds(64, 64 * 2048, 0, 0) == pytest.approx(25.8e9 / 4.3e12 + 1.8e12 / 790e12, rel=0.05)
    # a prompt of 2,048 tokens: 56 TFLOP
    assert ideal.seconds(0, 0, 2048, 2048 * 1024) == pytest.approx(56.2e12 / 790e12, rel=0.02)
    assert Computed().seconds(8, 800, 0, 0) > ideal.seconds(8, 800, 0, 0)


# -- the bench ---

TINY = Setting(
    Plain(),
    40 * PAGE,
    {"chat": Mix(20, 8, 40), "long": Mix(60, 4, 40), "groups": Mix(20, 8, 40, samples=3)},
    (("chat", 0.3, 10), ("long", 0.8, 5), ("groups", 1.2, 5)),
)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "settings", lambda machine: {"computed": TINY})
    monkeypatch.setattr(load, "LOADS", (0.3, 1.2))


def test_a_run_writes_its_record_and_a_log_that_replays(
    tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    arguments = [
        "--requests",
        "30",
        "--seeds",
        "2",
        "--scale",
        "1",
        "--log",
        str(log),
        "--results",
        str(tmp_path),
    ]
    assert load.main(arguments) == 0
    (file,) = tmp_path.glob("*/load-computed.json")
    record: dict[str, Any] = json.loads(file.read_text())
    assert [row["load"] for row in record["steady"]] == [0.3, 1.2]
    for rows in [*(row["policies"] for row in record["steady"]), record["trace"]["policies"]]:
        assert rows["controller"]["finished"] == rows["fixed 64"]["finished"] > 0
    assert len(record["trace"]["policies"]) == 9 + 1 + 4
    assert record["tight"]["seconds"].keys() == record["steady"][0]["policies"].keys()
    assert all(len(several) == 2 for several in record["trace"]["in_time"].values())
    assert load.main(["--replay", str(log)]) == 0
    lines = log.read_text().splitlines()
    changed = json.loads(lines[4])
    changed["decision"]["room"] += 1
    log.write_text("\n".join([*lines[:4], json.dumps(changed), *lines[5:]]) + "\n")
    capsys.readouterr()
    assert load.main(["--replay", str(log)]) == 1
    assert "line 5" in capsys.readouterr().out


def test_the_best_fixed_size_has_the_throughput_and_among_equals_the_lowest_p99() -> None:
    rows = {
        "fixed 1": {"throughput": 90.0, "p99": 1.0},
        "fixed 2": {"throughput": 99.5, "p99": 2.0},
        "fixed 4": {"throughput": 100.0, "p99": 3.0},
        "fixed 8": {"throughput": 100.0, "p99": None},
        "controller": {"throughput": 200.0, "p99": 0.1},
    }
    assert load.best_fixed(rows) == "fixed 2"


def test_quantiles_count_what_did_not_finish() -> None:
    latency = [float(i) for i in range(1, 100)] + [None]
    assert load.quantile(latency, 0.5) == 50.0 and load.quantile(latency, 0.99) == 99.0
    assert load.quantile([1.0, None], 0.99) is None
