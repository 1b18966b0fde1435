"""Generation: runs the scheduler's steps, draws tokens and records them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from proactor.engine.faults import fault_point
from proactor.engine.jobs import Job
from proactor.engine.kv import PagePool
from proactor.engine.load import LoadPolicy
from proactor.engine.memory import naming_shortage
from proactor.engine.model import Decoder
from proactor.engine.paged import PagedCache, StepRows
from proactor.engine.scheduler import Scheduler
from proactor.engine.step import Ended, Request, RequestTooLarge, SampleId, Step
from proactor.engine.text import ends_in_stop, text_before_stop
from proactor.engine.types import EngineError, FinishReason, Sample
from proactor.kernels.noise import keyed_uniforms
from proactor.kernels.op import use_triton
from proactor.kernels.sample import Filters, check_drawn, sample_tokens

LESS = "set kv_tokens or max_batch to less"
T = TypeVar("T")


@dataclass(slots=True)
class _Row:
    """A row of logits, from which one token of a sample is drawn."""

    job: Job
    id: SampleId

    @property
    def sample(self) -> Sample:
        """The sample that the token is appended to."""
        return self.job.samples[self.id[1]]


class Sampler:
    """Continuous batching over a paged cache for one decoder. Used by one thread alone.

    ``named``: bool [V] on the CPU, False for ids without a token (padding), which are never drawn; None: all
    have one. ``parked``: pages that may be kept for samples to be continued. ``policy``: as `Scheduler`.
    """

    def __init__(
        self,
        decoder: Decoder,
        tokenizer: Any,
        pages: int,
        page_size: int,
        max_rows: int,
        max_seqs: int,
        named: Tensor | None = None,
        parked: int = 0,
        policy: LoadPolicy | None = None,
    ) -> None:
        self.decoder, self.tokenizer, self.named = decoder, tokenizer, named
        self._named = None if named is None else named.to(decoder.device)
        pool = PagePool(pages, page_size)
        self.scheduler = Scheduler(pool, max_rows, max_seqs, parked=parked, policy=policy)
        self.cache = PagedCache(decoder.config, pages, page_size, decoder.dtype, decoder.device)
        self.rows = StepRows(self.cache, decoder.config.head_dim**-0.5, decoder.form.exact)
        self.tokens_sampled = 0
        self.steps = 0
        self._next_id = 0
        self._jobs: dict[int, Job] = {}  # by request id
        self._failures: dict[int, BaseException] = {}

    def free_cache(self) -> None:
        """Give the cache's memory back, with all KV in it; the next `add` takes it again."""
        assert self.scheduler.idle, "samples still run"
        self.scheduler.drop_all()
        self.cache.release()

    def add(self, job: Job, priority: int = 0) -> int:
        """Queue a job; returns its request id. Raises EngineError for a prompt that the cache cannot hold."""
        request = Request(
            self._next_id,
            job.namespace,
            job.prompt_ids,
            job.sampling.n,
            job.limit,
            priority,
            job.known,
            job.lease,
        )
        self.cache.allocate()
        try:
            self.scheduler.add(request)
        except RequestTooLarge as error:
            raise EngineError(
                f"prompt {job.index}: {str(error).partition(': ')[2]}; give Engine.load more kv_tokens"
            ) from error
        job.samples = _records(job)
        self._jobs[request.id] = job
        self._next_id += 1
        return request.id

    def abort(self, request: int) -> None:
        """Drop a request and free its pages."""
        del self._jobs[request]
        self.scheduler.abort(request)

    def step(self) -> list[Ended]:
        """Run one step; returns the samples that ended in it. `finish` each, and look at `take_failures`."""
        began = time.perf_counter()
        step = self.scheduler.plan()
        if step is None:
            return []
        fault_point("sampling")
        with naming_shortage(self.decoder.device, f"a sampler step of {step.rows} rows", LESS):
            ended = self._step(step)
        self.scheduler.load.took(time.perf_counter() - began)
        return ended

    def take_failures(self) -> list[tuple[int, BaseException]]:
        """What was raised on behalf of single requests since the last time: (request id, error)."""
        failures, self._failures = self._failures, {}
        return list(failures.items())

    def reset(self) -> None:
        """Drop everything, after a step that failed."""
        self._jobs.clear()
        self._failures.clear()
        self.scheduler.reset()

    def finish(self, ended: Ended) -> Job:
        """Complete the record of a sample that ended; returns its job. Raises EngineError for its text."""
        job = self._jobs.pop(ended.request_id) if ended.last else self._jobs[ended.request_id]
        reason: FinishReason = ended.reason
        if reason == "length" and job.limit < job.sampling.max_tokens:
            reason = "context"
        self._close(job, job.samples[ended.sample], reason)
        return job

    def cut(self, job: Job, reason: FinishReason) -> None:
        """End a job's samples as they are; those that ended stay as they ended. It runs no more."""
        job.samples = job.samples or _records(job)
        for sample in job.samples:
            if sample.finish_reason == "outside":
                self._close(job, sample, reason)

    def _close(self, job: Job, sample: Sample, reason: FinishReason) -> None:
        sample.finish_reason = reason
        if self.tokenizer is not None:
            sample.text = text_before_stop(self.tokenizer, sample.token_ids, job.sampling.stop)

    @torch.no_grad()
    def _step(self, step: Step) -> list[Ended]:
        self.cache.prepare(step)
        ids, positions, view = self.rows.build(step)
        mask, adapter = _adapter_mask(step, self._jobs, self.decoder.device)
        hidden = self.decoder.hidden(ids, positions, view, adapter, mask)
        rows, source = _drawn_rows(step, self._jobs)
        self.steps += 1
        if not rows:
            return self.scheduler.commit(step, {})
        device = self.decoder.device
        unique, place = np.unique(source, return_inverse=True)
        normed = self.decoder.final_norm(hidden.index_select(0, torch.from_numpy(unique).to(device)))
        logits = self.decoder.head_linear(normed, self.decoder.head)
        if not use_triton(logits):  # the kernel reads half types itself
            logits = logits.float()
        if len(logits) != len(source):
            logits = logits.index_select(0, torch.from_numpy(place).to(device))
        tokens = self._draw(logits, rows)
        self.tokens_sampled += len(rows)
        finished = {row.id for row, token in zip(rows, tokens, strict=True) if self._stops(row, token)}
        sampled = {row.id: token for row, token in zip(rows, tokens, strict=True)}
        ended = self.scheduler.commit(step, sampled, finished)
        if self.scheduler.idle:
            self.rows.forget()
        return ended

    def _draw(self, logits: Tensor, rows: list[_Row]) -> list[int]:
        """Draw one token a row from logits [B, V] and record it. Synchronises with the device once."""
        device = logits.device
        temperature = torch.tensor([row.job.sampling.temperature for row in rows], device=device)
        keys = np.asarray([_noise_key(row) for row in rows], np.int64)
        uniforms = keyed_uniforms(torch.from_numpy(keys).to(device))
        filters = self._filters(rows, logits)
        columns = sample_tokens(logits, temperature, uniforms, filters, checked=False)
        # float64 holds ids and log-probabilities exactly, so that one copy brings all three
        ids, logprobs, policy = torch.stack([column.double() for column in columns]).tolist()
        tokens = [int(token) for token in ids]
        check_drawn(tokens)
        for row, token, logprob, policy_logprob in zip(rows, tokens, logprobs, policy, strict=True):
            sample = row.sample
            sample.token_ids.append(token)
            sample.logprobs.append(logprob)
            sample.policy_logprobs.append(policy_logprob)
        return tokens

    def _filters(self, rows: list[_Row], logits: Tensor) -> Filters | None:
        settings = [row.job.sampling for row in rows]
        if self._named is None and not any(s.filtered for s in settings):
            return None
        allowed = None
        if self._named is not None or any(s.logit_mask is not None for s in settings):
            allowed = torch.ones(logits.shape, dtype=torch.bool, device=logits.device)
            if self._named is not None:
                allowed &= self._named
            for i, row in enumerate(rows):
                mask = self._on_behalf(row, partial(self._mask, row, logits.shape[1]))
                if mask is not None:
                    allowed[i] &= mask.to(logits.device)
        device = logits.device
        return Filters(
            torch.tensor([s.top_k for s in settings], device=device),
            torch.tensor([s.top_p for s in settings], device=device),
            torch.tensor([s.min_p for s in settings], device=device),
            allowed,
        )

    def _on_behalf(self, row: _Row, call: Callable[[], T]) -> T | None:
        """What ``call`` returns, or None where it raises: that ends the row's request, and no other."""
        if row.id[0] in self._failures:
            return None
        try:
            return call()
        except BaseException as error:  # noqa: BLE001 - raised by the request's caller
            self._failures[row.id[0]] = error
            return None

    def _mask(self, row: _Row, width: int) -> Tensor | None:
        """What the request's ``logit_mask`` allows next, checked; None for everything."""
        hook, ids = row.job.sampling.logit_mask, row.sample.token_ids
        mask = hook(ids, len(ids)) if callable(hook) else None
        if mask is None:
            return None
        where = f"prompt {row.job.index}: logit_mask"
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (width,):
            shown = (
                f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            )
            raise EngineError(f"{where}: should return a bool tensor [{width}] or None, not {shown}")
        drawable = mask if self.named is None else mask & self.named.to(mask.device)
        if not bool(drawable.any()):  # before the copy: a CPU mask needs no sync
            raise EngineError(f"{where}: no token allowed at position {len(ids)}")
        return mask

    def _stops(self, row: _Row, token: int) -> bool:
        if token in row.job.end_ids:
            return True
        stop = row.job.sampling.stop
        if not stop:
            return False
        return bool(self._on_behalf(row, partial(ends_in_stop, self.tokenizer, row.sample.token_ids, stop)))


def _records(job: Job) -> list[Sample]:
    """Samples without a token; until they end their finish reason is ``outside``."""
    return [
        Sample(
            job.prompt_ids,
            [],
            policy_version=job.version,
            temperature=job.sampling.temperature,
            noise=(*job.noise, job.first + i),
        )
        for i in range(job.sampling.n)
    ]


def _noise_key(row: _Row) -> tuple[int, int, int, int, int]:
    """(seed, iteration, group key, sample, position), each an int64: what the noise of a draw depends on."""
    sample = row.sample
    assert sample.noise is not None
    seed, iteration, key, index = sample.noise
    if seed >= 1 << 63:  # the same 64 bits, signed
        seed -= 1 << 64
    return seed, iteration, key, index, row.job.offset + len(sample.token_ids)


def _drawn_rows(step: Step, jobs: dict[int, Job]) -> tuple[list[_Row], np.ndarray[Any, np.dtype[np.int64]]]:
    """The draws of this step and the hidden row of each: one a decode, n for a prompt's last chunk."""
    rows, source = [], []
    for i, decode in enumerate(step.decodes):
        job = jobs[decode.id[0]]
        rows.append(_Row(job, decode.id))
        source.append(i)
    at = len(step.decodes)
    for chunk in step.prefills:
        at += len(chunk.ids)
        if chunk.last:
            job = jobs[chunk.request_id]
            rows.extend(_Row(job, (chunk.request_id, s)) for s in chunk.request.samples)
            source.extend([at - 1] * chunk.request.n)
    return rows, np.asarray(source, np.int64)


def _adapter_mask(step: Step, jobs: dict[int, Job], device: torch.device) -> tuple[Tensor | None, bool]:
    """(adapter switch a row, None when all agree; whether any row uses the adapter)."""
    uses = [jobs[d.id[0]].sampling.adapter for d in step.decodes]
    for chunk in step.prefills:
        uses.extend([jobs[chunk.request_id].sampling.adapter] * len(chunk.ids))
    if all(uses) or not any(uses):
        return None, bool(uses[0])
    return torch.tensor(uses, dtype=torch.float32, device=device), True
