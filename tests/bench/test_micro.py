"""The suite of small parts: what is slower fails, what is not passes, and baselines are kept by processor."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.micro.baseline import read_baseline, save_baseline, slower

PART = """
REFERENCE = "python"

def work():
    total = 0
    for i in range(20_000):
        total += i * i
    return total

def test_work(part):
    part(work)

def test_grown(part):
    part(lambda: [work() for _ in range({times})])
"""


def test_a_ratio_is_held_to_its_baseline(tmp_path: Path) -> None:
    assert not slower(1.5, 1.0) and slower(1.7, 1.0) and not slower(99.0, None)
    assert read_baseline("Some CPU, 2 cores", tmp_path) == {}
    file = save_baseline("Some CPU, 2 cores", {"b": 2.00001, "a": 1.0}, tmp_path)
    assert file.name == "some-cpu-2-cores.json"
    assert read_baseline("Some CPU, 2 cores", tmp_path) == {"a": 1.0, "b": 2.0}


@pytest.mark.slow
def test_a_part_that_takes_several_times_as_long_fails(tmp_path: Path, repo_root: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    file = tmp_path / "test_part.py"
    results = []
    for times, save in ((1, True), (4, False)):  # twice would do, on a quiet machine
        file.write_text(PART.format(times=times))
        words = [
            "-q",
            "-p",
            "bench.micro.conftest",
            "--baselines",
            tmp_path / "saved",
            "--benchmark-max-time=0.2",
        ]
        words += ["--rootdir", tmp_path, *(["--save-baseline"] if save else []), file]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *map(str, words)],
            cwd=repo_root,
            env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")},  # of xdist's worker
            capture_output=True,
            text=True,
            check=False,
            timeout=200,
        )
        outcome = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("FAILED ")]
        results.append((done.returncode, "of the reference" in done.stdout, outcome))
    assert results[0] == (0, False, [])
    assert results[1][:2] == (1, True) and [name.split("::")[1] for name in results[1][2]] == ["test_grown"]
