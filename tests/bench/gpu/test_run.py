"""The GPU benchmark as a whole, on a made-up card: budget, record, tables, exit codes, a dry run."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import run as running
from bench.gpu.__main__ import main, read_options
from bench.gpu.jobs import NAMES, plan, tasks_of
from bench.gpu.rows import run_row
from bench.gpu.timing import Budget
from bench.protocol import ROOT
from proactor.kernels.norm import RMS_NORM
from proactor.kernels.registry import OPS
from tests.bench.gpu.fake import FakeClock, FakeWatch, InlineWorkers, op_row, raises, report, setting


def test_jobs_stop_with_the_budget_and_the_rest_is_named(tmp_path: Path) -> None:
    clock, written = FakeClock(), report(tmp_path)

    class Slow(InlineWorkers):
        def run(self, job: Any, setting: Any, tasks: Any, each: Any) -> list[str]:
            clock.now += 6.0
            for task in tasks[:-1]:
                each([{"name": task.name}])
            return [tasks[-1].name]

    jobs = plan(OPS, ["Qwen2.5-14B"], ["rows"], peers=True, quick=False)
    names = [[task.name for task in tasks_of(job, setting(dry=False))] for job in jobs]
    running.time_jobs(jobs, setting(dry=False), Slow(clock), Budget(20.0, clock), written)  # type: ignore[arg-type]
    assert [row["name"] for row in written.record["rows"]] == [n for some in names[:3] for n in some[:-1]]
    assert written.record["skipped"] == [
        *(some[-1] for some in names[:3]),
        *(name for some in names[3:] for name in some),
    ]
    assert json.loads(written.path.read_text())["rows"] == written.record["rows"]


def test_record_is_written_under_the_card_and_says_what_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    written = report(tmp_path)
    (good,) = run_row(op_row(RMS_NORM), setting(), FakeWatch())
    (bad,) = run_row(op_row(dataclasses.replace(RMS_NORM, function=raises)), setting(), FakeWatch())
    figure = {"value": 4.0, "unit": "ms", "target": 2.0, "target_from": "bytes"}
    profile = [{"name": "a_kernel", "count": 3, "seconds": 0.002, "share": 0.5}]
    written.save(
        rows=[
            {"name": "good"} | good,
            {"name": "bad"} | bad,
            {"name": "a step"} | figure,
            {"name": "where it goes", "profile": profile},
            {"name": "B = 256", "skipped": "no room"},
        ],
        correctness=[
            {"op": "rms_norm", "checks": 15, "failures": ["1x8: off"], "unchecked": ""},
            {"op": "swiglu", "checks": 3, "of": 9, "failures": [], "unchecked": "out of time"},
        ],
        ceilings={"copy": {"bytes_per_second": 4e12}, "product 8192": {"flop_per_second": 7e14}},
        skipped=["the last row"],
    )
    assert written.path == tmp_path / "nvidia-fake-1" / "2026-01-02-abc.json"
    assert json.loads(written.path.read_text()) == written.record
    assert [p.name for p in written.path.parent.iterdir()] == [written.path.name]
    assert running.finish(written) == 1
    out = capsys.readouterr().out
    assert "FAILED rms_norm: 1x8: off" in out
    assert "FAILED bad: ValueError: x: a reason" in out
    assert "UNCHECKED swiglu: 3 of 9 checks done, out of time" in out
    assert "skipped B = 256: no room" in out
    assert "not run the last row" in out
    assert "copy 4.00 TB/s, bf16 700 TFLOP/s" in out
    assert "1000.0" in out  # µs
    assert "2.00x" in out
    assert "a_kernel" in out
    written.save(rows=[{"name": "good"} | good], correctness=written.record["correctness"][1:])
    assert running.finish(written) == 0  # what is unchecked has not failed


def test_without_a_card_one_line_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a card")
    assert main(["--quick"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("bench.gpu needs")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--ops", "rms_norm,nothing"], "--ops nothing: not one of"),
        (["--jobs", "decoding"], "--jobs decoding: not one of decode"),
        (["--model", "15b"], "--model 15b: not one of 14b"),
    ],
)
def test_unknown_names_end_in_one_line(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        running.chosen(read_options(arguments))
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_named_operations_are_all_that_is_timed() -> None:
    ops, models, kinds = running.chosen(read_options(["--ops", "swiglu", "--model", "14b"]))
    assert ([op.name for op in ops], models, kinds) == (["swiglu"], ["Qwen2.5-14B"], ["rows"])
    assert running.chosen(read_options([]))[2] == list(NAMES)


def test_a_copy_without_git_is_told_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "ROOT", tmp_path)
    for told, name in (("abc123", "abc123"), ("", "no-git")):
        monkeypatch.setenv("BENCH_COMMIT", told)
        assert running.commit() == name


def test_whole_run_on_a_made_up_card(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(running, "Workers", InlineWorkers)
    empty = {"seed": 1, "checks": 3, "of": 3, "worst": {}, "unchecked": "", "seconds": 1.0}
    broken = {"op": "swiglu", "failures": ["1x2: off"], **empty}
    fine = {"op": "rms_norm", "failures": [], **empty}
    monkeypatch.setattr(running, "DRY_OPS", ("rms_norm", "swiglu"))
    monkeypatch.setattr(
        running, "check_all", lambda names, *_: [{"rms_norm": fine, "swiglu": broken}[n] for n in names]
    )
    arguments = ["--dry", "--ops", "rms_norm,swiglu", "--jobs", "rows,gap", "--results", str(tmp_path)]
    assert running.run(read_options(arguments)) == 1
    (path,) = tmp_path.glob("dry-run/*.json")
    record = json.loads(path.read_text())
    assert record["finished"]
    assert {r["op"] for r in record["rows"] if "op" in r} == {"rms_norm"}  # what is wrong is not timed
    assert [r["pass"] for r in record["rows"] if "op" in r] == ["forward", "forward+backward"]
    assert torch.__version__.startswith(record["versions"]["torch"])
    assert record["ceilings"]["product 64"]["flop_per_second"] == pytest.approx(2 * 64**3 / 1e-3)
    out = capsys.readouterr().out
    assert "FAILED swiglu: 1x2: off" in out
    assert "gap of sampler and trainer" in out


def test_a_dry_run_goes_through_real_processes(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.gpu", "--dry", "--ops", "rms_norm", "--skip-check"]
    done = subprocess.run(
        [*command, "--skip-peers", "--results", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.glob("dry-run/*.json")
    record = json.loads(path.read_text())
    assert record["finished"]
    assert [row["pass"] for row in record["rows"]] == ["forward", "forward+backward"]
    assert record["card"]["name"] == "dry run"
