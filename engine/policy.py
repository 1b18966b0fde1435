"""`Policy`: the weights as the sampler sees them, with their version, their cache key and the KV cache."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from proactor.engine.batching import load_policy
from proactor.engine.config import EngineConfig, Sampling
from proactor.engine.jobs import Job
from proactor.engine.memory import Budgets
from proactor.engine.model import Decoder
from proactor.engine.owner import RELEASED
from proactor.engine.packing import refuse_long
from proactor.engine.paged import cache_pages
from proactor.engine.sampler import Sampler
from proactor.engine.tree import Tree
from proactor.engine.types import BASE_VERSION, EngineError, Group


class Policy:
    """One decoder's weights, their version, and the sampler with KV computed from them.

    ``version``: updates of the adapter so far. ``named``: as `Sampler`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        options: EngineConfig,
        budgets: Budgets,
        named: Tensor | None = None,
    ) -> None:
        self.tokenizer, self.options, self.budgets, self.named = tokenizer, options, budgets, named
        self.version = 0
        self.sampler: Sampler | None = None
        self._decoder: Decoder | None = decoder
        self._epoch = 0

    @property
    def decoder(self) -> Decoder:
        """The model. Raises EngineError after `release`."""
        if self._decoder is None:
            raise EngineError(RELEASED)
        return self._decoder

    def refuse_released(self) -> None:
        """Raise EngineError after `release`."""
        if self._decoder is None:
            raise EngineError(RELEASED)

    def ready_sampler(self) -> Sampler:
        """The sampler, made with its KV cache when it is first needed."""
        if self.sampler is None:
            options, decoder = self.options, self.decoder
            pages = cache_pages(self.budgets.tokens, options, decoder.config, decoder.dtype)
            rows, batch = self.budgets.step_rows, options.max_batch
            parked = int(options.parked_share * pages)
            self.sampler = Sampler(
                decoder,
                self.tokenizer,
                pages,
                options.page_size,
                rows,
                batch,
                self.named,
                parked,
                load_policy(options, rows),
            )
        return self.sampler

    def label(self, job: Job) -> None:
        """Give a job the cache key and the version of the present weights."""
        job.namespace, job.version = self._origin(job.sampling)

    def park(self, session: int, job: Job) -> None:
        """Keep the pages of a job's samples, which ``session`` may continue."""
        for sample in job.samples:
            self.ready_sampler().scheduler.park(session, job.namespace, job.prompt_ids + sample.token_ids)

    def forget(self, session: int) -> None:
        """Let go of the pages kept for ``session``."""
        if self.sampler is not None:
            self.sampler.scheduler.forget(session)

    def _origin(self, sampling: Sampling) -> tuple[Hashable, int]:
        """(cache key of the KV, policy version of the samples) of the present weights."""
        adapter = sampling.adapter and self.decoder.lora is not None
        namespace = self._adapter_namespace() if adapter else ("base", self.decoder.dtype)
        return namespace, self.version if adapter or self.decoder.lora is None else BASE_VERSION

    def _adapter_namespace(self) -> Hashable:
        """Cache key of KV computed with the adapter's present weights."""
        return ("adapter", self._epoch, self.decoder.dtype)

    def may_renew(self, jobs: Iterable[Job]) -> bool:
        """Whether these jobs may go on through one more update (`EngineConfig.max_staleness`)."""
        return all(job.renewals < self.options.max_staleness for job in jobs)

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """A block that may change the weights between two steps. What was in flight goes on after it, with
        KV computed again where they changed.
        """
        sampler, before = self.ready_sampler(), self._adapter_namespace()
        sampler.scheduler.pause()
        yield
        if (now := self._adapter_namespace()) != before:
            sampler.renew(before, now, self.version)

    def refuse_in_flight(self, call: str) -> None:
        """Raise EngineError, naming ``call``, while samples run: it was called from inside their step."""
        if self.sampler is not None and not self.sampler.scheduler.resting:
            raise EngineError(
                f"{call}: called from inside a step (a logit_mask), whose samples need the weights that they "
                "began with"
            )

    def advance(self) -> None:
        """Declare a new version of the adapter. Raises EngineError from inside a step."""
        self.refuse_in_flight("weights_changed")
        self.version += 1
        self.drop_cached()

    def drop_cached(self) -> None:
        """Drop the KV computed with the adapter's present weights; later KV gets another cache key."""
        if self.sampler is not None:
            self.sampler.scheduler.drop_namespace(self._adapter_namespace())
        self._epoch += 1

    def restore(self, version: int) -> None:
        """Take over the version of weights that were read from a save."""
        self.version = version
        self.drop_cached()

    def trees(self, groups: Sequence[Group], gradient: bool) -> Iterator[Tree]:
        """The trees of ``groups``, each when there is room for its pass with or without ``gradient``.

        On a GPU a group that does not fit is split; `refuse_long` first. Raises EngineError where the memory
        is needed that samples in flight hold.
        """
        for tree in self.budgets.pack(groups, gradient, self.decoder.form.exact):
            self._make_room(tree, gradient)
            yield tree

    def refuse_long(self, groups: Sequence[Group], gradient: bool) -> None:
        """Raise EngineError, naming the first, for a sample that no pass of this GPU can hold."""
        refuse_long(groups, self.budgets.most_rows(gradient))

    def _make_room(self, tree: Tree, gradient: bool) -> None:
        """Free the KV cache where a pass over ``tree`` does not fit beside it."""
        cache = self.cache_bytes()
        kept = self.budgets.kept(tree)
        if self.sampler is None or self.budgets.fits_beside(cache, tree.rows, kept, gradient):
            return
        if not self.sampler.scheduler.resting:
            raise EngineError(
                f"a pass over {tree.rows} rows: samples still run, and their KV cache takes the memory; wait "
                "for them first, or set kv_tokens to fewer"
            )
        self.sampler.free_cache()

    def cache_bytes(self) -> int:
        """Bytes of the KV cache: 0 before the first sample, and after it made room for a pass."""
        return self.sampler.cache.nbytes if self.sampler else 0

    def counters(self) -> dict[str, int]:
        """Tokens sampled and `Scheduler.counters`; empty before the first sample."""
        if self.sampler is None:
            return {}
        return {"tokens_sampled": self.sampler.tokens_sampled, **self.sampler.scheduler.counters()}

    def release(self) -> None:
        """Free the cache and the weights."""
        self.sampler = self._decoder = None
