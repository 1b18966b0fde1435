"""The GPU benchmark as a whole, on a made-up card: budget, record, table, exit codes."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import gpu
from bench.gpu.rows import Job, plan, run_job
from bench.gpu.timing import Budget
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.op import QWEN25, Case
from proactor.kernels.swiglu import SWIGLU
from tests.bench.fake_gpu import CEILING, FakeClock, FakeWatch, job, machine, raises, report


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


def test_record_is_written_under_the_card_and_says_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = report(tmp_path)
    good = run_job(job(RMS_NORM), FakeWatch(), CEILING, machine(), 0.0, seed=3)
    bad = run_job(
        job(dataclasses.replace(RMS_NORM, function=raises)), FakeWatch(), CEILING, machine(), 0.0, seed=3
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
