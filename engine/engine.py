"""`Engine`, the public object: the frozen weights, the KV cache, the adapters and their gradients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from proactor.engine.arguments import integer
from proactor.engine.config import EngineConfig, Sampling
from proactor.engine.drawing import Drawing
from proactor.engine.jobs import Job
from proactor.engine.learning import Learning
from proactor.engine.loading import build, read_arguments
from proactor.engine.lora_config import LoRA
from proactor.engine.openai_client import OpenAIClient
from proactor.engine.prompts import Prompt, check_prompts, encode_prompt
from proactor.engine.session import UNNAMED, Session
from proactor.engine.shared_sampling import SharedSampling, arriving
from proactor.engine.stream import GroupStream
from proactor.engine.submission import Submission, time_limit
from proactor.engine.types import EngineError, Group


class Engine(Learning):
    """Sampler and trainer on one copy of the weights. Made by `Engine.load`.

    Any number of threads and event loops may call it: one thread of its own (`Owner`) does all the work, and
    callers wait. In a process forked after its first use, calls raise EngineError.

    Attributes: ``config`` (the model's `ModelConfig`), ``options`` (its `EngineConfig`), ``tokenizer`` and
    ``chat`` (None where the folder has no tokenizer), ``vocabulary`` (1 + the highest id that has a token),
    ``adapters`` (their names), ``versions`` (updates of each so far; ``policy_version``: of the first),
    ``samplings`` (calls of `sample` and `stream` so far).
    """

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: EngineConfig | None = None,
        *,
        lora: LoRA | Mapping[str, LoRA] | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Engine:
        """Load a Hugging Face folder or hub id.

        ``config``, or the fields of `EngineConfig` as keywords (``kv_tokens=8192``), but not both. ``lora``
        makes an adapter to train, named ``policy``, or several by name, the first the default; ``seed``
        initialises each of them and the sampler's noise, and ``progress(done, total)`` is called for each
        tensor read. Raises EngineError for an unknown option, and CheckpointError naming file and tensor for
        a folder that cannot be loaded.
        """
        config = read_arguments(path, config, lora, seed, progress, options)
        return cls(build(path, config, lora, seed, progress), config, seed, str(path))

    # -- sampling ---

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt: text (no template), messages (with the generation prompt), or plain ids.

        Text gets the begin token where the tokenizer adds one (`ChatFormat.encode_text`). Raises EngineError
        for anything else.
        """
        return encode_prompt(prompt, self.chat, self.base_name)

    def sample(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        keys: Sequence[int] | None = None,
    ) -> list[Group]:
        """Groups of samples in the order of ``prompts``; one ``sampling`` for all, or one a prompt.

        ``keys`` identify the groups to the noise (default: their index), 0 to 2^32 - 1. Equal key, seed and
        number of earlier calls draw equal tokens; seeds count modulo 2^64. Raises EngineError naming the
        prompt that cannot be sampled from, one prompt that is not in a list, or a key out of range.
        """
        submission = self._submission(prompts, sampling, keys)
        self._loop.submit(submission)
        try:
            groups = [arrival.result() for arrival in submission.arrivals]
        except BaseException:  # Ctrl-C too
            self._loop.cancel(submission)
            raise
        return sorted(groups, key=lambda group: group.index)

    def stream(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        keys: Sequence[int] | None = None,
    ) -> AsyncIterator[Group]:
        """``async for`` over groups, each as soon as its last sample ends, so that judging overlaps sampling.

        Arguments and errors as `sample`. Sampling begins with the first group asked for; leaving the loop
        ends the samples that still run.
        """
        return GroupStream(self._loop, self._submission(prompts, sampling, keys))

    def draw(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | None = None,
        *,
        priority: int = 0,
        deadline: float | None = None,
    ) -> Drawing:
        """Samples to look at while they are drawn: ``async with``. For whoever answers others as it goes.

        With a ``seed`` in ``sampling`` they are those of `sample` with that seed, else each prompt draws a
        noise of its own. ``priority`` and ``deadline``: as `Session.sample`. Errors as `sample`.
        """
        self._policy.refuse_released()
        check_prompts(prompts, "draw")
        until, keys = time_limit(deadline, "draw"), None
        if sampling is None or sampling.seed is None:
            keys = [next(self._unnamed) & 0xFFFFFFFF for _ in prompts]
        jobs = self._maker.make(prompts, sampling, keys, (self.seed, UNNAMED))
        return Drawing(self._loop, Submission(jobs, integer(priority, "draw: priority"), until), self._texts)

    def sample_shared(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        keys: Sequence[int] | None = None,
        units: Sequence[Hashable] | None = None,
        idle: Callable[[], bool] | None = None,
    ) -> Iterator[Group]:
        """As `stream`, over all ranks: yields the groups that this rank sampled, and each is on one rank.

        A rank takes what is expected to take longest, as its sampler has room. ``units``: one key a prompt;
        prompts of one key stay on one rank, where what they share is computed once (default: each on its
        own). Tokens do not depend on the rank. Every rank must call this with the same arguments and weights,
        and read to the end, without long pauses. ``idle`` is called again and again while this rank has
        nothing to sample and others do; it says whether it has more to do at once, and what takes long it
        only begins (`EarlyGradient.add`). Raises EngineError as `sample` and `gather` do.
        """
        if units is not None and len(units) != len(prompts):
            raise EngineError(f"sample_shared: {len(prompts)} prompts with {len(units)} units")
        submission = self._submission(prompts, sampling, keys)
        if self.parallel.meeting is None or not submission.jobs:
            return arriving(self._loop, submission)
        by_key: dict[Hashable, list[Job]] = {}
        for job in submission.jobs:
            by_key.setdefault(job.index if units is None else units[job.index], []).append(job)
        return iter(
            SharedSampling(
                self._loop,
                self.parallel,
                self.parallel.meeting,
                list(by_key.values()),
                self._policy.versions(),
                self._rank_events,
                idle,
            )
        )

    def session(self, iteration: int = 0) -> Session:
        """For samples of several turns, and for callers that come one by one: ``async with``.

        ``iteration``: the caller's own count, 0 to 2^32 - 2, a part of its requests' noise.
        """
        return Session(self._loop, self._maker, self.seed, iteration, self._unnamed)

    def openai(self, *, aliases: Mapping[str, str] | None = None) -> OpenAIClient:
        """OpenAI's client without a socket, for judges, simulated users and environments that take one.

        A request's ``model`` is ``base`` (the adapter off; the model's own name too), ``policy`` (the first
        adapter, unless one has that name) or an adapter's name. ``aliases``: other names for these, such as
        one that an environment asks for. Raises EngineError without a tokenizer.
        """
        self._policy.refuse_released()
        noise = self.seed, self._unnamed
        return OpenAIClient.of(self._loop, self._maker, self.chat, self.base_name, aliases, noise)

    def _submission(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None,
        keys: Sequence[int] | None,
    ) -> Submission:
        self._policy.refuse_released()
        with self._counting:
            jobs = self._maker.make(prompts, sampling, keys, (self.seed, self.samplings))
            self.samplings += 1
        return Submission(jobs)
