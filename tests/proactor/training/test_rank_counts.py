"""A run of dialogues that was killed on two ranks and goes on on one, or on four: the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.tiny_run import TinyRun, check, differences
from proactor.training.runs import read_rows


def drive(folder: Path) -> dict[str, list[str]]:
    """Of each resumed run the files that differ from an undisturbed one's."""
    tiny = TinyRun(folder / "tiny")
    reference = tiny.finished(folder / "alone")
    killed = folder / "two"
    ends = [rank.end() for rank in tiny.train_ranks(killed, 2, lost=0, fault="metrics:6")]  # GRPO's second
    assert [end.code for end in ends] == [-9, 2], ends
    assert len(read_rows(killed / "tiny" / "metrics.jsonl")) < len(read_rows(reference / "metrics.jsonl"))
    found = {}
    for count in (1, 4):
        run = tiny.copy(killed / "tiny", folder / f"then {count}")
        for rank in tiny.train_ranks(run.parent, count):
            check(rank.end())
        rows = [row for row in read_rows(run / "metrics.jsonl") if row["kind"] == "grpo"]
        found[str(count)] = differences(run, reference, rounded=True)
        found[f"waits {count}"] = ["seconds_reduction" for row in rows if "seconds_reduction" in row]
    return found


@pytest.mark.slow
def test_a_run_continues_on_another_number_of_ranks(tmp_path: Path, repo_root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "TORCH_CPP_LOG_LEVEL": "FATAL"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["1"] == found["4"] == []
    assert [len(found[f"waits {count}"]) for count in (1, 4)] == [1, 3], "steps on several ranks tell it"


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]))))
