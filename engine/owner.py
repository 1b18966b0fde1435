"""`Owner`: the one thread that uses a model, from its first use to its release.

Whoever wants something of the model hands the thread a function, and waits. The thread runs these functions
one after the other, in the order in which they came, and between them goes on with a standing task (the
sampler's steps) for as long as there is one. Without either it sleeps.

A caller's wait ends at once with Ctrl-C: what has not begun is then withdrawn, what runs is finished.

Callers end their OpenMP workers first, and so does the thread before it sleeps: idle ones slow down those
that compute (`kernels/openmp.py`).
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from typing import Generic, TypeVar

import torch

from proactor.engine.types import EngineError
from proactor.kernels.openmp import release_workers

T = TypeVar("T")

RELEASED = "this engine was released; load another one"
EXIT_WAIT = 10.0
"""Seconds that the end of the process waits for a function that still runs."""


class Call(Generic[T]):
    """A function to run for a caller, under the caller's grad mode and number of threads.

    ``outcome`` gets what it returns or raises.
    """

    def __init__(self, function: Callable[[], T]) -> None:
        self.outcome: Future[T] = Future()
        self._function: Callable[[], T] | None = function
        self._grad, self._threads = torch.is_grad_enabled(), torch.get_num_threads()

    def __call__(self) -> None:
        """Run it, unless it was withdrawn. What the function holds is let go with it."""
        function, self._function = self._function, None
        if function is None or not self.outcome.set_running_or_notify_cancel():
            return
        if torch.get_num_threads() != self._threads:  # a setting of each thread, under OpenMP
            torch.set_num_threads(self._threads)
        try:
            with torch.set_grad_enabled(self._grad):
                value = function()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            self.outcome.set_exception(error)
            del self  # or the error's traceback holds itself
        else:
            self.outcome.set_result(value)

    def refuse(self, error: Exception) -> None:
        """Let the caller see an error instead."""
        self._function = None
        if self.outcome.set_running_or_notify_cancel():
            self.outcome.set_exception(error)

    def wait(self) -> T:
        """What it returned; raises what it raised. An interrupted wait withdraws it."""
        outcome = self.outcome
        try:
            return outcome.result()
        except BaseException:
            outcome.cancel()
            raise
        finally:
            del outcome


@dataclass(frozen=True, slots=True)
class _Task:
    """What runs between calls, and who is told of an error that ended it."""

    step: Callable[[], bool]
    failed: Callable[[BaseException], None]

    def goes_on(self) -> bool:
        """Run a step; returns whether another one follows."""
        try:
            return self.step()
        except BaseException as error:  # noqa: BLE001 - raised by those who wait for the task
            self.failed(error)
            return False


@dataclass(slots=True)
class _Desk:
    """What the thread sees: it must not keep the owner, and with it the model, alive."""

    inbox: SimpleQueue[Callable[[], None]] = field(default_factory=SimpleQueue)
    task: _Task | None = None


class Owner:
    """A thread that starts with the first call, and ends with `stop`, with this object, or with the process.

    ``device``: made current in the thread.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._desk = _Desk()
        self._lock = threading.RLock()  # the garbage collector may post from inside a post
        self._thread: threading.Thread | None = None
        self._process = 0
        self._stopped = False
        self._finalizer: weakref.finalize[..., Owner] | None = None

    @property
    def inside(self) -> bool:
        """Whether this is the owner's thread: a function that it runs has come back here."""
        return threading.current_thread() is self._thread

    @property
    def alive(self) -> bool:
        """Whether the thread runs, in this process."""
        return self._thread is not None and not self._stopped and self._process == os.getpid()

    def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` between two steps; returns what it returns and raises what it raises.

        From the owner's thread it runs at once. Raises EngineError after `stop` and in a forked process.
        """
        return function() if self.inside else self.post(function).wait()

    def post(self, function: Callable[[], T]) -> Call[T]:
        """As `call`, without waiting. Never runs in the caller's thread."""
        call = Call(function)
        if self._thread is not None and self._process != os.getpid():
            raise EngineError(
                "this process was forked from one that uses the engine: load an engine here, or start the "
                "process with the method 'spawn'"
            )
        with self._lock:
            if self._stopped or (self._finalizer is not None and not self._finalizer.alive):
                raise EngineError(RELEASED)
            if self._thread is None:
                self._start()
            release_workers()
            self._desk.inbox.put(call)
        return call

    def pursue(self, task: Callable[[], bool], failed: Callable[[BaseException], None]) -> None:
        """Run ``task`` again and again, between calls, until it returns False. From the owner's thread.

        What it raises ends it and goes to ``failed``; the thread goes on.
        """
        self._desk.task = _Task(task, failed)

    def stop(self) -> None:
        """End the thread after what was posted. Later calls raise EngineError."""
        with self._lock:
            self._stopped = True
        if self._finalizer is not None:
            self._finalizer()

    def _start(self) -> None:
        thread = threading.Thread(target=_serve, args=(self._desk, self._device), name="engine", daemon=True)
        self._thread, self._process = thread, os.getpid()
        self._finalizer = weakref.finalize(self, _end, self._desk.inbox, thread, self._process)
        thread.start()


def _serve(desk: _Desk, device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.set_device(device)
    while True:
        call = _next_call(desk)
        if call is _stop:
            return
        if call is not None:
            call()
        elif desk.task is not None and not desk.task.goes_on():
            desk.task = None
        del call  # or a sleeping thread holds what the last call was about


def _next_call(desk: _Desk) -> Callable[[], None] | None:
    """The next call; None if there is none and a task to go on with."""
    if desk.task is None:
        if desk.inbox.empty():
            release_workers()
        return desk.inbox.get()
    try:
        return desk.inbox.get_nowait()
    except Empty:
        return None


def _stop() -> None:
    """The last message to the thread."""


def _end(inbox: SimpleQueue[Callable[[], None]], thread: threading.Thread, process: int) -> None:
    if process != os.getpid():
        return
    inbox.put(_stop)
    if thread is not threading.current_thread():
        thread.join(EXIT_WAIT)
