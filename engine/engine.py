"""`Engine`, the public object: the frozen weights, the KV cache, the adapter and its gradients."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Generator, Hashable, Mapping, Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from proactor.engine.adapter_io import load_adapter, save_adapter
from proactor.engine.chat import ChatFormat
from proactor.engine.config import GRPO, SFT, AdamW, EngineConfig, LoRA, Sampling
from proactor.engine.loading import Model, build
from proactor.engine.logprobs import sequence_logprobs, total_nll
from proactor.engine.loss import GRPOLoss, Loss, SFTLoss
from proactor.engine.model import Decoder
from proactor.engine.paged import cache_pages
from proactor.engine.parallel import Parallel
from proactor.engine.prompts import Prompt, check_keys, check_prompts, is_messages, token_ids
from proactor.engine.sampler import GroupStream, Job, Sampler
from proactor.engine.state import read_state, write_state
from proactor.engine.text import named_ids
from proactor.engine.trainer import Tally, Trainer
from proactor.engine.tree import Tree
from proactor.engine.types import BASE_VERSION, EngineError, Group, Sample
from proactor.engine.update import Batch, deal, means, prepare, statistics

T = TypeVar("T")
UINT64 = 0xFFFFFFFFFFFFFFFF
RELEASED = "this engine was released; load another one"


class Engine:
    """Sampler and trainer on one copy of the weights. Made by `Engine.load`.

    Attributes: ``config`` (the model's `ModelConfig`), ``options`` (its `EngineConfig`), ``tokenizer`` and
    ``chat`` (None where the folder has no tokenizer), ``vocabulary`` (1 + the highest id that has a token),
    ``policy_version`` (updates of the adapter so far), ``samplings`` (calls of `sample` and `stream` so far).
    """

    def __init__(self, model: Model, options: EngineConfig, seed: int = 0, name: str = "") -> None:
        decoder, tokenizer = model.decoder, model.tokenizer
        self.config, self.options, self.seed, self.base_name = model.config, options, seed, name
        self._decoder: Decoder | None = decoder
        self.tokenizer = tokenizer
        self.chat = ChatFormat(tokenizer) if tokenizer is not None else None
        self.parallel = Parallel(decoder.device)
        self.trainer = Trainer(decoder, self.parallel, options.token_budget) if decoder.lora else None
        self.policy_version = 0
        self.samplings = 0
        self._epoch = 0
        self._sampler: Sampler | None = None
        self.eos_ids = frozenset(self.config.eos_ids)
        self.vocabulary = self.config.vocab_size
        self._named: Tensor | None = None
        if tokenizer is not None:
            self.eos_ids |= {tokenizer.eos_token_id} - {None}
            self._name_ids(tokenizer)

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
        if config is not None and options:
            raise EngineError(f"Engine.load: a config and options ({', '.join(options)}): give one of them")
        for name, value, kind in (("config", config, EngineConfig), ("lora", lora, LoRA)):
            if not isinstance(value, kind | None):
                raise EngineError(f"Engine.load: {name} should be a {kind.__name__}, not {value!r:.60}")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise EngineError(f"Engine.load: seed should be an integer, not {seed!r}")
        config = config or EngineConfig.from_options(options)
        return cls(build(path, config, lora, seed, progress), config, seed, str(path))

    def _name_ids(self, tokenizer: Any) -> None:
        """Find the padding of the vocabulary: ids without a token, between the others or after them."""
        size = self.config.vocab_size
        ids = {*named_ids(tokenizer, size), *(i for i in self.eos_ids if i < size)}
        self.vocabulary = max(ids, default=-1) + 1
        if len(ids) < size:
            self._named = torch.zeros(size, dtype=torch.bool)
            self._named[list(ids)] = True

    # -- readings ---

    @property
    def decoder(self) -> Decoder:
        """The model. Raises EngineError after `release`."""
        if self._decoder is None:
            raise EngineError(RELEASED)
        return self._decoder

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its completion."""
        return self.config.context_length

    @property
    def rank(self) -> int:
        """This process among `world_size`, from 0."""
        return self.parallel.rank

    @property
    def world_size(self) -> int:
        """Processes that train together."""
        return self.parallel.world_size

    @property
    def deterministic(self) -> bool:
        """Whether results are bitwise independent of batching and ranks."""
        return self.decoder.form.exact

    def memory(self) -> dict[str, int]:
        """Bytes by kind: those of `Decoder.nbytes`, the optimizer, and the KV cache."""
        optimizer = 2 * self.trainer.m.nbytes if self.trainer else 0
        return {
            **self.decoder.nbytes(),
            "optimizer": optimizer,
            "kv": self._sampler.cache.nbytes if self._sampler else 0,
        }

    def counters(self) -> dict[str, int]:
        """Totals since loading: model rows, steps skipped because the gradient was not finite or was 0
        everywhere (``empty_steps``), tokens sampled, and `Scheduler.counters`.
        """
        counters = {
            "rows_computed": self.decoder.rows_computed,
            "skipped_steps": self.trainer.skipped_steps if self.trainer else 0,
            "empty_steps": self.trainer.empty_steps if self.trainer else 0,
        }
        if self._sampler is not None:
            counters["tokens_sampled"] = self._sampler.tokens_sampled
            counters |= self._sampler.scheduler.counters()
        return counters

    # -- sampling ---

    def encode(self, prompt: Prompt) -> list[int]:
        """Token ids of one prompt: text (no template), messages (with the generation prompt), or plain ids.

        Text gets the begin token where the tokenizer adds one (`ChatFormat.encode_text`). Raises EngineError
        for anything else.
        """
        if isinstance(prompt, str):
            return self._chat().encode_text(prompt)
        if is_messages(prompt):
            return self._chat().encode(prompt, add_generation_prompt=True)  # type: ignore[arg-type]
        return token_ids(prompt)

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
        groups: dict[int, Group] = dict(self._generate(prompts, sampling, keys))
        return [groups[i] for i in range(len(prompts))]

    def stream(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None = None,
        keys: Sequence[int] | None = None,
    ) -> AsyncIterator[Group]:
        """``async for`` over groups, each as soon as its last sample ends, so that judging overlaps sampling.

        Arguments and errors as `sample`. Leaving the loop ends the samples that still run. While there are
        such, the weights must not change: `train`, `step`, `weights_changed`, `load_adapter`,
        `load_state_dict` and `resume` raise EngineError.
        """
        return GroupStream(self._generate(prompts, sampling, keys))

    def _generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] | None,
        keys: Sequence[int] | None,
    ) -> Generator[tuple[int, Group]]:
        check_prompts(prompts)
        if isinstance(sampling, Sampling | None):
            settings = [sampling or Sampling()] * len(prompts)
        else:
            settings = list(sampling) if isinstance(sampling, Sequence) else [sampling]
        if not all(isinstance(s, Sampling) for s in settings):
            raise EngineError("sample: sampling should be a Sampling, or a list of one per prompt")
        if keys is None:
            keys = range(len(prompts))
        if len(keys) != len(prompts) or len(settings) != len(prompts):
            raise EngineError(
                f"sample: {len(prompts)} prompts with {len(keys)} keys and {len(settings)} settings"
            )
        check_keys(keys)
        if self.tokenizer is None and any(s.stop for s in settings):
            raise EngineError("stop: stop strings need a tokenizer; use stop_ids")
        jobs = []
        for i, (prompt, setting, key) in enumerate(zip(prompts, settings, keys, strict=True)):
            seed, step = (self.seed, self.samplings) if setting.seed is None else (setting.seed, 0)
            try:
                ids = self.encode(prompt)
            except EngineError as error:
                raise type(error)(f"prompt {i}: {error}") from error
            jobs.append(self._job(i, ids, setting, (seed & UINT64, step, _noise_key(i, key))))
        self.samplings += 1
        return self._run(self._ready_sampler(), jobs)

    def _run(self, sampler: Sampler, jobs: list[Job]) -> Generator[tuple[int, Group]]:
        """`Sampler.run` on the weights of its start, which may be later than the call that made the jobs."""
        for job in jobs:
            job.namespace, job.version = self._origin(job.sampling)
        yield from sampler.run(jobs)

    def _job(self, index: int, ids: list[int], sampling: Sampling, noise: tuple[int, int, int]) -> Job:
        if not ids or min(ids) < 0 or max(ids) >= self.config.vocab_size:
            raise EngineError(f"prompt {index}: empty, or with ids outside 0 … {self.config.vocab_size - 1}")
        room = self.context_length - len(ids)
        if room < 1:
            raise EngineError(
                f"prompt {index}: {len(ids)} tokens leave no room in a context of {self.context_length}"
            )
        ends = frozenset(sampling.stop_ids)
        if not sampling.ignore_eos:
            ends |= self.eos_ids
        if max(sampling.stop_ids, default=0) >= self.config.vocab_size:
            raise EngineError(f"prompt {index}: stop_ids outside 0 … {self.config.vocab_size - 1}")
        namespace, version = self._origin(sampling)
        limit = min(sampling.max_tokens, room)
        return Job(ids, sampling, noise, namespace, version, limit, ends, index=index)

    def _origin(self, sampling: Sampling) -> tuple[Hashable, int]:
        """(cache key of the KV, policy version of the samples) of the present weights."""
        adapter = sampling.adapter and self.decoder.lora is not None
        namespace = self._adapter_namespace() if adapter else ("base", self.decoder.dtype)
        return namespace, self.policy_version if adapter or self.decoder.lora is None else BASE_VERSION

    def _adapter_namespace(self) -> Hashable:
        """Cache key of KV computed with the adapter's present weights."""
        return ("adapter", self._epoch, self.decoder.dtype)

    def _ready_sampler(self) -> Sampler:
        """The sampler, made with its KV cache when it is first needed."""
        if self._sampler is None:
            options, decoder = self.options, self.decoder
            pages = cache_pages(options, self.config, decoder.dtype, decoder.device)
            rows = max(options.token_budget, options.max_batch)
            self._sampler = Sampler(
                decoder, self.tokenizer, pages, options.page_size, rows, options.max_batch, self._named
            )
        return self._sampler

    def _chat(self) -> ChatFormat:
        if self.chat is None:
            raise EngineError(
                f"{self.base_name}: no tokenizer in the model folder, so prompts must be token ids"
            )
        return self.chat

    # -- training ---

    def train(self, data: Sequence[Group] | Sequence[Sample], config: GRPO | SFT) -> dict[str, float]:
        """Train on groups with GRPO (from rewards, or from advantages where a sample has one), or with SFT.

        SFT takes samples or groups, with masks. Each rank passes its own part, and may pass none. Groups
        without a trained token are left out and counted (``masked_groups``). A minibatch whose gradient is 0
        everywhere, for example because no group has spread, makes no step: the adapter, the moments and the
        schedule stay (``zero_gradient`` counts them).

        Returns statistics over all ranks and steps (`update.means`); ``loss`` has the gradient's divisor, and
        ``grad_norm``, ``lr``, ``step`` and ``normalizer`` are those of the last step. `policy_version` has
        then advanced by the steps and the next sampled token uses the new weights. Raises EngineError, on
        every rank, for rewards and advantages that are missing, NaN or infinite, for greedy samples, and
        while samples of a stream still run.
        """
        trainer = self._trainer()
        with self.parallel.together():
            self._refuse_in_flight("train")
            groups = _groups(data, config)
            sums: dict[str, float] = {}
            if isinstance(config, GRPO):
                groups, sums = prepare(groups, config, self.decoder.device)
        if not any(self.gather(bool(data))):
            raise EngineError("train: nothing to train on")
        trainer.zero_grad()  # an earlier call that raised may have left gradients
        if isinstance(config, GRPO):
            return self._update(deal(groups, config, self.parallel), GRPOLoss(config), config, sums)
        return self._update([(groups, None)], SFTLoss(config), config, sums)

    def _update(
        self, batches: list[Batch], loss: Loss, config: AdamW, sums: dict[str, float]
    ) -> dict[str, float]:
        trainer, tally = self._trainer(), Tally()
        tally.add(sums)
        steps: list[dict[str, float]] = []
        for groups, counted in batches:
            with self.parallel.together():
                tally.merge(trainer.forward_backward(groups, loss, counted, self.policy_version))
            steps.append(self._step(config))
        sums, maxima = self.parallel.reduce(statistics(tally), {"ratio_max_error": 0.0, **tally.maxima})
        taken = [s for s in steps if not s["zero_gradient"]] or steps
        counts = {name: sum(s[name] for s in steps) for name in ("nonfinite_gradient", "zero_gradient")}
        normalizer = sum(s["normalizer"] for s in steps)
        version = float(self.policy_version)
        return {**means(sums, normalizer), **maxima, **taken[-1], **counts, "policy_version": version}

    def forward_backward(self, trees: Sequence[Tree] | Sequence[Group], loss: Loss) -> dict[str, float]:
        """Add the gradient of ``loss`` over trees (or groups) to the adapter's; returns this rank's sums.

        Follow with `step`, or with `reduce_gradients` and an optimizer of your own. Any number of calls, on
        any number of ranks, adds up to one gradient. Groups without a trained token are left out. After a
        call that raised, the gradient is incomplete and `step` raises EngineError until `zero_grad`.
        """
        groups = [g for t in trees for g in (t.groups if isinstance(t, Tree) else [t])]
        tally = self._trainer().forward_backward(groups, loss, version=self.policy_version)
        return {**tally.sums, **tally.maxima}

    def reduce_gradients(self) -> float:
        """Sum ``.grad`` of `parameters` over ranks and divide by the normaliser, which is returned.

        For a caller's own optimizer; `step` does it itself.
        """
        return self._trainer().reduce()

    def step(self, config: AdamW | None = None) -> dict[str, float]:
        """Reduce, clip and apply one AdamW step.

        A gradient that is not finite, or 0 everywhere, is dropped: nothing changes, no new version.
        """
        self._trainer()
        with self.parallel.together():
            self._refuse_in_flight("step")
        return self._step(config or AdamW())

    def _step(self, config: AdamW) -> dict[str, float]:
        stepped = self._trainer().step(config)
        if not stepped["nonfinite_gradient"] and not stepped["zero_gradient"]:
            self.weights_changed()
        return stepped

    def weights_changed(self) -> None:
        """Declare that the adapter was changed; its cached KV is dropped. For a caller's own optimizer.

        Raises EngineError while samples of a stream still run: they mix both weights.
        """
        self._refuse_in_flight("weights_changed")
        self.policy_version += 1
        self._open_epoch()

    def _refuse_in_flight(self, call: str) -> None:
        if self._sampler is not None and not self._sampler.scheduler.idle:
            raise EngineError(
                f"{call}: a stream is open, and its samples need the weights that it began with; finish the "
                "stream or close it (aclose) first"
            )

    def _open_epoch(self) -> None:
        if self._sampler is not None:
            self._sampler.scheduler.drop_namespace(self._adapter_namespace())
        self._epoch += 1

    def zero_grad(self) -> None:
        """Forget accumulated gradients."""
        self._trainer().zero_grad()

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
        of one key compute their common beginning once, in deterministic mode too.
        """
        if spans is None:
            spans = [(1, len(ids)) for ids in sequences]
        return sequence_logprobs(self.decoder, sequences, spans, adapter, self.options.token_budget, trees)

    def nll(self, groups: Sequence[Group]) -> float:
        """Mean negative log-likelihood (nats) of the groups' trained tokens, over all ranks. No update."""
        with self.parallel.together():
            total, count = total_nll(self.decoder, groups, self.options.token_budget)
        sums, _ = self.parallel.reduce({"total": total, "count": count}, {})
        return sums["total"] / max(sums["count"], 1.0)

    def _trainer(self) -> Trainer:
        if self._decoder is None:
            raise EngineError(RELEASED)
        if self.trainer is None:
            raise EngineError("this engine has no adapter to train: load it with lora=LoRA(...)")
        return self.trainer

    # -- ranks ---

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list of whole units (groups, dialogues)."""
        return self.parallel.share(items)

    def gather(self, value: T) -> list[T]:
        """Every rank's picklable ``value``, in rank order, on every rank."""
        return self.parallel.gather(value)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.parallel.barrier()

    # -- saving ---

    def save_adapter(self, folder: str | Path) -> None:
        """Write the adapter as a PEFT folder, atomically. Raises CheckpointError when that fails."""
        save_adapter(folder, self._trainer().lora, self.base_name or None)

    def load_adapter(self, folder: str | Path) -> None:
        """Read a PEFT folder into the adapter, and start the optimizer anew.

        Moments, step count (so the schedule) and accumulated gradient belong to the adapter before it; `save`
        and `resume` keep them. Raises EngineError naming what does not fit (rank, scale, targets, shapes),
        and while samples of a stream still run.
        """
        self._refuse_in_flight("load_adapter")
        load_adapter(folder, self._trainer().lora)
        self._trainer().reset()
        self.weights_changed()

    def state_dict(self) -> dict[str, Any]:
        """Everything that training changes: tensors (adapter, both moments) and counters; and ``lora``, the
        adapter's rank, scale and targets.
        """
        return {
            **self._trainer().state(),
            "policy_version": self.policy_version,
            "samplings": self.samplings,
            "seed": self.seed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`.

        Raises EngineError, with nothing changed, for an adapter of another rank, scale, targets or size, and
        while samples of a stream still run.
        """
        self._refuse_in_flight("load_state_dict")
        self._trainer().load_state(state)
        self.policy_version = int(state["policy_version"])
        self.samplings = int(state["samplings"])
        self.seed = int(state["seed"])
        self._open_epoch()

    def save(self, path: str | Path, record: Mapping[str, Any] | None = None) -> None:
        """Write the state and the caller's JSON-able ``record`` to one file, atomically.

        Rank 0 writes and the others wait. Raises EngineError, on every rank, when it cannot be written.
        """
        state = self.state_dict()
        tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
        numbers = {k: v for k, v in state.items() if not isinstance(v, Tensor)}
        with self.parallel.together():
            if self.rank == 0:
                write_state(path, tensors, {"engine": numbers, "caller": dict(record or {})})

    def resume(self, path: str | Path) -> dict[str, Any]:
        """Restore the state of a `save` to the bit; returns its ``record``. Raises like `load_state_dict`."""
        tensors, record = read_state(path)
        self.load_state_dict({**tensors, **record["engine"]})
        caller: dict[str, Any] = record["caller"]
        return caller

    def release(self) -> None:
        """Free the cache, the weights and the optimizer. Later calls raise EngineError."""
        self.parallel.release()
        self._sampler = self.trainer = self._decoder = None
        if self.parallel.device.type == "cuda":
            torch.cuda.empty_cache()


def _groups(data: Sequence[Group] | Sequence[Sample], config: GRPO | SFT) -> list[Group]:
    """The groups to train on; SFT's samples become groups of one."""
    if isinstance(config, GRPO):
        if not all(isinstance(g, Group) for g in data):
            raise EngineError("train: GRPO takes groups")
    elif not all(isinstance(x, Sample | Group) for x in data):
        raise EngineError("train: SFT takes samples or groups")
    return [Group(x.prompt_ids, [x]) if isinstance(x, Sample) else x for x in data]


def _noise_key(prompt: int, key: object) -> int:
    """A group's noise key. Raises EngineError unless it is an integer of the 32 bits that the noise holds."""
    if isinstance(key, Integral) and 0 <= int(key) < 1 << 32:
        return int(key)
    raise EngineError(f"prompt {prompt}: key {key} is not an integer of 0 … {(1 << 32) - 1}")
