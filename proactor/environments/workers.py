"""Where an environment runs: in threads of this process, or in a process of its own.

Either way the caller awaits, so that an event loop is never held up, and a call that takes too long is given
up.
"""

from __future__ import annotations

import asyncio
import copy
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from multiprocessing.connection import Connection
from typing import Any, Protocol, TypeVar

from proactor.engine import printable
from proactor.environments.clock import Clock
from proactor.environments.errors import GymError
from proactor.environments.global_random import RandomStream, seed_globals
from proactor.environments.protocol import Call, Environment, Opening, Outcome

Result = TypeVar("Result")
START = 300.0
"""Seconds that a process may take to start, which no environment is blamed for."""
SHORTEST = 0.01
"""Seconds between two looks at a clock that may stand."""
Make = Callable[[], Environment]


class Failed(Exception):
    """What an environment raised, in one line."""


class Overdue(Exception):
    """An environment that did not answer in time."""


def describe(error: BaseException) -> str:
    """An error of foreign code in one line: its type and what it says."""
    said = printable(str(error).strip().split("\n")[0])
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


class Worker(Protocol):
    """Runs one environment. Its coroutines raise Failed or Overdue; after either it is of no more use."""

    async def begin(self, make: Make, seed: int) -> tuple[Opening, frozenset[str]]:
        """Build an environment and reset it: its opening, and the verbs that need the user."""
        ...

    async def step(self, call: Call) -> Outcome:
        """Let it answer a call."""
        ...

    def end(self, reusable: bool) -> None:
        """The episode is over; ``reusable``: whether the worker may serve another one."""
        ...


async def in_thread(work: Callable[[], Result], started: Callable[[], None] | None = None) -> Result:
    """What ``work`` returns or raises, from a thread of its own. The thread is a daemon: one that hangs holds
    up neither the caller, who may stop to wait, nor the end of the process.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(report: Callable[[Any], None], value: object) -> None:
        def deliver() -> None:
            if not done.done():
                report(value)

        if not loop.is_closed():
            loop.call_soon_threadsafe(deliver)

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 it is raised in the caller
            tell(done.set_exception, error)
        else:
            tell(done.set_result, result)

    threading.Thread(target=run, daemon=True, name="environment").start()
    return await done


def begin(make: Make, seed: int) -> tuple[Environment, Opening]:
    """A new environment and its opening. Raises Failed for what the environment raises or returns wrongly."""
    environment = guarded(make)
    opening = guarded(lambda: environment.reset(seed))
    if not isinstance(opening, Opening):
        raise Failed(f"reset returned {type(opening).__name__} instead of Opening")
    return environment, opening


def guarded(work: Callable[[], Result]) -> Result:
    """What ``work`` returns. Whatever it raises becomes Failed: foreign code ends its own episode alone."""
    try:
        return work()
    except GymError as error:
        raise Failed(str(error)) from error
    except (Exception, SystemExit) as error:
        raise Failed(describe(error)) from error


class ThreadWorker:
    """Calls in threads of this process. ``isolated``: with streams of its own for the global generators,
    which lets one environment run at a time.
    """

    def __init__(self, timeout: float, isolated: bool) -> None:
        self.timeout, self.isolated = timeout, isolated
        self.environment: Environment | None = None
        self._stream: RandomStream | None = None

    async def begin(self, make: Make, seed: int) -> tuple[Opening, frozenset[str]]:
        """See `Worker`."""
        self._stream = RandomStream(seed) if self.isolated else None
        environment, opening = await self._run(lambda: begin(make, seed))
        self.environment = environment
        return opening, frozenset(environment.user_verbs)

    async def step(self, call: Call) -> Outcome:
        """See `Worker`."""
        environment = self.environment
        assert environment is not None, "a step before the beginning"
        return await self._run(lambda: guarded(lambda: environment.step(call)))

    def copy(self) -> ThreadWorker:
        """A worker with a copy of the environment in its present state, between two calls."""
        twin = ThreadWorker(self.timeout, self.isolated)
        twin.environment, twin._stream = copy.deepcopy((self.environment, self._stream))
        return twin

    async def _run(self, work: Callable[[], Result]) -> Result:
        stream, loop = self._stream, asyncio.get_running_loop()
        runs, clock = asyncio.Event(), Clock(self.timeout)

        def alone() -> Result:
            with stream.lent() if stream else nullcontext(), clock.here():
                loop.call_soon_threadsafe(runs.set)
                return work()

        task = asyncio.ensure_future(in_thread(alone))
        waiting = asyncio.ensure_future(runs.wait())
        try:
            # A wait for the generators is no fault of this environment: each use of them ends in time.
            await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
            clock.start()
            while not task.done() and (left := clock.left()) > 0:
                await asyncio.wait({task}, timeout=max(left, SHORTEST))
            if not task.done():
                raise Overdue(f"no answer within {self.timeout:g} s")
            return task.result()
        finally:
            waiting.cancel()
            if not task.done() or task.cancelled():  # overdue, or the caller was cancelled
                task.cancel()
                if stream:
                    stream.abandon()

    def end(self, reusable: bool) -> None:
        """See `Worker`."""
        self.environment = self._stream = None


def _serve(connection: Connection) -> None:
    """A process's life: begin an environment, let it answer calls, begin the next one."""
    environment: Environment | None = None
    connection.send_bytes(pickle.dumps((True, "ready")))
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            if name == "begin":
                make, seed = arguments
                seed_globals(seed)  # nobody else draws from them here
                environment, opening = begin(make, seed)
                answer: Any = opening, frozenset(environment.user_verbs)
            else:
                assert environment is not None, "a step before the beginning"
                answer = guarded(partial(environment.step, *arguments))
            message = pickle.dumps((True, answer))
        except Failed as error:
            message = pickle.dumps((False, str(error)))
        except Exception as error:  # noqa: BLE001 an answer that cannot be sent
            message = pickle.dumps((False, describe(error)))
        connection.send_bytes(message)


class ProcessWorker:
    """A process that serves one environment after another, and is killed where one hangs. What makes an
    environment, its calls and its outcomes must be picklable.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout, self._ready, self._asked = timeout, False, False
        context = multiprocessing.get_context("spawn")
        self.alive = True
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    async def begin(self, make: Make, seed: int) -> tuple[Opening, frozenset[str]]:
        """See `Worker`."""
        return await in_thread(lambda: self._ask("begin", make, seed))

    async def step(self, call: Call) -> Outcome:
        """See `Worker`."""
        return await in_thread(lambda: self._ask("step", call))

    def _ask(self, name: str, *arguments: object) -> Any:
        try:
            if not self._ready:
                self._receive(START)
                self._ready = True
            self._asked = True
            self._connection.send((name, arguments))
            fine, answer = self._receive(self.timeout)
            self._asked = False
        except (EOFError, OSError):
            raise Failed("its process ended") from None
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise Failed(f"cannot be sent to a process ({describe(error)})") from None
        if not fine:
            raise Failed(answer)
        return answer

    def _receive(self, timeout: float) -> tuple[bool, Any]:
        if not self._connection.poll(timeout):
            raise Overdue(f"no answer within {timeout:g} s")
        message: tuple[bool, Any] = pickle.loads(self._connection.recv_bytes())
        return message

    def end(self, reusable: bool) -> None:
        """See `Worker`. A process that is not reusable, or still at work, is killed."""
        self.alive = reusable and not self._asked and self._process.is_alive()
        if not self.alive:
            self._connection.close()
            self._process.kill()
            self._process.join()
