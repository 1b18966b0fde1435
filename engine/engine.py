"""`Engine`, the public object: the frozen weights, the KV cache, the adapter and its gradients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Hashable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from proactor.engine import training
from proactor.engine.adapter_io import load_adapter, save_adapter
from proactor.engine.arguments import instance, integer, listed, path_of, short
from proactor.engine.checks import check_groups
from proactor.engine.config import GRPO, SFT, AdamW, EngineConfig, Sampling
from proactor.engine.drawing import Drawing
from proactor.engine.early_gradient import EarlyGradient
from proactor.engine.group_plan import GroupPlan, group_planner
from proactor.engine.jobs import Job
from proactor.engine.loading import build, read_arguments
from proactor.engine.logprobs import mean_nll, sequence_choices, sequence_logprobs
from proactor.engine.lora_config import LoRA
from proactor.engine.loss import Loss
from proactor.engine.openai_client import OpenAIClient
from proactor.engine.parts import Parts
from proactor.engine.prompts import Prompt, check_prompts, encode_prompt
from proactor.engine.session import UNNAMED, Session
from proactor.engine.shared_sampling import SharedSampling, arriving
from proactor.engine.state import check_counts, load_state, save_state
from proactor.engine.stream import GroupStream
from proactor.engine.submission import Submission, time_limit
from proactor.engine.tree import Tree
from proactor.engine.types import EngineError, Group, Sample


class Engine(Parts):
    """Sampler and trainer on one copy of the weights. Made by `Engine.load`.

    Any number of threads and event loops may call it: one thread of its own (`Owner`) does all the work, and
    callers wait. In a process forked after its first use, calls raise EngineError.

    Attributes: ``config`` (the model's `ModelConfig`), ``options`` (its `EngineConfig`), ``tokenizer`` and
    ``chat`` (None where the folder has no tokenizer), ``vocabulary`` (1 + the highest id that has a token),
    ``policy_version`` (updates of the adapter so far), ``samplings`` (calls of `sample` and `stream` so far).
    """

    @classmethod
    def load(
        cls,
        path: str | Path,
        config: EngineConfig | None = None,
        *,
        lora: LoRA | None = None,
        seed: int = 0,
        progress: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Engine:
        """Load a Hugging Face folder or hub id.

        ``config``, or the fields of `EngineConfig` as keywords (``kv_tokens=8192``), but not both. ``lora``
        makes an adapter to train, ``seed`` initialises it and the sampler's noise, and
        ``progress(done, total)`` is called for each tensor read. Raises EngineError for an unknown option,
        and CheckpointError naming file and tensor for a folder that cannot be loaded.
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
                self.policy_version,
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

        A request's ``model`` is ``base`` (the adapter off; the model's own name too) or ``policy``.
        ``aliases``: other names for these two, such as one that an environment asks for. Raises EngineError
        without a tokenizer.
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

    # -- training ---

    def train(self, data: Sequence[Group] | Sequence[Sample], config: GRPO | SFT) -> dict[str, float]:
        """Train on groups with GRPO (from rewards, or from advantages where a sample has one), or with SFT.

        SFT takes samples or groups, with masks. Each rank passes its own part, and may pass none. Groups
        without a trained token are left out and counted (``masked_groups``). A minibatch whose gradient is 0
        everywhere, for example because no group has spread, makes no step: the adapter, the moments and the
        schedule stay (``zero_gradient`` counts them).

        Returns statistics over all ranks and steps (`update.means`); ``loss`` has the gradient's divisor, and
        ``grad_norm``, ``lr``, ``step`` and ``normalizer`` are those of the last step. `policy_version` has
        then advanced by the steps and the next sample uses the new weights; samples in flight are finished
        before, under the old ones, or go on under the new ones (`EngineConfig.max_staleness`). Ranks meet
        where their gradients are summed. Raises EngineError, on every rank, for rewards and advantages that
        are missing, NaN or infinite, and for greedy samples; NothingToTrain where no rank has data.
        """
        train = partial(training.train, self._trainer(), self._policy, data, config)
        return self._loop.change(train, update=True)

    def early_gradient(self, config: GRPO) -> EarlyGradient | None:
        """For a rank that has groups to train on while others still sample; its `EarlyGradient.train` takes
        the place of `train`. None on a single rank, and where ``config`` needs the groups of all ranks first
        (`EarlyGradient.possible`).
        """
        trainer = self._trainer()
        if self.world_size == 1 or not EarlyGradient.possible(config):
            return None
        return EarlyGradient(trainer, self._policy, self._loop, config)

    def plan(self, groups: Sequence[Group], config: GRPO | SFT | Loss | None = None) -> GroupPlan:
        """What `train` (or `forward_backward`, with a loss) would compute for ``groups``, from their tokens.

        Tokens and chunks are those of the step itself; its peak of memory and its shares of the time are
        computed from shapes. Groups need no rewards. Raises EngineError as `train` does for tokens that
        cannot be trained.
        """
        groups = listed(groups, (Group,), "plan")
        lora = self._trainer().lora.lora
        budgets = self._policy.budgets
        return group_planner(self.decoder, lora, budgets).plan(groups, config)

    def forward_backward(self, trees: Sequence[Tree] | Sequence[Group], loss: Loss) -> dict[str, float]:
        """Add the gradient of ``loss`` over trees (or groups) to the adapter's; returns this rank's sums.

        Follow with `step`, or with `reduce_gradients` and an optimizer of your own. Any number of calls, on
        any number of ranks, adds up to one gradient. Groups without a trained token are left out. After a
        call that raised, the gradient is incomplete and `step` raises EngineError until `zero_grad`. Raises
        EngineError for a loss that returns no scalar tensor with a gradient (`loss.evaluate`).
        """
        trainer = self._trainer()
        units: Sequence[Group | Tree] = listed(trees, (Group, Tree), "forward_backward")
        if not callable(loss):
            raise EngineError(f"forward_backward: loss should be a function, not {short(loss)}")
        groups = [g for unit in units for g in (unit.groups if isinstance(unit, Tree) else [unit])]
        check_groups(groups, self.policy_version)
        self._policy.refuse_long(groups, gradient=True)
        add = partial(trainer.forward_backward, groups, loss, version=self.policy_version)
        tally = self._owner.call(add)
        return {**tally.sums, **tally.maxima}

    def reduce_gradients(self) -> float:
        """Sum ``.grad`` of `parameters` over ranks and divide by the normaliser, which is returned.

        For a caller's own optimizer; `step` does it itself.
        """
        return self._owner.call(self._trainer().reduce)

    def step(self, config: AdamW | None = None) -> dict[str, float]:
        """Reduce, clip and apply one AdamW step.

        A gradient that is not finite, or 0 everywhere, is dropped: nothing changes, no new version. Samples
        in flight: as `train`.
        """
        config = AdamW() if config is None else instance(config, AdamW, "step: config")
        step = partial(training.step, self._trainer(), self._policy, config)
        return self._loop.change(step, update=True)

    def weights_changed(self) -> None:
        """Declare that the adapter was changed; its cached KV is dropped. For a caller's own optimizer.

        Change it only while nothing is sampled: samples in flight mix both weights.
        """
        self._loop.change(self._policy.advance)

    def zero_grad(self) -> None:
        """Forget accumulated gradients."""
        self._owner.call(self._trainer().zero_grad)

    def parameters(self) -> list[Tensor]:
        """The adapter's leaves (float32 views of one flat buffer), for a caller's own optimizer."""
        return self._trainer().lora.leaves

    def logprobs(
        self,
        sequences: Sequence[Sequence[int]],
        spans: Sequence[tuple[int, int]] | None = None,
        adapter: bool = True,
        trees: Sequence[Hashable] | None = None,
    ) -> list[Tensor]:
        """Log-probabilities (temperature 1) of ids[start:end] of each sequence, float32 on the CPU.

        ``spans`` are (start, end) with start >= 1; without them, everything from the second id on.
        ``adapter`` False takes the bare base model. ``trees``: one key a sequence (`Group.tree`); sequences
        of one key compute their common beginning once, in deterministic mode too. Raises EngineError naming
        the sequence whose ids, length or span cannot be.
        """
        return self._owner.call(partial(sequence_logprobs, self._policy, sequences, spans, adapter, trees))

    def greedy(self, sequences: Sequence[Sequence[int]], adapter: bool = True) -> list[Tensor]:
        """What greedy sampling would write in place of each id of ``sequences`` from the second on, given the
        ids before it: int64 on the CPU. ``adapter`` and errors as `logprobs`.
        """
        return self._owner.call(partial(sequence_choices, self._policy, sequences, adapter))

    def nll(self, groups: Sequence[Group]) -> float:
        """Mean negative log-likelihood (nats) of the groups' trained tokens, over all ranks; 0 where there is
        none. No update.
        """
        groups = listed(groups, (Group,), "nll")
        return self._owner.call(partial(mean_nll, self._policy, self.parallel, groups))

    # -- saving ---

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter as a PEFT folder, atomically. Raises CheckpointError when that fails."""
        lora = self._trainer().lora
        folder = path_of(folder, "save_adapter", "a folder")
        self._owner.call(partial(save_adapter, folder, lora, self.base_name or None))

    def load_adapter(self, folder: str | Path) -> None:
        """Read a PEFT folder into the adapter, and start the optimizer anew.

        Moments, step count (so the schedule) and accumulated gradient belong to the adapter before it; `save`
        and `resume` keep them. Samples in flight are finished before. Raises EngineError naming what does not
        fit (rank, scale, targets, shapes).
        """
        trainer = self._trainer()
        folder = path_of(folder, "load_adapter", "a folder")

        def load() -> None:
            self._policy.refuse_in_flight("load_adapter")
            load_adapter(folder, trainer.lora)
            trainer.reset()
            self._policy.advance()

        self._loop.change(load)

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes: tensors (adapter, both moments) and counters; and ``lora``, the
        adapter's rank, scale and targets.
        """
        return {
            **self._owner.call(self._trainer().optimizer.state),
            "policy_version": self.policy_version,
            "samplings": self.samplings,
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`. Samples in flight are finished before.

        Raises EngineError, with nothing changed, for what `check_state` refuses (an adapter of another rank,
        scale, targets or size; what is missing or not finite).
        """
        self._load_state(instance(state, Mapping, "load_state_dict: state"))

    def _load_state(self, state: Mapping[str, Any], where: str = "state") -> None:
        trainer = self._trainer()

        def load() -> None:
            self._policy.refuse_in_flight("load_state_dict")
            check_counts(state, ("policy_version", "samplings"), where=where)
            if isinstance(state.get("seed"), bool) or not isinstance(state.get("seed"), int):
                raise EngineError(f"{where}: seed should be an integer, not {state.get('seed')!r}")
            trainer.load_state(state, where)
            self._policy.restore(state["policy_version"])
            self.samplings, self.seed = state["samplings"], state["seed"]

        self._loop.change(load)

    def save(self, path: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Write the state and the caller's JSON-able ``record`` to one file, atomically.

        Rank 0 writes and the others wait. Raises EngineError, on every rank, when it cannot be written, also
        for a record that JSON cannot hold.
        """
        path = path_of(path, "save", "a file")
        record = {} if record is None else instance(record, Mapping, "save: record")
        state = self.state_dict()
        with self.parallel.together("save"):
            if self.rank == 0:
                save_state(path, state, dict(record))

    def resume(self, path: str | Path, say: Callable[[str], None] | None = None) -> dict[str, Any]:
        """Restore the state of a `save` to the bit; returns its ``record``.

        ``say`` gets a line for a save of an older version, which has no checksum. Raises EngineError, naming
        the file and with nothing changed, for one that is missing or damaged, and like `load_state_dict`.
        """
        path = path_of(path, "resume", "a file")
        state, record = load_state(path, say)
        self._load_state(state, where=str(path))
        return record
