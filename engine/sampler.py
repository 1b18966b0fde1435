"""Generation: runs the scheduler's steps, draws tokens, and yields each group when its last sample ends."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from proactor.engine.faults import fault_point
from proactor.engine.jobs import Job
from proactor.engine.kv import PagePool
from proactor.engine.memory import naming_shortage
from proactor.engine.model import Decoder
from proactor.engine.paged import PagedCache, StepRows
from proactor.engine.scheduler import Scheduler
from proactor.engine.step import Ended, Request, RequestTooLarge, SampleId, Step
from proactor.engine.text import ends_in_stop, text_before_stop
from proactor.engine.types import EngineError, FinishReason, Group, Sample
from proactor.kernels.noise import keyed_uniforms
from proactor.kernels.op import use_triton
from proactor.kernels.sample import Filters, check_drawn, sample_tokens

LESS = "set kv_tokens or max_batch to less"


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
    """Continuous batching over a paged cache for one decoder. One `run` at a time.

    ``named``: bool [V] on the CPU, False for ids without a token (padding), which are never drawn; None: all
    have one.
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
    ) -> None:
        self.decoder, self.tokenizer, self.named = decoder, tokenizer, named
        self._named = None if named is None else named.to(decoder.device)
        self.scheduler = Scheduler(PagePool(pages, page_size), max_rows, max_seqs)
        self.cache = PagedCache(decoder.config, pages, page_size, decoder.dtype, decoder.device)
        self.rows = StepRows(self.cache, decoder.config.head_dim**-0.5, decoder.form.exact)
        self.tokens_sampled = 0
        self.steps = 0
        self._next_id = 0

    def free_cache(self) -> None:
        """Give the cache's memory back, with all KV in it; the next `run` takes it again."""
        assert self.scheduler.idle, "samples still run"
        self.scheduler.pool.drop_all()
        self.cache.release()

    def run(self, jobs: list[Job]) -> Generator[tuple[int, Group]]:
        """Yield (index of the job, its group) in the order in which groups end.

        Leaving early frees all pages. Raises EngineError while another run goes on, and for a prompt that the
        cache cannot hold.
        """
        self._refuse_second_run()
        requests: dict[int, tuple[int, Job]] = {}
        self.cache.allocate()
        try:
            for index, job in enumerate(jobs):
                job.samples = [_record(job) for _ in range(job.sampling.n)]
                self._add(index, job)
                requests[self._next_id] = index, job
                self._next_id += 1
            while (step := self.scheduler.plan()) is not None:
                fault_point("sampling")
                with naming_shortage(self.decoder.device, f"a sampler step of {step.rows} rows", LESS):
                    ends = self._step(step, requests)
                for ended in ends:
                    index, job = requests[ended.request_id]
                    self._finish(job, ended)
                    if ended.last:
                        del requests[ended.request_id]
                        yield index, Group(job.prompt_ids, job.samples, index=index)
        finally:
            if not self.scheduler.idle:
                self.scheduler.reset()

    def _refuse_second_run(self) -> None:
        if not self.scheduler.idle:
            raise EngineError("sample: another sample() or stream() is still running on this engine")

    def _add(self, index: int, job: Job) -> None:
        try:
            self.scheduler.add(
                Request(self._next_id, job.namespace, job.prompt_ids, job.sampling.n, job.limit)
            )
        except RequestTooLarge as error:
            raise EngineError(
                f"prompt {index}: {str(error).partition(': ')[2]}; give Engine.load more kv_tokens"
            ) from error

    @torch.no_grad()
    def _step(self, step: Step, requests: dict[int, tuple[int, Job]]) -> list[Ended]:
        self.cache.prepare(step)
        ids, positions, view = self.rows.build(step)
        mask, adapter = _adapter_mask(step, requests, self.decoder.device)
        hidden = self.decoder.hidden(ids, positions, view, adapter, mask)
        rows, source = _drawn_rows(step, requests)
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
        return self.scheduler.commit(step, sampled, finished)

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
                mask = self._mask(row, logits.shape[1])
                if mask is not None:
                    allowed[i] &= mask.to(logits.device)
        device = logits.device
        return Filters(
            torch.tensor([s.top_k for s in settings], device=device),
            torch.tensor([s.top_p for s in settings], device=device),
            torch.tensor([s.min_p for s in settings], device=device),
            allowed,
        )

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
        return bool(stop) and ends_in_stop(self.tokenizer, row.sample.token_ids, stop)

    def _finish(self, job: Job, ended: Ended) -> None:
        sample = job.samples[ended.sample]
        reason: FinishReason = ended.reason
        if reason == "length" and job.limit < job.sampling.max_tokens:
            reason = "context"
        sample.finish_reason = reason
        if self.tokenizer is not None:
            sample.text = text_before_stop(self.tokenizer, sample.token_ids, job.sampling.stop)


class GroupStream:
    """The groups of a `Sampler.run` for ``async for``.

    Not an async generator: leaving the loop ends the run at once, not when the event loop gets to it.
    """

    def __init__(self, run: Generator[tuple[int, Group]]) -> None:
        self._run = run

    def __aiter__(self) -> GroupStream:
        return self

    async def __anext__(self) -> Group:
        await asyncio.sleep(0)
        for _, group in self._run:
            return group
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """End the run and free what it holds."""
        self._run.close()


def _record(job: Job) -> Sample:
    return Sample(job.prompt_ids, [], policy_version=job.version, temperature=job.sampling.temperature)


def _noise_key(row: _Row) -> tuple[int, int, int, int, int]:
    """(seed, step, group key, sample, position): what the noise of one draw depends on, each an int64."""
    seed, step, key = row.job.noise
    if seed >= 1 << 63:  # the same 64 bits, signed
        seed -= 1 << 64
    return seed, step, key, row.id[1], len(row.sample.token_ids)


def _drawn_rows(
    step: Step, requests: dict[int, tuple[int, Job]]
) -> tuple[list[_Row], np.ndarray[Any, np.dtype[np.int64]]]:
    """The draws of this step and the hidden row of each: one a decode, n for a prompt's last chunk."""
    rows, source = [], []
    for i, decode in enumerate(step.decodes):
        job = requests[decode.id[0]][1]
        rows.append(_Row(job, decode.id))
        source.append(i)
    at = len(step.decodes)
    for chunk in step.prefills:
        at += len(chunk.ids)
        if chunk.last:
            job = requests[chunk.request_id][1]
            rows.extend(_Row(job, (chunk.request_id, s)) for s in range(job.sampling.n))
            source.extend([at - 1] * job.sampling.n)
    return rows, np.asarray(source, np.int64)


def _adapter_mask(
    step: Step, requests: dict[int, tuple[int, Job]], device: torch.device
) -> tuple[Tensor | None, bool]:
    """(adapter switch a row, None when all agree; whether any row uses the adapter)."""
    uses = [requests[d.id[0]][1].sampling.adapter for d in step.decodes]
    for chunk in step.prefills:
        uses.extend([requests[chunk.request_id][1].sampling.adapter] * len(chunk.ids))
    if all(uses) or not any(uses):
        return None, bool(uses[0])
    return torch.tensor(uses, dtype=torch.float32, device=device), True
