"""`Policy`: the adapters as the sampler sees them, with their versions and cache keys; and the KV cache."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from proactor.engine.adapter_names import POLICY
from proactor.engine.batching import load_policy
from proactor.engine.config import EngineConfig
from proactor.engine.jobs import Job
from proactor.engine.lora import LoRABuffer
from proactor.engine.memory import Budgets
from proactor.engine.model import Decoder
from proactor.engine.packing import refuse_long
from proactor.engine.paged import cache_pages
from proactor.engine.sampler import Sampler
from proactor.engine.tree import Tree
from proactor.engine.types import BASE_VERSION, EngineError, Group
from proactor.engine.weights import Weights


class Policy:
    """One base with its adapters, and the sampler with KV computed from them.

    ``adapters``: by name, the first the default; None: that of ``decoder``, if any. ``named``: as `Sampler`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        options: EngineConfig,
        budgets: Budgets,
        named: Tensor | None = None,
        adapters: Mapping[str, LoRABuffer] | None = None,
    ) -> None:
        self.tokenizer, self.options, self.budgets, self.named = tokenizer, options, budgets, named
        self.sampler: Sampler | None = None
        if adapters is None:
            adapters = {} if decoder.lora is None else {POLICY: decoder.lora}
        self.adapters = {name: Weights(name, decoder.wearing(lora)) for name, lora in adapters.items()}
        bare = decoder.wearing(None)
        self.base = Weights("", bare, 0 if bare is decoder else BASE_VERSION)
        self.first = next(iter(self.adapters.values()), self.base)

    @property
    def decoder(self) -> Decoder:
        """The model, with the first adapter. Raises EngineError after `release`."""
        return self.first.decoder

    def refuse_released(self) -> None:
        """Raise EngineError after `release`."""
        self.decoder  # noqa: B018 - which raises it

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

    def weights(self, adapter: str | None) -> Weights:
        """Those of an adapter, or of the base."""
        return self.base if adapter is None else self.adapters[adapter]

    def versions(self) -> str:
        """How often each adapter was updated, in words; of one alone the number."""
        if len(self.adapters) == 1:
            return str(*(weights.version for weights in self.adapters.values()))
        return " ".join(f"{name} {weights.version}" for name, weights in self.adapters.items())

    def label(self, job: Job) -> None:
        """Give a job its present weights: the adapter, its version and its cache key."""
        weights = self.weights(job.adapter)
        job.lora, job.namespace, job.version = weights.decoder.lora, weights.namespace, weights.version

    def park(self, session: int, job: Job) -> None:
        """Keep the pages of a job's samples, which ``session`` may continue."""
        for sample in job.samples:
            self.ready_sampler().scheduler.park(session, job.namespace, job.prompt_ids + sample.token_ids)

    def forget(self, session: int) -> None:
        """Let go of the pages kept for ``session``."""
        if self.sampler is not None:
            self.sampler.scheduler.forget(session)

    def may_renew(self, jobs: Iterable[Job]) -> bool:
        """Whether these jobs may go on through one more update (`EngineConfig.max_staleness`)."""
        return all(job.renewals < self.options.max_staleness for job in jobs)

    @contextmanager
    def renewing(self) -> Iterator[None]:
        """A block that may change the weights between two steps. What was in flight goes on after it, with
        KV computed again where they changed.
        """
        sampler = self.ready_sampler()
        before = {name: weights.namespace for name, weights in self.adapters.items()}
        sampler.scheduler.pause()
        yield
        for name, weights in self.adapters.items():
            if weights.namespace != before[name]:
                sampler.renew(before[name], weights.namespace, weights.version)

    def refuse_in_flight(self, call: str) -> None:
        """Raise EngineError, naming ``call``, while samples run: it was called from inside their step."""
        if self.sampler is not None and not self.sampler.scheduler.resting:
            raise EngineError(
                f"{call}: called from inside a step (a logit_mask), whose samples need the weights that they "
                "began with"
            )

    def advance(self, weights: Weights) -> None:
        """Declare a new version of an adapter. Raises EngineError from inside a step."""
        self.refuse_in_flight("weights_changed")
        self.restore(weights, weights.version + 1)

    def restore(self, weights: Weights, version: int) -> None:
        """Take over the version of other weights; the KV of those before is dropped, that of others stays."""
        weights.version = version
        if weights.decoder.lora is not None:
            weights.decoder.lora.changed()
        if self.sampler is not None:
            self.sampler.scheduler.drop_namespace(weights.namespace)
        weights.epoch += 1

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
        self.sampler = None
        for weights in (self.base, *self.adapters.values()):
            weights.release()
