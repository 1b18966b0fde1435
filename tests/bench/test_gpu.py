"""The GPU benchmark's logic on a CPU: clocks, devices and times are fakes; what is computed is real."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bench import gpu, gpu_check, gpu_jobs, gpu_peers, gpu_timing
from bench.gpu_jobs import BOTH, FORWARD, CardLost, Job, Machine, difference, plan, run_job
from bench.gpu_peers import PEERS, Form, Peer
from bench.gpu_timing import (
    Budget,
    Ceilings,
    DeviceStopwatch,
    Run,
    copies,
    measure,
    nbytes,
    rotated,
    summary,
    tensors,
)
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.op import QWEN25, Arguments, Case, Op
from proactor.kernels.registry import OPS
from proactor.kernels.swiglu import SWIGLU

CPU = torch.device("cpu")
CEILING = Ceilings(copy=1e9, product=1e12)


class FakeWatch:
    """A call takes 1 ms on the device and 0.1 ms on the host; every form's calls are run and noted."""

    def __init__(self) -> None:
        self.clock = 0.0
        self.samples: list[tuple[int, float]] = []

    def sample(self, calls: Sequence[Run], lead: float) -> tuple[float, float]:
        for call in calls:
            call()
        self.samples.append((len(calls), lead))
        self.clock += 1e-3 * len(calls)
        return 1e-3 * len(calls), 1e-4 * len(calls)

    def now(self) -> float:
        return self.clock


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def machine() -> Machine:
    return Machine(CPU, cache=4096, free=2**20)


def job(op: Op, passes: str = FORWARD) -> Job:
    return Job(op, QWEN25[0], op.cases[2], passes)


def report(folder: Path) -> gpu.Report:
    facts = {
        "card": {"name": "NVIDIA Fake 1"},
        "date": "2026-01-02",
        "commit": "abc",
        "seed": 5,
        "correctness": [],
        "ceilings": {},
        "rows": [],
        "skipped": [],
    }
    return gpu.Report(folder, facts)


# --- budget and order ---


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


def test_largest_model_first_and_forward_before_backward() -> None:
    jobs = plan([RMS_NORM, SWIGLU])
    models = [j.model.name for j in jobs]
    assert models == sorted(models, key=[m.name for m in QWEN25].index)
    first = [(j.op.name, j.passes) for j in jobs if j.model is QWEN25[0]]
    assert first[:4] == [("swiglu", FORWARD), ("rms_norm", FORWARD)] * 2
    assert [p for _, p in first[4:]] == [BOTH] * (len(first) - 4)
    assert jobs[0].case.name == list(SWIGLU.timed(QWEN25[0]))[-1].name  # type: ignore[misc]


def test_quick_takes_one_row_an_operation() -> None:
    assert [(j.op.name, j.model.name, j.passes) for j in plan([RMS_NORM, SWIGLU], quick=True)] == [
        ("swiglu", "Qwen2.5-14B", FORWARD),
        ("rms_norm", "Qwen2.5-14B", FORWARD),
    ]
    assert plan([dataclasses.replace(RMS_NORM, timed=None)]) == []


def test_rows_stop_with_the_budget_and_the_rest_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, written = FakeClock(), report(tmp_path)

    def slow(job: Job, *rest: Any) -> dict[str, Any]:
        clock.now += 6.0
        return {"op": job.op.name}

    monkeypatch.setattr(gpu, "run_job", slow)
    jobs = plan([RMS_NORM])
    gpu.time_rows(jobs, FakeWatch(), CEILING, machine(), Budget(20.0, clock), 1.0, written)
    assert len(written.record["rows"]) == 3
    assert written.record["skipped"] == [j.name for j in jobs[3:]]
    assert json.loads(written.path.read_text())["rows"] == written.record["rows"]


# --- timing ---


def test_ceilings_arithmetic() -> None:
    assert gpu_timing.copy_rate(1000, 0.5) == 4000.0
    assert gpu_timing.product_rate(10, 2.0) == 1000.0
    assert Ceilings(100.0, 1000.0).floor(50, 100) == (0.5, "memory")
    assert Ceilings(100.0, 1000.0).floor(50, 2000) == (2.0, "arithmetic")


def test_ceilings_are_measured_by_the_same_stopwatch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "mm", lambda a, b, out: out)
    real = torch.randn
    monkeypatch.setattr(torch, "randn", lambda *shape, **kw: real(*(min(s, 2048) for s in shape), **kw))
    found, record = gpu_timing.ceilings(FakeWatch(), CPU, 2**40, quick=True)
    assert found.copy == pytest.approx(2 * 2048 * 2 / 1e-3)
    assert found.product == pytest.approx(2 * 8192**3 / 1e-3)
    assert record["copy"]["median"] == pytest.approx(1e-3)
    assert set(record) == {"copy", "product 8192"}


def test_forms_are_timed_by_turns_over_rotated_copies() -> None:
    order: list[str] = []
    forms = {name: [lambda name=name, i=i: order.append(f"{name}{i}") for i in range(3)] for name in "ab"}
    watch = FakeWatch()
    found = measure(watch, forms, seconds=0.0)
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
    assert found["a"].samples == gpu_timing.LEAST_SAMPLES
    assert found["a"].median == pytest.approx(1e-3)
    assert found["a"].host == pytest.approx(1e-4)
    assert watch.samples[-1] == (2, pytest.approx(2e-4))  # the device waits as long as the host needs


def test_summary_takes_the_median_and_percentiles() -> None:
    found = summary([(float(t), 1.0) for t in (9, 1, 3, 2, 4, 100, 5, 6, 7, 8, 0)], 4)
    assert (found.median, found.low, found.high, found.samples, found.calls) == (5.0, 2.0, 8.0, 11, 4)
    assert found.spread == pytest.approx(1.2)


def test_copies_outrun_the_cache_within_memory() -> None:
    assert copies(read=10, held=40, cache=100, free=10**6) == 31
    assert copies(read=1000, held=4000, cache=100, free=10**6) == 2
    assert copies(read=10, held=40, cache=100, free=100) == 2
    assert copies(read=10, held=40, cache=100, free=1) == 1
    assert copies(read=1, held=1, cache=10**9, free=10**9) == gpu_timing.MOST_COPIES


def test_copies_lie_apart_and_nested_tensors_count() -> None:
    arguments = {
        "x": torch.ones(4),
        "nested": (torch.ones(2), [Form(lambda: None, [torch.ones(3)])]),
        "eps": 1.0,
    }
    assert nbytes(arguments) == 36
    sets = rotated(arguments, 3)
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


# --- rows ---


@pytest.mark.parametrize("passes", [FORWARD, BOTH])
def test_row_holds_times_share_and_peers(passes: str) -> None:
    row = run_job(job(RMS_NORM, passes), FakeWatch(), CEILING, machine(), 0.0, seed=3)
    assert "failed" not in row, row
    assert (row["op"], row["dtype"], row["pass"]) == ("rms_norm", "bfloat16", passes)
    assert row["copies"] > 1
    assert row["size_error"] <= row["size_limit"]
    assert row["median"] == pytest.approx(1e-3)
    peers = {p["name"]: p for p in row["peers"]}
    assert peers["torch rms_norm"]["speedup"] == pytest.approx(1.0)
    assert peers["torch reference"]["median"] == pytest.approx(1e-3)
    if passes == FORWARD:
        assert row["bytes"] == 2 * 5 * 64 * 2 + 64 * 2
        assert (row["bound"], row["share"]) == ("memory", pytest.approx(row["bytes"] / 1e9 / 1e-3))
    else:
        assert "share" not in row
    json.dumps(row)


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_every_operation_can_be_timed(op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its arguments can be copied and rotated, it can be checked at size, and its reference is a peer: torch
    forms, float32, the smallest case.
    """
    monkeypatch.setattr(gpu_jobs, "peers_of", lambda op: gpu_peers.peers_of(op)[-1:])
    monkeypatch.setattr(gpu_timing, "LEAST_SAMPLES", 1)
    op = dataclasses.replace(op, tolerance={torch.float32: op.tolerance[torch.float32]})
    sizes = [nbytes(c.make(torch.Generator().manual_seed(1), CPU, torch.float32)) for c in op.cases]
    case = min((s, i) for i, s in enumerate(sizes) if s > 64)[1]
    for passes in (FORWARD, BOTH) if op.gradients else (FORWARD,):
        row = run_job(
            Job(op, QWEN25[0], op.cases[case], passes),
            FakeWatch(),
            CEILING,
            Machine(CPU, 1, 2**30),
            0.0,
            seed=3,
        )
        assert "failed" not in row, row
        assert row["copies"] == 2
        assert "speedup" in row["peers"][0], row


def test_absent_and_different_peers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Peer("wrong", lambda a: Form(lambda: a["x"] * 2))
    broken = Peer("broken", lambda a: Form(lambda: a["x"].no_such_thing))
    missing = Peer("missing", lambda a: Form(lambda: a["x"]), "no_such_package")
    none = Peer("none", lambda a: None)
    monkeypatch.setitem(PEERS, "rms_norm", (wrong, broken, missing, none))
    row = run_job(job(RMS_NORM), FakeWatch(), CEILING, machine(), 0.0, seed=3)
    notes = {p["name"]: p.get("skipped", "") for p in row["peers"]}
    assert notes["wrong"].startswith("differs by")
    assert notes["broken"].startswith("AttributeError")
    assert notes["missing"] == "no_such_package is not installed"
    assert notes["none"] == "no such form for this case"
    assert notes["torch reference"] == ""


def _off(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return RMS_NORM.reference(x, weight, eps) * 1.1  # type: ignore[operator]


def _raises(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    raise ValueError("x: a reason\nand more")


@pytest.mark.parametrize(
    ("function", "said"), [(_off, "wrong at this size: error"), (_raises, "ValueError: x: a reason")]
)
def test_broken_operation_is_reported_and_not_timed(function: Any, said: str) -> None:
    watch = FakeWatch()
    row = run_job(
        job(dataclasses.replace(RMS_NORM, function=function)), watch, CEILING, machine(), 0.0, seed=3
    )
    assert said in row["failed"]
    assert "median" not in row
    assert watch.samples == []


@pytest.mark.parametrize(
    ("function", "said"), [(_off, "output 0 is off by"), (_raises, "ValueError: x: a reason")]
)
def test_correctness_names_what_is_broken(function: Any, said: str) -> None:
    fine = gpu_check.check_op(dataclasses.replace(RMS_NORM, cases=RMS_NORM.cases[:2]), CPU, seed=11)
    assert fine["failures"] == []
    assert fine["checks"] == 2 * len(RMS_NORM.tolerance)
    assert 0 < fine["worst"]["bfloat16"] <= 1
    broken = dataclasses.replace(RMS_NORM, function=function, cases=RMS_NORM.cases[:2], gradients=())
    found = gpu_check.check_op(broken, CPU, seed=11)
    assert len(found["failures"]) == found["checks"] == 2 * len(RMS_NORM.tolerance)
    assert said in found["failures"][0]
    assert "1x8 float32 seed 11" in found["failures"][0]


def test_a_lost_card_ends_the_operation(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone() -> None:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", gone)
    found = gpu_check.check_op(dataclasses.replace(RMS_NORM, function=_raises), CPU, seed=1)
    assert found["failures"] == ["the card is lost, 15 checks not done: ValueError: x: a reason\nand more"]
    with pytest.raises(CardLost):
        run_job(
            job(dataclasses.replace(RMS_NORM, function=_raises)), FakeWatch(), CEILING, machine(), 0.0, seed=3
        )


def test_difference_sees_shapes_nan_and_missing_outputs() -> None:
    one, two = torch.ones(3), torch.full((3,), 2.0)
    assert difference([one], [two]) == 0.5
    assert difference([one, one], [one]) == 0.0
    assert difference([one], [one, one]) == difference([], [one]) == float("inf")
    assert difference([one.view(1, 3)], [one]) == float("inf")
    assert difference([one * float("nan")], [one]) == float("inf")
    ids, other = torch.arange(40), torch.arange(40)
    other[3] = 0
    values, off = torch.ones(40), torch.ones(40)
    off[3] = 7.0
    assert difference([other, off], [ids, values]) == 0.0  # one drawn token of 40, and what belongs to it
    off[4] = 1.5
    assert difference([other, off], [ids, values]) == 0.5
    other[4:6] = 0
    assert difference([other, off], [ids, values]) == float("inf")


@pytest.mark.skipif(not HAS_TRITON or not interpreted(), reason="needs Triton's interpreter")
def test_children_answer_die_and_run_out_of_time() -> None:
    told: list[str] = []
    found = gpu_check.check_all(
        ["rms_norm", "no such operation"], "cpu", 7, 120.0, 2, lambda c: told.append(c["op"])
    )
    assert (found[0]["checks"], found[0]["failures"], found[0]["seed"]) == (15, [], 7)
    assert found[1]["failures"][0].startswith("process ended with 1: ValueError")
    assert sorted(told) == ["no such operation", "rms_norm"]
    (late,) = gpu_check.check_all(["rms_norm"], "cpu", 7, 0.0, 1, lambda c: None)
    assert late["failures"] == ["not checked: out of time"]


# --- peers on a CPU ---


@pytest.mark.parametrize(
    ("name", "peer"),
    [(n, p) for n, found in PEERS.items() for p in found],
    ids=lambda v: getattr(v, "name", v),
)
def test_peers_compute_the_same(name: str, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every case of the record that they know; those with kernels of their own for cards only are left
    out.
    """
    if peer.name in ("liger", "varlen_attn") or peer.absent:
        pytest.skip(peer.absent or f"{peer.name} runs on cards only")
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(gpu_peers, "_compiled", {"flex": flex_attention})  # compiling for a CPU takes long
    (op,) = (op for op in OPS if op.name == name)
    built = 0
    for case in op.cases:
        draw = partial(case.make, device=CPU, dtype=torch.float32)
        arguments = draw(torch.Generator().manual_seed(1))
        form = peer.build(arguments) if not is_empty(arguments) else None
        if form is not None:
            with torch.no_grad():
                theirs = list(tensors(form.view(form.call())))
            ours = list(tensors(op.function(**draw(torch.Generator().manual_seed(1)))))
            assert difference(theirs, ours) < (5e-3 if peer.package == "bitsandbytes" else 1e-5), case.name
            built += 1
    assert built


def is_empty(arguments: Arguments) -> bool:
    return any(isinstance(v, Tensor) and v.numel() == 0 for v in arguments.values())


# --- record, table, command ---


def test_record_is_written_under_the_card_and_says_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = report(tmp_path)
    good = run_job(job(RMS_NORM), FakeWatch(), CEILING, machine(), 0.0, seed=3)
    bad = run_job(
        job(dataclasses.replace(RMS_NORM, function=_raises)), FakeWatch(), CEILING, machine(), 0.0, seed=3
    )
    written.save(
        rows=[good, bad],
        correctness=[{"op": "rms_norm", "checks": 15, "failures": ["1x8: off"]}],
        ceilings={"copy": {"bytes_per_second": 4e12}, "product 8192": {"flop_per_second": 7e14}},
    )
    assert written.path == tmp_path / "nvidia-fake-1" / "2026-01-02-abc.json"
    assert json.loads(written.path.read_text()) == written.record
    assert [p.name for p in written.path.parent.iterdir()] == [written.path.name]
    assert gpu.finish(written) == 1
    out = capsys.readouterr().out
    assert "FAILED rms_norm: 1x8: off" in out
    assert "FAILED rms_norm 5x64 (Qwen2.5-14B, forward): ValueError: x: a reason" in out
    assert "copy 4.00 TB/s, bf16 700 TFLOP/s" in out
    assert "1000.0" in out  # µs
    written.save(rows=[good], correctness=[])
    assert gpu.finish(written) == 0


def test_without_a_card_one_line_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert gpu.main(["--quick"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench.gpu needs")


def test_whole_run_on_a_made_up_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = {"name": "Fake", "before": None, "after": None}
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(gpu, "card", lambda device: (facts, machine()))
    monkeypatch.setattr(gpu, "DeviceStopwatch", FakeWatch)
    measured = {"copy": {"bytes_per_second": 1e9}, "product 8192": {"flop_per_second": 1e12}}
    monkeypatch.setattr(gpu, "ceilings", lambda *_: (CEILING, measured))
    broken = {"op": "swiglu", "seed": 1, "checks": 3, "worst": {}, "failures": ["1x2: off"]}
    fine = {"op": "rms_norm", "seed": 1, "checks": 15, "worst": {}, "failures": []}
    monkeypatch.setattr(
        gpu, "check_all", lambda names, *_: [{"rms_norm": fine, "swiglu": broken}[n] for n in names]
    )
    small = Case("5x64", RMS_NORM.cases[2].make)
    ops = [dataclasses.replace(RMS_NORM, timed=lambda shape: [small]), SWIGLU]
    options = argparse.Namespace(quick=False, seed=None, results=tmp_path)
    assert gpu.run(ops, options, Budget(60.0, reserve=1.0)) == 1
    (path,) = tmp_path.glob("fake/*.json")
    record = json.loads(path.read_text())
    assert record["finished"]
    assert {r["op"] for r in record["rows"]} == {"rms_norm"}  # what is wrong is not timed
    assert [r["model"] for r in record["rows"]] == [m.name for m in QWEN25 for _ in range(2)]
    assert record["versions"]["torch"] == torch.__version__
    assert "FAILED swiglu: 1x2: off" in capsys.readouterr().out


def test_first_names_are_operations() -> None:
    """A renamed operation would silently lose its place."""
    assert set(PEERS) <= {op.name for op in OPS}
    assert set(gpu_jobs.FIRST) <= {op.name for op in OPS}
