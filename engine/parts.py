"""What an engine is made of: how its parts are put together, what can be read of them, and how they end."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TypeVar

import torch

from proactor.engine.adapter_names import chosen, trained
from proactor.engine.chat import open_chat
from proactor.engine.config import EngineConfig
from proactor.engine.grammars import Grammars
from proactor.engine.jobs import JobMaker
from proactor.engine.loading import Model
from proactor.engine.memory import Budgets
from proactor.engine.model import Decoder
from proactor.engine.owner import RELEASED, Owner
from proactor.engine.parallel import Parallel
from proactor.engine.policy import Policy
from proactor.engine.prompts import encode_prompt
from proactor.engine.sampling_loop import SamplingLoop
from proactor.engine.text import drawable_ids
from proactor.engine.text_stream import TextPieces
from proactor.engine.trainer import Trainer
from proactor.engine.types import EngineError
from proactor.engine.weights import Weights

T = TypeVar("T")


class Parts:
    """The policy (weights, sampler, KV cache), a trainer an adapter, the thread of both, and the ranks."""

    def __init__(self, model: Model, options: EngineConfig, seed: int = 0, name: str = "") -> None:
        decoder, tokenizer = model.decoder, model.tokenizer
        self.config, self.options, self.seed, self.base_name = model.config, options, seed, name
        self.tokenizer = tokenizer
        self.eos_ids = frozenset(self.config.eos_ids)
        self.chat = open_chat(tokenizer, name, self.eos_ids) if tokenizer is not None else None
        self.parallel = Parallel(decoder.device, options.rank_timeout)
        self.samplings = 0
        self.vocabulary, named = self.config.vocab_size, None
        if self.chat is not None:
            self.eos_ids |= self.chat.eos_ids
            self.vocabulary, named = drawable_ids(tokenizer, self.config.vocab_size, self.eos_ids)
        budgets = model.budgets or Budgets.fixed(options)
        self._policy = Policy(decoder, tokenizer, options, budgets, named, model.adapters)
        self.adapters = tuple(self._policy.adapters)
        trees = partial(self._policy.trees, gradient=True)
        self._trainers = {
            name: Trainer(weights.decoder, self.parallel, trees, budgets.chunk_of, name)
            for name, weights in self._policy.adapters.items()
        }
        self._owner = Owner(decoder.device)
        self._loop = SamplingLoop(self._owner, self._policy, options.max_waiting)
        encode = partial(encode_prompt, chat=self.chat, model=name)
        grammars = Grammars(tokenizer, self.config.vocab_size, self.eos_ids)
        self._maker = JobMaker(
            encode, self.config, self.eos_ids, tokenizer is not None, grammars, self.adapters
        )
        self._texts = TextPieces(tokenizer) if tokenizer is not None else None
        self._unnamed, self._counting = itertools.count(), threading.Lock()
        self._rank_events = Counter(late_groups=0, roll_calls=0)

    # -- readings ---

    @property
    def decoder(self) -> Decoder:
        """The model, with the first adapter. Raises EngineError after `release`."""
        return self._policy.decoder

    @property
    def trainer(self) -> Trainer | None:
        """That of the first adapter; None where there is none, and after `release`."""
        return next(iter(self._trainers.values()), None)

    @property
    def policy_version(self) -> int:
        """Updates of the first adapter so far."""
        return self._policy.first.version

    @property
    def versions(self) -> dict[str, int]:
        """Updates of each adapter so far."""
        return {name: weights.version for name, weights in self._policy.adapters.items()}

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

    @property
    def linear_forms(self) -> tuple[str, ...]:
        """How the base linears are held and multiplied, in words, one entry a kind."""
        return self.decoder.linear_forms()

    @property
    def seconds_waited(self) -> float:
        """Seconds since loading that this rank had its gradient and waited for the others'."""
        return sum(trainer.seconds_waited for trainer in self._trainers.values())

    def memory(self) -> dict[str, int]:
        """Bytes by kind: those of `Decoder.nbytes` with all adapters, the optimizers, and the KV cache."""
        trainers = self._trainers.values()
        held = [trainer.decoder.nbytes() for trainer in trainers]
        return {
            **self.decoder.nbytes(),
            **{kind: sum(each[kind] for each in held) for kind in ("adapter", "folded")},
            "optimizer": sum(2 * trainer.optimizer.m.nbytes for trainer in trainers),
            "kv": self._policy.cache_bytes(),
        }

    def counters(self) -> dict[str, int]:
        """Totals since loading: model rows, steps skipped because the gradient was not finite or was 0
        everywhere (``empty_steps``), tokens sampled, groups of `sample_shared` that another rank was faster
        at (``late_groups``), silences of ranks there (``roll_calls``), and `Scheduler.counters`.
        """
        return {
            "rows_computed": self.decoder.rows_computed,
            "skipped_steps": sum(t.optimizer.skipped_steps for t in self._trainers.values()),
            "empty_steps": sum(t.optimizer.empty_steps for t in self._trainers.values()),
            **self._rank_events,
            **self._policy.counters(),
        }

    def _trainer(self, adapter: str | None = None) -> Trainer:
        return self._learner(adapter)[0]

    def _learner(self, adapter: str | None = None) -> tuple[Trainer, Weights]:
        """The adapter that is to be trained, saved or loaded (`trained`)."""
        self._policy.refuse_released()
        name = trained(adapter, self.adapters)
        return self._trainers[name], self._policy.adapters[name]

    def _weights(self, adapter: bool | str | None) -> Weights:
        """Those that a caller means (`chosen`); None: the first adapter's."""
        self._policy.refuse_released()
        return self._policy.weights(chosen(True if adapter is None else adapter, self.adapters))

    # -- ranks ---

    def share(self, items: Sequence[T]) -> list[T]:
        """This rank's part of a list of whole units (groups, dialogues)."""
        return self.parallel.share(items)

    def gather(self, value: T, phase: str = "gather") -> list[T]:
        """Every rank's picklable ``value``, in rank order, on every rank.

        Raises EngineError, with ``phase``, where another rank failed, ended, or is later than
        ``rank_timeout``; so does everything else that waits for ranks.
        """
        return self.parallel.gather(value, phase)

    def barrier(self, phase: str = "barrier") -> None:
        """Wait until every rank is here. Raises EngineError as `gather` does."""
        self.parallel.barrier(phase)

    def together(self, phase: str) -> AbstractContextManager[None]:
        """A block that every rank runs, and that fails on every rank or on none.

        An exception that leaves it on one rank reaches the others where they wait, as an EngineError with
        that rank and its reason.
        """
        return self.parallel.together(phase)

    # -- the end ---

    def release(self) -> None:
        """Free the cache, the weights and the optimizer. Later calls raise EngineError, and so do those in
        flight.
        """
        if self._owner.inside:
            raise EngineError("release: called from inside the engine (a logit_mask or a loss)")
        self._loop.close(EngineError(RELEASED))
        self._owner.stop()
        self.parallel.release()
        self._policy.release()
        self._trainers.clear()
        if self.parallel.device.type == "cuda":
            torch.cuda.empty_cache()
