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


def launch(model: Path, scene: str, root: Path) -> list[tuple[int, str, str]]:
    """(exit code, stdout, stderr) of two launchers with a rank each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, "--rdzv-id=test"]
    command += ["--local-addr=127.0.0.1", __file__, str(model), scene]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    launchers = [
        subprocess.Popen(
            command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    outputs = [launcher.communicate(timeout=300) for launcher in launchers]
    return [(launcher.returncode, *out) for launcher, out in zip(launchers, outputs, strict=True)]


@pytest.mark.slow
def test_two_launchers_end_in_the_adapter_of_one_process(folder: Path, repo_root: Path) -> None:
    alone = shared.two_steps_alone(str(folder))
    for code, output, errors in launch(folder, "steps", repo_root):
        assert code == 0, errors
        *found, _ = json.loads(output)
        for step, expected in zip(found, alone, strict=True):
            assert all(step["shares"]), "each launcher's rank had some"
            assert step["groups"] == expected["groups"] and step["adapter"] == expected["adapter"]


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_node_is_named_by_the_other(folder: Path, repo_root: Path, lost: int) -> None:
    """A launcher ends with its rank; here the store lies with a launcher, not with rank 0."""
    ends = launch(folder, f"dies {lost}", repo_root)
    assert sorted(output for _, output, _ in ends) == ["", f"sampling: rank {lost} ended\n"], ends


def work(model: str, scene: str) -> None:
    rank = int(os.environ["RANK"])
    act: Any = shared.steps(model, False)
    if scene != "steps":
        act = shared.dies(model, int(scene[-1]), "unit.ended:1")
    act(rank)


if __name__ == "__main__":
    work(*sys.argv[1:])
