"""`Drawing`: the samples of one request while they are drawn, for one reader in an event loop.

    async with engine.draw([prompt], Sampling(n=2, seed=5)) as drawing:
        async for piece in drawing.pieces():
            print(piece.index, piece.text)
        [group] = await drawing.groups()

A step of the sampler wakes all readers of an event loop at once, and a reader that is slow gets what was
drawn meanwhile as one piece.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import ClassVar
from weakref import WeakKeyDictionary, ref

from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.submission import Submission
from proactor.engine.text_stream import TextPieces, TextStream
from proactor.engine.types import Group, Sample, Tops


@dataclass(frozen=True, slots=True)
class Piece:
    """What a sample gained: ``text`` that is certain, and the tokens from ``start`` to ``end``.

    ``index``: the sample's number over all prompts; ``last``: it ended, and ``sample`` is complete. The texts
    of all its pieces together are `Sample.text`.
    """

    index: int
    sample: Sample
    text: str
    start: int
    end: int
    last: bool

    @property
    def token_ids(self) -> list[int]:
        """The new tokens."""
        return self.sample.token_ids[self.start : self.end]

    @property
    def logprobs(self) -> list[float]:
        """Their log-probabilities in the full softmax (`Sample.policy_logprobs`)."""
        return self.sample.policy_logprobs[self.start : self.end]

    @property
    def tops(self) -> Tops:
        """The most probable ids at each of them (`Sample.top_logprobs`); none where nobody asked."""
        kept = self.sample.top_logprobs
        return [[] for _ in self.token_ids] if kept is None else kept[self.start : self.end]


class Drawing:
    """Made by `Engine.draw`. Sampling begins with the block and ends with it, at the latest."""

    def __init__(self, loop: SamplingLoop, submission: Submission, texts: TextPieces | None) -> None:
        self._loop, self._submission, self._texts = loop, submission, texts
        self._pulse: Pulse | None = None

    async def __aenter__(self) -> Drawing:
        self._pulse = Pulse.here()
        self._submission.watch = self._pulse.tell
        for arrival in self._submission.arrivals:
            arrival.add_done_callback(self._pulse.tell)
        self._loop.submit(self._submission)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.cancel(self._submission)

    @property
    def samples(self) -> list[Sample]:
        """The samples as they stand, all of the first prompt first; none before they begin."""
        return [sample for job in self._submission.jobs for sample in job.samples]

    async def groups(self) -> list[Group]:
        """The groups, in the order of the prompts, when all have ended. Raises what ended them."""
        while not all(arrival.done() for arrival in self._submission.arrivals):
            await self._beat()
        groups = [arrival.result() for arrival in self._submission.arrivals]
        return sorted(groups, key=lambda group: group.index)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces as they come; the last one of a sample has its end. Raises what ended the sampling."""
        readers: dict[int, _Reader] = {}
        while True:
            ended = all(arrival.done() for arrival in self._submission.arrivals)
            first = 0
            for job in self._submission.jobs:
                for number, sample in enumerate(job.samples, first):
                    if number not in readers:
                        readers[number] = _Reader(number, sample, self._texts, job.sampling.stop)
                    if (piece := readers[number].read()) is not None:
                        yield piece
                first += job.sampling.n  # of one that has not begun too: the next one may begin meanwhile
            if ended:
                await self.groups()
                return
            await self._beat()

    async def _beat(self) -> None:
        assert self._pulse is not None, "`async with` begins the sampling"
        await self._pulse.beat()


class _Reader:
    """How far one sample was read."""

    def __init__(self, index: int, sample: Sample, texts: TextPieces | None, stop: tuple[str, ...]) -> None:
        self.index, self.sample = index, sample
        self.text = None if texts is None else TextStream(texts, stop)
        self.unsure = int(bool(stop))  # the newest token may complete a stop string, which is seen later
        self.place, self.ended = 0, False

    def read(self) -> Piece | None:
        """What is new; None where nothing is."""
        if self.ended:
            return None
        sample, start = self.sample, self.place
        last = sample.finish_reason != "outside"  # looked at first: the rest is then complete
        end = len(sample.policy_logprobs)  # recorded last
        if not last:
            end -= self.unsure
            if end <= start:
                return None
        text = ""
        if self.text is not None:
            text = self.text.finish(sample.text) if last else self.text.take(sample.token_ids[start:end])
        self.place, self.ended = end, last
        return Piece(self.index, sample, text, start, end, last)


class Pulse:
    """Wakes those who wait in one event loop, once however often it is told."""

    _all: ClassVar[WeakKeyDictionary[asyncio.AbstractEventLoop, Pulse]] = WeakKeyDictionary()

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # weak: it is the key under which this is kept
        self._told = False
        self._woken: asyncio.Future[None] | None = None

    @classmethod
    def here(cls) -> Pulse:
        """The pulse of the event loop that runs here."""
        loop = asyncio.get_running_loop()
        if loop not in cls._all:
            cls._all[loop] = cls(loop)
        return cls._all[loop]

    def tell(self, _: object = None) -> None:
        """From any thread: something has changed."""
        if not self._told:
            self._told, loop = True, self._loop()
            with suppress(RuntimeError):  # the event loop has closed
                if loop is not None:
                    loop.call_soon_threadsafe(self._wake)

    async def beat(self) -> None:
        """Wait for the next change."""
        if self._woken is None:
            self._woken = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._woken)

    def _wake(self) -> None:
        self._told = False  # before the readers look: what comes later tells again
        woken, self._woken = self._woken, None
        if woken is not None:
            woken.set_result(None)
