"""Rows of the GPU benchmark, on a CPU: their order, what is measured, what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from bench import gpu_jobs, gpu_peers, gpu_timing
from bench.gpu.peers import PEERS, Form, Peer
from bench.gpu.rows import BOTH, FORWARD, Job, Machine, difference, plan, run_job
from bench.gpu.timing import nbytes
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.op import QWEN25, Op
from proactor.kernels.registry import OPS
from proactor.kernels.swiglu import SWIGLU
from tests.bench.fake_gpu import CEILING, CPU, FakeWatch, job, machine, off, raises


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


def test_first_names_are_operations() -> None:
    """A renamed operation would silently lose its place."""
    assert set(PEERS) <= {op.name for op in OPS}
    assert set(gpu_jobs.FIRST) <= {op.name for op in OPS}


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


@pytest.mark.parametrize(
    ("function", "said"), [(off, "wrong at this size: error"), (raises, "ValueError: x: a reason")]
)
def test_broken_operation_is_reported_and_not_timed(function: Any, said: str) -> None:
    watch = FakeWatch()
    row = run_job(
        job(dataclasses.replace(RMS_NORM, function=function)), watch, CEILING, machine(), 0.0, seed=3
    )
    assert said in row["failed"]
    assert "median" not in row
    assert watch.samples == []


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
