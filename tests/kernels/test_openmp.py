"""Idle OpenMP workers end, and come back when they are needed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from proactor.kernels.openmp import _pause, release_workers

pytestmark = pytest.mark.skipif(_pause() is None, reason="not GNU's OpenMP")


def in_thread(function: Callable[[], None]) -> None:
    """Run ``function`` in a thread of its own, with two OpenMP threads."""
    failed: list[BaseException] = []

    def run() -> None:
        torch.set_num_threads(2)
        try:
            function()
        except AssertionError as error:
            failed.append(error)
        finally:
            release_workers()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


def threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def compute() -> torch.Tensor:
    return torch.ones(1 << 20).exp_()  # large enough for two threads


def test_workers_end_and_start_again() -> None:
    def check() -> None:
        before = threads()
        first = compute()
        assert threads() == before + 1
        release_workers()
        assert threads() == before
        release_workers()  # without any
        assert torch.equal(compute(), first) and threads() == before + 1

    in_thread(check)


def test_workers_of_other_threads_stay() -> None:
    computed, counted = threading.Event(), threading.Event()

    def other() -> None:
        compute()
        computed.set()
        counted.wait()

    def check() -> None:
        computed.wait()
        before = threads()
        release_workers()
        after = threads()
        counted.set()
        assert after == before

    runner = threading.Thread(target=in_thread, args=(other,))
    runner.start()
    in_thread(check)
    runner.join()


def test_one_library_alone_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    _pause.cache_clear()
    monkeypatch.setattr(
        Path, "read_text", lambda self: "0-1 r-xp 0 0:0 1 /a/libgomp.so\n0-1 r-xp 0 0:0 1 /b/libgomp.so\n"
    )
    try:
        assert _pause() is None
        release_workers()
    finally:
        _pause.cache_clear()
