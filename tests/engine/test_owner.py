"""One thread uses the model: under whose settings, and what errors, interrupted waits and ends come to."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch

from proactor.engine import Engine, EngineError, Group, Sample, Sampling
from proactor.engine.owner import Owner
from proactor.kernels.openmp import _pause
from tests.engine.engines import TRAIN, adapter, idle, load, outside, prompts
from tests.engine.sessions import PATIENCE
from tests.kernels.threads import compute, ended, started_by

CPU = torch.device("cpu")


@pytest.fixture
def owner() -> Owner:
    return Owner(CPU)


def refused() -> None:
    raise ZeroDivisionError("no luck")


def unexpected(error: BaseException) -> None:
    raise AssertionError("a task that raises nothing") from error


# -- the thread ---


def test_calls_run_in_one_thread_in_their_order(owner: Owner) -> None:
    seen: list[tuple[int, int]] = []
    calls = [owner.post(lambda i=i: seen.append((i, threading.get_ident()))) for i in range(20)]  # type: ignore[misc]
    for call in calls:
        call.wait()
    assert [i for i, _ in seen] == list(range(20))
    assert len({thread for _, thread in seen}) == 1 and seen[0][1] != threading.get_ident()


def test_an_error_reaches_its_caller_with_its_traceback(owner: Owner) -> None:
    with pytest.raises(ZeroDivisionError, match="no luck") as caught:
        owner.call(refused)
    assert "refused" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    assert owner.call(lambda: 3) == 3


def test_grad_mode_and_threads_are_the_callers(owner: Owner) -> None:
    before = torch.get_num_threads()
    try:
        for threads, grad in ((1, True), (2, False), (1, False)):
            torch.set_num_threads(threads)
            with torch.set_grad_enabled(grad):
                seen = owner.call(lambda: (torch.get_num_threads(), torch.is_grad_enabled()))
            assert seen == (threads, grad)
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(_pause() is None, reason="not GNU's OpenMP")
def test_idle_threads_keep_no_openmp_workers(owner: Owner) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        owner.call(lambda: None)
        callers = started_by(compute)
        owners = owner.call(lambda: started_by(compute))
        assert len(callers) == len(owners) == 1
        assert ended(callers, PATIENCE) and ended(owners, PATIENCE)
    finally:
        torch.set_num_threads(before)


def test_a_call_from_inside_runs_at_once(owner: Owner) -> None:
    assert owner.call(lambda: owner.call(lambda: owner.inside)) and not owner.inside


def test_a_task_goes_on_between_calls_and_ends_by_itself(owner: Owner) -> None:
    done: list[str] = []

    def task() -> bool:
        done.append("step")
        return done.count("step") < 3 or "call" not in done

    owner.call(lambda: owner.pursue(task, unexpected))
    owner.call(lambda: done.append("call"))
    deadline = time.monotonic() + PATIENCE
    while done.count("step") < 3:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    count = owner.call(lambda: len(done))
    assert owner.call(lambda: len(done)) <= count + 1, "it ended"


def test_a_task_that_raises_ends_and_the_thread_goes_on(owner: Owner) -> None:
    told, ran = SimpleQueue[BaseException](), list[str]()

    def task() -> bool:
        ran.append("step")
        raise ZeroDivisionError("no luck")

    owner.call(lambda: owner.pursue(task, told.put))
    assert isinstance(told.get(timeout=PATIENCE), ZeroDivisionError)
    assert owner.call(lambda: 3) == 3 and ran == ["step"] and owner.alive


def test_it_sleeps_when_there_is_nothing_to_do(owner: Owner) -> None:
    looked: list[str] = []

    class Inbox:
        def __init__(self) -> None:
            self._queue = SimpleQueue[Callable[[], None]]()
            self.put, self.empty = self._queue.put, self._queue.empty

        def get(self) -> Callable[[], None]:
            looked.append("waits")
            return self._queue.get()

        def get_nowait(self) -> Callable[[], None]:
            looked.append("looks")
            return self._queue.get_nowait()

    owner._desk.inbox = Inbox()  # type: ignore[assignment]
    owner.call(lambda: owner.pursue(lambda: False, unexpected))
    time.sleep(0.1)
    assert looked == ["waits", "looks", "waits"]


def test_the_thread_ends_with_its_object_and_with_stop() -> None:
    for end in ("stop", "garbage"):
        owner = Owner(CPU)
        thread = owner.call(threading.current_thread)
        if end == "stop":
            owner.stop()
            with pytest.raises(EngineError, match="released"):
                owner.call(refused)
        del owner
        gc.collect()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_a_dropped_engine_is_freed(folder: Path) -> None:
    engine = load(folder)
    engine.sample(prompts(1), Sampling(max_tokens=2))
    held = weakref.ref(engine.decoder.embed)
    del engine
    gc.collect()
    assert held() is None


# -- interrupted waits ---


def test_an_interrupted_wait_withdraws_what_has_not_begun(owner: Owner) -> None:
    begun, go_on, ran = threading.Event(), threading.Event(), []

    def busy() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    first = owner.post(busy)
    assert begun.wait(PATIENCE)
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        owner.call(lambda: ran.append(1))
    go_on.set()
    first.wait()
    assert owner.call(lambda: 4) == 4 and not ran


def test_ctrl_c_ends_the_callers_samples_and_no_others(folder: Path) -> None:
    engine = load(folder)
    long = Sampling(max_tokens=100, ignore_eos=True)
    seen = threading.Event()

    def interrupt(ids: list[int], position: int) -> None:
        if position == 3 and not seen.is_set():
            seen.set()
            os.kill(os.getpid(), signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(engine.sample, prompts(2), long)
        with pytest.raises(KeyboardInterrupt):
            engine.sample(prompts(1), Sampling(max_tokens=100, ignore_eos=True, logit_mask=interrupt))
        groups = other.result(PATIENCE)
    assert [len(g.samples[0].token_ids) for g in groups] == [100, 100] and idle(engine)


# -- processes ---


def child(engine: Engine, pipe: multiprocessing.connection.Connection) -> None:  # type: ignore[name-defined]
    said = []
    for use in (lambda: engine.sample([[1]]), lambda: engine.logprobs([[1, 2]]), engine.release):
        try:
            use()
            said.append("nothing")
        except EngineError as error:
            said.append(str(error))
    pipe.send(said)


def test_a_fork_is_told_so(folder: Path) -> None:
    engine = load(folder)
    engine.sample(prompts(1), Sampling(max_tokens=2))
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(target=child, args=(engine, there))
    process.start()
    assert here.poll(PATIENCE)
    sampled, scored, _ = here.recv()
    process.join(PATIENCE)
    assert sampled == scored and sampled.startswith("this process was forked from one that uses the engine")
    assert process.exitcode == 0
    assert len(engine.sample(prompts(1), Sampling(max_tokens=2))) == 1


ENDS: dict[str, str] = {
    "idle": "",
    "in flight": "import threading\n"
    "threading.Thread(target=e.sample, args=([[1, 2]], many), daemon=True).start()\n",
    "unread": "import asyncio\nasync def read():\n async for g in e.stream([[1], [2]], many): return\n"
    "asyncio.run(read())\n",
    "at exit": "import atexit; atexit.register(lambda: print(len(e.sample([[1]], few))))\n",
}


@pytest.mark.parametrize("end", ENDS)
def test_the_process_ends(folder: Path, repo_root: Path, end: str) -> None:
    script = (
        "from proactor.engine import Engine, Sampling\n"
        f"e = Engine.load({str(folder)!r}, kv_tokens=1024)\n"
        "many, few = Sampling(n=4, max_tokens=100, ignore_eos=True), Sampling(max_tokens=2)\n"
        f"{ENDS[end]}"
        "print(len(e.sample([[1, 2, 3]], few)))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=4 * PATIENCE
    )
    assert done.returncode == 0 and done.stdout.startswith("1\n"), done.stderr


def test_inside_a_running_event_loop(folder: Path) -> None:
    """As in a notebook: the call blocks, and works."""
    engine = load(folder)
    before: torch.Tensor = adapter(engine)

    async def cell() -> Callable[[], list[Sample]]:
        groups = engine.sample(prompts(2), Sampling(n=2, max_tokens=3))
        engine.train([Group([1], [outside([1], [2 + i], advantage=1.0 - 2 * i) for i in range(2)])], TRAIN)
        return lambda: [s for g in groups for s in g.samples]

    assert len(asyncio.run(cell())()) == 4 and not torch.equal(before, adapter(engine))
