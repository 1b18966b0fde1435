"""Idle OpenMP workers end, and come back when they are needed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from proactor.kernels.openmp import TORCHS, _pause, release_workers
from tests.kernels.threads import compute, ended, started_by

pytestmark = pytest.mark.skipif(_pause() is None, reason="not GNU's OpenMP")


def in_thread(function: Callable[[], None]) -> None:
    """Run ``function`` in a thread of its own, with two OpenMP threads."""
    gc.collect()  # threads of engines that are gone
    failed: list[BaseException] = []

    def run() -> None:
        torch.set_num_threads(2)
        try:
            function()
        except BaseException as error:  # noqa: BLE001 - raised below
            failed.append(error)
        finally:
            release_workers()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def test_workers_end_and_start_again() -> None:
    def check() -> None:
        first = started_by(compute)
        assert len(first) == 1
        computed = compute()
        release_workers()
        assert ended(first, within=10)
        release_workers()  # without any
        assert len(started_by(compute)) == 1
        assert torch.equal(compute(), computed)

    in_thread(check)


def test_workers_of_other_threads_stay() -> None:
    def check() -> None:
        workers = started_by(compute)
        assert len(workers) == 1
        in_thread(release_workers)
        assert not ended(workers, within=0.2)

    in_thread(check)


FORKED = """
import os, torch
from proactor.kernels.openmp import release_workers
torch.set_num_threads(2)
torch.ones(1 << 20).exp_()
child = os.fork()
if not child:
    release_workers()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_has_none_to_end(repo_root: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(repo_root)}
    command = [sys.executable, "-c", FORKED]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == ["7"], done.stderr


@pytest.mark.parametrize("others", [["/a/libgomp.so"], []])
def test_the_library_that_torch_brings_is_asked(monkeypatch: pytest.MonkeyPatch, others: list[str]) -> None:
    """Other packages have one of their own."""
    for own in (False, True):
        paths = [*others, f"{TORCHS}/libgomp.so.1"] if own else ["/a/libgomp.so", "/b/libgomp.so"]
        maps = "".join(f"0-1 r-xp 0 0:0 1 {path}\n" for path in paths)
        asked: list[str] = []
        _pause.cache_clear()
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_text", lambda self, maps=maps: maps)
            patched.setattr("ctypes.CDLL", lambda path, asked=asked: asked.append(path))
            assert _pause() is None, "no such function in a stand-in"
        _pause.cache_clear()
        assert asked == [path for path in paths if own and path.startswith(str(TORCHS))]
