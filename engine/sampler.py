"""Generation: runs the scheduler's steps, draws tokens and records them."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, TypeVarTuple

import numpy as np
import torch
from torch import Tensor

from proactor.engine.draws import Draw, DrawColumns
from proactor.engine.faults import fault_point
from proactor.engine.jobs import Job
from proactor.engine.kv import PagePool
from proactor.engine.load import LoadPolicy
from proactor.engine.memory import naming_shortage
from proactor.engine.model import Decoder
from proactor.engine.paged import PagedCache, StepRows
from proactor.engine.ranges import ranged
from proactor.engine.row_adapters import RowAdapters, row_adapters
from proactor.engine.scheduler import Scheduler
from proactor.engine.step import Ended, Request, RequestTooLarge, SampleId, Step
from proactor.engine.stops import StopStrings
from proactor.engine.types import EngineError, FinishReason, Sample
from proactor.kernels.sample import check_drawn, sample_tokens

LESS = "set kv_tokens or max_batch to less"
T = TypeVar("T")
Given = TypeVarTuple("Given")


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
        self._draws: dict[int, list[Draw]] = {}  # the samples of a request, by its id
        self._columns: DrawColumns | None = None  # of the decode set ``_roster``
        self._roster = -1
        self._stops = StopStrings(tokenizer)
        self._failures: dict[int, BaseException] = {}

    def free_cache(self) -> None:
        """Give the cache's memory back, with all KV in it; the next `add` or `step` takes it again."""
        assert self.scheduler.resting, "samples still run"
        self.scheduler.drop_all()
        self._forget_rows()
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
        stop, samples = job.sampling.stop, _records(job)
        draws = [
            Draw(
                (request.id, i),
                job,
                sample,
                self._stops.search(stop) if stop else None,
                job.grammar.matcher(job.end_ids) if job.grammar is not None else None,
            )
            for i, sample in enumerate(samples)
        ]
        self.cache.allocate()
        try:
            self.scheduler.add(request)
        except RequestTooLarge as error:
            raise EngineError(
                f"prompt {job.index}: {str(error).partition(': ')[2]}; give Engine.load more kv_tokens"
            ) from error
        job.samples, self._draws[request.id] = samples, draws
        self._next_id += 1
        return request.id

    def renew(self, old: Hashable, new: Hashable, version: int) -> None:
        """After `Scheduler.pause`: jobs with KV of namespace ``old`` go on with that of ``new``, whose
        weights are policy ``version``.
        """
        self.scheduler.rename(old, new)
        for draws in self._draws.values():
            job = draws[0].job
            if job.namespace != old:
                continue
            for sample in job.samples:
                if sample.token_ids and sample.finish_reason == "outside":
                    sample.stamp(job.version)
                elif not sample.token_ids:
                    sample.policy_version = version
            job.renewals += any(sample.token_ids for sample in job.samples)
            job.namespace, job.version = new, version

    def abort(self, request: int) -> None:
        """Drop a request and free its pages."""
        del self._draws[request]
        self.scheduler.abort(request)
        if self.scheduler.idle:
            self._forget_rows()

    def step(self) -> list[Ended]:
        """Run one step; returns the samples that ended in it. `finish` each, and look at `take_failures`."""
        began = time.perf_counter()
        with ranged("sample: plan"):
            step = self.scheduler.plan()
        if step is None:
            return []
        self.cache.allocate()
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
        self._draws.clear()
        self._forget_rows()
        self._failures.clear()
        self.scheduler.reset()

    def finish(self, ended: Ended) -> Job:
        """Complete the record of a sample that ended; returns its job. Raises EngineError for its text."""
        job = self._draws[ended.request_id][0].job
        reason: FinishReason = ended.reason
        if reason == "length" and job.limit < job.sampling.max_tokens:
            reason = "context"
        self._close(job, job.samples[ended.sample], reason)
        if ended.last:  # after the text: a request without one is still there to be aborted
            del self._draws[ended.request_id]
        return job

    def cut(self, job: Job, reason: FinishReason) -> None:
        """End a job's samples as they are; those that ended stay as they ended. It runs no more."""
        job.samples = job.samples or _records(job)
        for sample in job.samples:
            if sample.finish_reason == "outside":
                self._close(job, sample, reason)

    def _close(self, job: Job, sample: Sample, reason: FinishReason) -> None:
        if sample.versions is not None:
            sample.stamp(job.version)
        if self.tokenizer is not None:
            sample.text = self._stops.text(sample.token_ids, job.sampling.stop)
        sample.finish_reason = reason  # last: whoever watches the sample takes it as complete then

    def _step(self, step: Step) -> list[Ended]:
        # on a CPU inference mode saves a tenth of a small model's step; with kernels it is not measured
        with torch.no_grad() if self.cache.in_triton else torch.inference_mode():
            return self._computed(step)

    def _computed(self, step: Step) -> list[Ended]:
        with ranged("sample: rows"):
            self.cache.prepare(step)
            ids, positions, view = self.rows.build(step)
            draws = self._drawing(step)
            adapters = draws.adapters if not step.prefills else self._adapters(step)
        with ranged("sample: prompts" if step.prefills else "sample: model"):
            hidden = self.decoder.hidden(ids, positions, view, adapters)
        self.steps += 1
        if not len(draws):
            return self.scheduler.commit(step, {})
        with ranged("sample: head"):
            logits = self._logits(hidden, step)
        with ranged("sample: draw"):
            tokens = self._draw(logits, draws)
        self.tokens_sampled += len(tokens)
        with ranged("sample: commit"):
            finished = draws.ended(tokens) | self._stopped(draws, tokens)
            ended = self.scheduler.commit(step, dict(zip(draws.ids, tokens, strict=True)), finished)
        if self.scheduler.idle:
            self._forget_rows()
        return ended

    def _forget_rows(self) -> None:
        """Let go of what is kept of the decode set from step to step."""
        self.rows.forget()
        self._columns = None

    def _drawing(self, step: Step) -> DrawColumns:
        """The step's draws: one a decode, n for a prompt's last chunk. Those of decodes alone are kept."""
        begun = [chunk for chunk in step.prefills if chunk.last]
        if self._columns is not None and self._roster == step.roster and not begun:
            return self._columns
        draws = [self._draws[decode.id[0]][decode.id[1]] for decode in step.decodes]
        for chunk in begun:
            draws += [self._draws[chunk.request_id][sample] for sample in chunk.request.samples]
        columns = DrawColumns(draws, self._named, self.decoder.device)
        self._columns, self._roster = (None if begun else columns), step.roster
        return columns

    def _adapters(self, step: Step) -> RowAdapters:
        """Those of a step with prompts, whose rows are not its draws."""
        rows = [(decode.id[0], 1) for decode in step.decodes]
        rows += [(chunk.request_id, len(chunk.ids)) for chunk in step.prefills]
        loras = [(self._draws[request][0].job.lora, count) for request, count in rows]
        return row_adapters(loras, self.decoder.device)

    def _logits(self, hidden: Tensor, step: Step) -> Tensor:
        """Logits [B, V] of the step's draws, from the hidden states [T, H] of its rows."""
        copies = None
        if any(chunk.last for chunk in step.prefills):
            rows, draws = _drawn_rows(step)
            index = torch.from_numpy(np.asarray([*rows, *draws])).to(hidden.device)
            hidden = hidden.index_select(0, index[: len(rows)])
            copies = index[len(rows) :] if len(draws) > len(rows) else None
        elif step.prefills:
            hidden = hidden[: len(step.decodes)]
        logits = self.decoder.head_linear(self.decoder.final_norm(hidden), self.decoder.head)
        if not self.cache.in_triton:  # the kernel reads half types itself
            logits = logits.float()
        return logits if copies is None else logits.index_select(0, copies)

    def _draw(self, logits: Tensor, draws: DrawColumns) -> list[int]:
        """Draw one token a row from logits [B, V] and record it. Synchronises with the device once."""
        width = logits.shape[1]
        for draw, why in draws.constrain(width):
            error = EngineError(f"prompt {draw.job.index}: constraint: {why}")
            self._failures.setdefault(draw.id[0], error)
        for row in draws.masked:
            draw = draws.draws[row]
            before = self.named if draw.matcher is None else draws.allowed(row, width)
            draws.allow(row, self._on_behalf(draw, self._mask, draw, before, width), width)
        tops = draws.tops(logits)  # before the draw, which may overwrite them
        drawn = sample_tokens(
            logits, draws.temperature, draws.uniforms(), draws.filters(width), checked=False
        )
        tokens, logprobs, policy = draws.take(drawn)
        check_drawn(tokens)
        draws.record(tokens, logprobs, policy, tops)
        return tokens

    def _stopped(self, draws: DrawColumns, tokens: list[int]) -> set[SampleId]:
        """The samples whose token completes a stop string."""
        stopped = set()
        for draw, search, token in draws.stopping(tokens):
            try:
                if search.take(token):
                    stopped.add(draw.id)
            except EngineError as error:  # the tokenizer's, about the last tokens
                self._failures.setdefault(draw.id[0], error)
        return stopped

    def _on_behalf(self, draw: Draw, call: Callable[[*Given], T], *given: *Given) -> T | None:
        """What the call returns, or None where it raises: that ends the draw's request, and no other."""
        if draw.id[0] in self._failures:
            return None
        try:
            return call(*given)
        except BaseException as error:  # noqa: BLE001 - raised by the request's caller
            self._failures[draw.id[0]] = error
            return None

    def _mask(self, draw: Draw, before: Tensor | None, width: int) -> Tensor | None:
        """What the request's ``logit_mask`` allows next, checked; None for everything. ``before``: what may
        be drawn without it.
        """
        hook, ids = draw.job.sampling.logit_mask, draw.sample.token_ids
        with torch.inference_mode(False), torch.no_grad():  # its tensors may be kept, and meet autograd
            mask = hook(ids, len(ids)) if callable(hook) else None
        if mask is None:
            return None
        where = f"prompt {draw.job.index}: logit_mask"
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.shape != (width,):
            shown = (
                f"{mask.dtype} {list(mask.shape)}" if isinstance(mask, Tensor) else f"a {type(mask).__name__}"
            )
            raise EngineError(f"{where}: should return a bool tensor [{width}] or None, not {shown}")
        drawable = mask if before is None else mask & before.to(mask.device)
        if not bool(drawable.any()):  # before the copy: a CPU mask needs no sync
            raise EngineError(f"{where}: no token allowed at position {len(ids)}")
        return mask


def _records(job: Job) -> list[Sample]:
    """Samples without a token; until they end their finish reason is ``outside``."""
    return [
        Sample(
            job.prompt_ids,
            [],
            policy_version=job.version,
            adapter=job.adapter,
            temperature=job.sampling.temperature,
            noise=(*job.noise, job.first + i),
            top_logprobs=[] if job.sampling.top_logprobs else None,
        )
        for i in range(job.sampling.n)
    ]


def _drawn_rows(step: Step) -> tuple[list[int], list[int]]:
    """(the step's rows that draw; for each draw, which of those it is of): n draws of a prompt's last row."""
    rows = list(range(len(step.decodes)))
    draws, at = rows.copy(), len(rows)
    for chunk in step.prefills:
        at += len(chunk.ids)
        if chunk.last:
            draws += [len(rows)] * chunk.request.n
            rows.append(at - 1)
    return rows, draws
