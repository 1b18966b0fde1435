"""`Session`: samples of several turns, for callers that come and go while others are served."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from types import TracebackType

from proactor.engine.arguments import instance, integer
from proactor.engine.config import Sampling
from proactor.engine.jobs import UINT64, Job, JobMaker
from proactor.engine.parking import lease_name
from proactor.engine.prompts import Prompt, check_keys, check_prompt, ids_of
from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.submission import Submission, arrived, time_limit
from proactor.engine.types import BASE_VERSION, EngineError, Group, Sample

UNNAMED = 0xFFFFFFFF
"""The iteration of requests without a key."""
_numbers = itertools.count()


class Session:
    """Samples, continues and branches. Made by `Engine.session`; from any thread, in any event loop.

    Each call waits for its result, and many may wait at once. Ending the wait (a cancelled task) ends the
    sampling; a sample that was to be continued is then as it was. `cancel`, leaving the block and a
    ``deadline`` (seconds from the call) end it too, but the call returns what was drawn until then, with
    finish reason ``cancelled`` or ``deadline``: where a step is cut depends on the clock.

    ``key`` names a request: its tokens are then a function of the engine's seed, the session's iteration,
    key, ``index``, the position from the trajectory's root, and the weights. In deterministic mode nothing
    else matters. A `Sampling.seed` takes the place of the engine's seed and of the iteration (then 0), and a
    request without a key then has key 0. Without either a request draws a noise of its own, another one at
    each call.
    """

    def __init__(
        self, loop: SamplingLoop, maker: JobMaker, seed: int, iteration: int, unnamed: Iterator[int]
    ) -> None:
        if not 0 <= integer(iteration, "session: iteration") < UNNAMED:
            raise EngineError(f"session: iteration {iteration!r} is not an integer of 0 … {UNNAMED - 1}")
        self._loop, self._maker, self._seed, self._iteration = loop, maker, seed, iteration
        self._unnamed = unnamed
        self._number = next(_numbers)
        self._running: set[Submission] = set()
        self._closed = False

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def sample(
        self,
        prompt: Prompt,
        sampling: Sampling | None = None,
        *,
        key: int | None = None,
        index: int = 0,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Sample:
        """One sample of ``prompt``. With ``key``, equal to number ``index`` of `Engine.sample` with that key.

        Requests of higher ``priority`` begin first. Raises EngineError as `Engine.sample`, for ``n`` above 1
        (draw them at once, with an ``index`` each: what they share is computed once), and when closed.
        """
        sampling = _of_one(sampling or Sampling())
        check_prompt(prompt)
        job = self._job(prompt, sampling, key, index)
        return (await self._run(job, priority, deadline)).samples[0]

    async def advance(
        self,
        sample: Sample,
        observation_ids: Sequence[int] = (),
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Sample:
        """Show ``sample`` an observation and draw its next turn; returns ``sample``, which then holds both.

        The observation carries no loss (`Sample.extend`). Only its tokens and the last one drawn are
        computed, as long as the session's pages are kept (`EngineConfig.parked_share`). ``sampling``: by
        default only the sample's temperature and adapter; ``max_tokens`` and stops count for this turn. The
        noise is that of the sample's own seed and key, further on. Raises EngineError, with the sample as it
        was, for an observation that leaves no room in the context, another temperature or seed, and a sample
        that changed meanwhile.
        """
        instance(sample, Sample, "advance: sample")
        observation = ids_of(observation_ids, "advance: an observation")
        sampling = _of_one(sampling or _as_before(sample))
        if sampling.temperature != sample.temperature:
            raise EngineError(
                f"advance: temperature {sampling.temperature}, the sample was drawn at {sample.temperature}"
            )
        _check_seed(sample, sampling)
        before = len(sample.token_ids)
        job = self._continue(sample, before, observation, sampling)
        if sample.noise is not None:
            job.noise, job.first = sample.noise[:3], sample.noise[3]
        turn = (await self._run(job, priority, deadline)).samples[0]
        if len(sample.token_ids) != before:
            raise EngineError("advance: the sample was changed while its next turn was drawn")
        sample.extend(observation)
        sample.append(turn)
        sample.noise = turn.noise
        return sample

    async def branch(
        self,
        sample: Sample,
        at_turn: int,
        n: int,
        sampling: Sampling | None = None,
        *,
        key: int | None = None,
        priority: int = 0,
        deadline: float | None = None,
    ) -> list[Sample]:
        """Draw turn ``at_turn`` of ``sample`` (from 0) ``n`` times anew; returns ``n`` samples.

        Each holds everything before that turn, which is computed once, and ends with the turn drawn. ``key``
        names the branch, and should not be that of the sample: sample i has the noise of index i. A seed
        counts as in `sample`. Raises EngineError for a turn that the sample does not have, and like
        `advance`.
        """
        turns = instance(sample, Sample, "branch: sample").turns()
        at_turn, n = integer(at_turn, "branch: at_turn"), integer(n, "branch: n")
        if not 0 <= at_turn < len(turns) or n < 1:
            raise EngineError(f"branch: turn {at_turn} and n {n} of a sample of {len(turns)} turns")
        sampling = sampling or _as_before(sample)
        sampling = instance(sampling, Sampling, "branch: sampling").model_copy(update={"n": n})
        cut = turns[at_turn][0]
        job = self._continue(sample, cut, [], sampling, key)
        drawn = (await self._run(job, priority, deadline)).samples
        return [_grafted(sample, cut, turn) for turn in drawn]

    def cancel(self) -> None:
        """End everything that this session draws at present."""
        for submission in tuple(self._running):
            self._loop.cancel(submission)

    def close(self) -> None:
        """`cancel`, and let go of all pages. Later calls raise EngineError."""
        if not self._closed:
            self._closed = True
            self.cancel()
            self._loop.forget(self._number)

    # -- jobs ---

    def _job(self, prompt: Prompt, sampling: Sampling, key: int | None, index: int = 0) -> Job:
        """The job of one prompt, with the noise of its name."""
        check_keys([index])
        iteration = self._iteration
        if key is None:
            number = next(self._unnamed) if sampling.seed is None else 0
            iteration, key = UNNAMED, number & 0xFFFFFFFF
        [job] = self._maker.make([prompt], sampling, [key], (self._seed, iteration))
        job.first = int(index)
        return job

    def _continue(
        self, sample: Sample, cut: int, observation: list[int], sampling: Sampling, key: int | None = None
    ) -> Job:
        """The job of what follows the first ``cut`` tokens of a sample and an observation."""
        before = sample.prompt_ids + sample.token_ids[:cut]
        ids, context = before + observation, self._maker.config.context_length
        if len(ids) >= context:
            raise EngineError(
                f"session: {len(before)} tokens and an observation of {len(observation)} leave no room in a "
                f"context of {context}"
            )
        job = self._job(ids, sampling, key)
        if None not in (sample.adapter, job.adapter) and job.adapter != sample.adapter:
            raise EngineError(f"session: adapter {job.adapter!r} cannot go on what {sample.adapter!r} drew")
        job.offset, job.lease = cut + len(observation), lease_name(before)
        mask = sample.trained_mask()[:cut]
        last = max((i for i, trained in enumerate(mask) if trained), default=-1)
        job.known = len(sample.prompt_ids) + last
        return job

    async def _run(self, job: Job, priority: int, deadline: float | None) -> Group:
        integer(priority, "session: priority")
        submission = Submission([job], priority, time_limit(deadline, "session"), self._number)
        self._running.add(submission)
        try:
            if self._closed:
                raise EngineError("session: it was closed; open another one")
            self._loop.submit(submission)
            return await arrived(submission.arrivals[0])
        except BaseException:
            self._loop.cancel(submission)
            raise
        finally:
            self._running.discard(submission)


def _of_one(sampling: Sampling) -> Sampling:
    if instance(sampling, Sampling, "session: sampling").n != 1:
        raise EngineError(f"session: n={sampling.n}: a call draws one sample; branch draws several")
    return sampling


def _check_seed(sample: Sample, sampling: Sampling) -> None:
    """Raise EngineError for a seed that is not the one that ``sample`` was drawn with."""
    if sampling.seed is None or sample.noise is None:
        return
    if sample.noise[:2] != (sampling.seed & UINT64, 0):
        raise EngineError(f"advance: seed {sampling.seed}: a sample goes on with its own noise; leave it out")


def _as_before(sample: Sample) -> Sampling:
    """How a sample goes on where nothing is said."""
    return Sampling(
        temperature=sample.temperature, adapter=sample.adapter or sample.policy_version != BASE_VERSION
    )


def _grafted(sample: Sample, cut: int, turn: Sample) -> Sample:
    """A new sample: the first ``cut`` tokens of ``sample``, then ``turn``."""
    grafted = Sample(
        sample.prompt_ids,
        sample.token_ids[:cut],
        sample.logprobs[:cut],
        sample.policy_logprobs[:cut],
        sample.policy_version if cut else turn.policy_version,
        sample.versions[:cut] or None if sample.versions else None,
        mask=None if sample.mask is None else sample.mask[:cut],
        temperature=sample.temperature,
        noise=turn.noise,
        top_logprobs=None if sample.top_logprobs is None else sample.top_logprobs[:cut],
        adapter=sample.adapter if cut else turn.adapter,
    )
    grafted.append(turn)
    return grafted
