"""A profile of what runs inside: its files, and what is told of it."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import torch

from proactor.engine import ranged
from proactor.profiling import Profile
from tests.proactor.commands.calls import call, refusal
from tests.tiny import save_tiny


def work() -> None:
    with ranged("train: model"):
        a = torch.ones(8, 8)
        a @ a


def test_ranges_operations_and_memory_of_every_thread(tmp_path: Path) -> None:
    with Profile(tmp_path / "out") as found, ranged("run: step"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    record = json.loads((tmp_path / "out" / "ranges.json").read_text())
    assert record == found.record() and record["ranges"].keys() == {"run: step", "train: model"}
    assert record["wall"] >= record["ranges"]["run: step"]["seconds"] > 0
    assert record["ranges"]["train: model"]["resident_mb"] > 10
    assert "aten::mm" in {row["name"] for row in record["operations"]}, "of a thread that is not the caller's"
    events = json.loads((tmp_path / "out" / "trace.json").read_text())["traceEvents"]
    assert {"run: step", "train: model"} <= {event["name"] for event in events}
    counters = json.loads((tmp_path / "out" / "memory.json").read_text())["traceEvents"]
    assert counters and all(event["args"]["resident MB"] > 10 for event in counters)


def test_a_trace_ends_and_ranges_go_on(tmp_path: Path) -> None:
    with Profile(tmp_path, seconds=1e-9) as found:
        work()
        assert (tmp_path / "trace.json").exists()
        work()
    assert found.times.by_name["train: model"].count == 2


def test_an_error_leaves_a_profile(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="x"), Profile(tmp_path, seconds=0):
        work()
        raise ValueError("x")
    assert (tmp_path / "ranges.json").exists() and not (tmp_path / "trace.json").exists()


def test_any_command_is_profiled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("--profile", tmp_path / "out", "plan", "qwen2.5-0.5b", "--gpu", "24")
    assert "ranges.json" in capsys.readouterr().err
    assert json.loads((tmp_path / "out" / "ranges.json").read_text())["ranges"] == {}


def test_the_numbers_of_a_profile_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_tiny(tmp_path / "model")
    words = ["--context", "8", "--tokens", "4", "--out", tmp_path / "out.json"]
    call("profile", "step", tmp_path / "model", "--prompts", "1", "--samples", "2", *words)
    call("profile", "kernels", tmp_path / "model", "--only", "swiglu", "--out", tmp_path / "kernels.json")
    said = capsys.readouterr().out
    assert "train: backward" in said and "GFLOP/s" in said
    [step] = json.loads((tmp_path / "out.json").read_text())["steps"]
    assert "train: model" in {phase["name"] for phase in step["phases"]}
    assert {row["name"] for row in json.loads((tmp_path / "kernels.json").read_text())["operations"]} == {
        "swiglu"
    }


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert str(tmp_path / "file") in refusal(capsys, "--profile", tmp_path / "file", "plan", "qwen2.5-0.5b")
    assert "KEY=VALUE" in refusal(capsys, "profile", "decode", tmp_path, "bfloat16")
    assert "config.json" in refusal(capsys, "profile", "step", tmp_path)
    assert "known name" in refusal(capsys, "profile", "kernels", "qwen9")
