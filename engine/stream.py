"""`GroupStream`: groups for ``async for``, each when its last sample ends."""

from __future__ import annotations

import asyncio

from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.submission import Submission, arrived
from proactor.engine.types import Group


class GroupStream:
    """The groups of one submission, for one reader, in any event loop.

    Sampling begins with the first group asked for, and goes on whether or not the stream is read. Leaving the
    loop ends it: not an async generator, whose end waits for the event loop.
    """

    def __init__(self, loop: SamplingLoop, submission: Submission) -> None:
        self._loop, self._submission = loop, submission
        self._begun, self._read = False, 0

    def __aiter__(self) -> GroupStream:
        return self

    async def __anext__(self) -> Group:
        arrivals = self._submission.arrivals
        if self._read >= len(arrivals):
            raise StopAsyncIteration
        if not self._begun:
            self._loop.submit(self._submission)
            self._begun = True
        try:
            group = await arrived(arrivals[self._read])
        except asyncio.CancelledError:  # the wait was given up, not the stream
            raise
        except BaseException:
            self._read = len(arrivals)
            raise
        self._read += 1
        return group

    async def aclose(self) -> None:
        """End what still runs and free what it holds."""
        self._close()

    def __del__(self) -> None:
        self._close()

    def _close(self) -> None:
        self._read = len(self._submission.arrivals)
        if self._begun:
            self._loop.cancel(self._submission)
