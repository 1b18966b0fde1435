"""Rows of the GPU benchmark, on a CPU: their order, what is measured, what is refused."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch

from bench.gpu import peers, rows, timing
from bench.gpu.form import Form, Peer
from bench.gpu.peers import PEERS
from bench.gpu.rows import OpRow, cases, difference, run_row, tasks
from bench.gpu.task import BOTH, FORWARD, Job
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.op import QWEN25, Op
from proactor.kernels.registry import OPS
from proactor.kernels.swiglu import SWIGLU
from tests.bench.gpu.fake import FakeWatch, off, op_row, raises, setting


def measured(row: OpRow, watch: FakeWatch | None = None, **changes: Any) -> dict[str, Any]:
    (record,) = run_row(row, setting(**{"dry": False, **changes}), watch or FakeWatch())
    return record


def test_forward_before_backward_and_large_before_small() -> None:
    job = Job("rows", ops=("swiglu", "rms_norm"))
    names = [task.name for task in tasks(job, setting(dry=False))]
    sizes = [case.name for case in SWIGLU.timed(QWEN25[0])][::-1]  # type: ignore[misc]
    assert names[: 2 * len(sizes)] == [
        f"swiglu {size} (Qwen2.5-14B, {passes})" for passes in (FORWARD, BOTH) for size in sizes
    ]
    assert names[-1].startswith("rms_norm")


def test_quick_takes_one_row_an_operation() -> None:
    job = Job("rows", ops=("swiglu", "rms_norm"), passes=(FORWARD,), quick=True)
    first = [cases(op, QWEN25[0], False)[0].name for op in (SWIGLU, RMS_NORM)]
    assert [task.name for task in tasks(job, setting(dry=False))] == [
        f"swiglu {first[0]} (Qwen2.5-14B, forward)",
        f"rms_norm {first[1]} (Qwen2.5-14B, forward)",
    ]
    assert cases(dataclasses.replace(RMS_NORM, timed=None), QWEN25[0], False) == []


def test_peers_can_be_left_out() -> None:
    assert measured(op_row(RMS_NORM), peers=False)["peers"] == []


def test_peers_are_of_operations() -> None:
    """A renamed operation would silently lose its peers."""
    assert set(PEERS) <= {op.name for op in OPS}


@pytest.mark.parametrize("passes", [FORWARD, BOTH])
def test_row_holds_times_share_and_peers(passes: str) -> None:
    row = measured(op_row(RMS_NORM, passes))
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
    monkeypatch.setattr(rows, "peers_of", lambda op: peers.peers_of(op)[-1:])
    monkeypatch.setattr(timing, "LEAST_SAMPLES", 1)
    op = dataclasses.replace(op, tolerance={torch.float32: op.tolerance[torch.float32]})
    (case,) = cases(dataclasses.replace(op, timed=lambda shape: []), QWEN25[0], dry=True)
    for passes in (FORWARD, BOTH) if op.gradients else (FORWARD,):
        row = measured(OpRow(op, "tiny", case, passes), cache=1, free=2**31)
        assert "failed" not in row, row
        assert row["copies"] == 2
        assert "speedup" in row["peers"][0], row


def test_absent_and_different_peers_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = Peer("wrong", lambda a: Form(lambda: a["x"] * 2))
    broken = Peer("broken", lambda a: Form(lambda: a["x"].no_such_thing))
    missing = Peer("missing", lambda a: Form(lambda: a["x"]), "no_such_package")
    none = Peer("none", lambda a: None)
    monkeypatch.setitem(PEERS, "rms_norm", (wrong, broken, missing, none))
    row = measured(op_row(RMS_NORM))
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
    row = measured(op_row(dataclasses.replace(RMS_NORM, function=function)), watch)
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
