"""Two launchers that find each other by torchrun's rendezvous, as two nodes do, on loopback."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engine import test_shared_sampling as shared


def launch(model: Path, scene: str, root: Path, scratch: Path) -> list[tuple[int, str]]:
    """(exit code, stdout) of two launchers with a rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--rdzv-id=test"]
    command += ["--local-addr=127.0.0.1", __file__, str(model), scene]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    outputs = [scratch / f"{node}.out" for node in range(2)]
    launchers = []
    for output in outputs:
        with output.open("w") as out, output.with_suffix(".err").open("w") as errors:
            launchers.append(subprocess.Popen(command, cwd=root, env=environment, stdout=out, stderr=errors))
    codes = [launcher.wait(timeout=400) for launcher in launchers]
    return [(code, output.read_text()) for code, output in zip(codes, outputs, strict=True)]


@pytest.mark.slow
def test_two_launchers_end_in_the_adapter_of_one_process(
    folder: Path, repo_root: Path, tmp_path: Path
) -> None:
    alone = shared.two_steps_alone(str(folder))
    for code, output in launch(folder, "steps", repo_root, tmp_path):
        assert code == 0
        *found, _ = json.loads(output)
        for step, expected in zip(found, alone, strict=True):
            assert all(step["shares"]), "each launcher's rank had some"
            assert step["groups"] == expected["groups"] and step["adapter"] == expected["adapter"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_node_is_named_by_the_other(folder: Path, repo_root: Path, tmp_path: Path, lost: int) -> None:
    """A launcher ends with its rank; here the store lies with a launcher, not with rank 0."""
    ends = launch(folder, f"dies {lost}", repo_root, tmp_path)
    assert sorted(output for _, output in ends) == ["", f"sampling: rank {lost} ended\n"]
    assert all(code for code, _ in ends)


def work(model: str, scene: str) -> None:
    rank = int(os.environ["RANK"])
    act: Any = shared.steps(model, False)
    if scene != "steps":
        act = shared.dies(model, int(scene[-1]), "unit.ended:1")
    act(rank)
    sys.exit(0 if scene == "steps" else 2)  # as the command does: a launcher whose rank fails does not wait


if __name__ == "__main__":
    work(*sys.argv[1:])
