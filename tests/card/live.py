"""Live bytes of whole models, 0.5B to 72B, at the size of their budgets: what is allowed must fit the card.

    python -m tests.card.live              a table: each Qwen2.5 on cards of 24, 48, 80 and 141 GB
    python -m tests.card.live --predicted  a record: peaks that plans predict beside those counted (`PLANNED`)

A cell has the bytes counted as shares of those that the formula gives: loading, held, sampling, training.

The engine's own code runs: sampler steps that fill the KV cache, the batch and the rows of the budget, then a
training step on the largest tree that the budget allows. Tensors are on torch's "meta" device
(`tests.card.driver`), so the shapes are the real model's and cost nothing; kernels do not run. What a kernel,
cuBLAS or the allocator takes for itself is not seen: budgets keep a reserve for that.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.memory_budgets import CARDS, SIZES, planner
from bench.records import RESULTS, stamp, write_record
from proactor.engine import GRPO, EngineError, Group, GRPOLoss, LoRA, Sample, Sampling
from proactor.engine import trainer as trainer_module
from proactor.engine.config import AdamW
from proactor.engine.group_plan import GroupPlanner
from proactor.engine.jobs import Job
from proactor.engine.known_models import qwen25
from proactor.engine.lora_targets import total_rank
from proactor.engine.memory import Memory
from proactor.engine.operations import Operations
from proactor.engine.parallel import Parallel
from proactor.engine.peak import Peak
from proactor.engine.plan import card
from proactor.engine.policy import Policy
from proactor.engine.sampler import Sampler
from proactor.engine.trainer import Trainer
from proactor.engine.tree import Tree
from proactor.kernels.jit import triton
from tests.card.driver import META, Driver, Recorder, empty_model, pretend

PHASES = ("loading", "held", "sampling", "training", "chunks")
SHARED, NEW = 8, 16
"""Samples behind a short prompt, and tokens that each draws."""
PLANNED = (("0.5B", 24), ("3B", 24), ("7B", 48), ("14B", 24), ("14B", 80), ("72B", 141))
"""Models and cards of the record."""
CHUNK, CHUNKED = 1024, 4096
"""Rows of a chunk, and of the tree that is computed in chunks."""


class LiveBytes(Recorder):
    """Bytes of the storages of meta tensors that are alive, and the most since `reset`."""

    def __init__(self, driver: Driver) -> None:
        super().__init__(driver)
        self.live = self.peak = 0

    def reset(self) -> int:
        """Begin a new peak; returns the bytes that live now."""
        self.peak = self.live
        return self.live

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        for tensor in tree_leaves(out):
            if isinstance(tensor, Tensor) and tensor.is_meta:
                storage = tensor.untyped_storage()
                if not hasattr(storage, "counted"):
                    storage.counted = Counted(self, storage.nbytes())  # lives as long as the storage
        return out


class Counted:
    """The bytes of one storage."""

    def __init__(self, log: LiveBytes, nbytes: int) -> None:
        self.log, self.nbytes = log, nbytes
        log.live += nbytes
        log.peak = max(log.peak, log.live)

    def __del__(self) -> None:
        self.log.live -= self.nbytes


@dataclass(frozen=True, slots=True)
class Phase:
    """Most bytes of a phase, counted and by the formula; rows of its largest pass, and those allowed.

    ``predicted``: what a plan predicts for the phase's own tree (`Peak`); 0: nothing.
    """

    bytes: int
    formula: int
    rows: int = 0
    allowed: int = 0
    predicted: int = 0


def measure(driver: Driver, size: str, memory: Memory) -> dict[str, Phase]:
    """`PHASES` of a Qwen2.5 on a card of so much memory. Raises EngineError where the model is refused.

    loading: building the model from 4-bit weights. held: model, adapter and optimizer. sampling, training:
    beside what is held, on the arena that the two use in turn. chunks: a tree recomputed by turns.
    """
    plans, config = planner(size, batching="fixed"), qwen25(size)  # as many at once as there is memory for
    budgets, f = plans.plan(memory), plans.footprint
    most = f.most_rows(budgets.arena, gradient=True)
    whole, parts = (replace(budgets, chunk=chunk) for chunk in (most, CHUNK))
    assert budgets.tokens is not None
    named = torch.ones(config.vocab_size, dtype=torch.bool)
    with LiveBytes(driver) as log, launching_nothing():
        decoder = empty_model(config, LoRA())
        loading = log.peak
        policy = Policy(decoder, None, plans.options, budgets, named)

        def trees(groups: Sequence[Group]) -> Iterator[Tree]:
            for tree in policy.trees(groups, gradient=True):  # which made room for it
                log.reset()
                yield tree

        trainer = Trainer(decoder, Parallel(META), trees, whole.chunk_of)
        held = log.reset()
        rows = sample(policy.ready_sampler(), budgets.tokens, config.context_length)
        sampling = log.peak - held
        loss = GRPOLoss(GRPO(beta=0.02))
        large, small = (group_of(rows, config.context_length) for rows in (most, CHUNKED))
        tally = trainer.forward_backward([large], loss)
        trainer.step(AdamW())
        training = log.peak - held
        trainer.chunk_rows = parts.chunk_of
        trainer.forward_backward([small], loss)
        chunks = log.peak - held
    operations = Operations.of(config, LoRA())
    peak = Peak(config, total_rank(LoRA(), config.num_layers), f, kernels=True)
    large_peak, small_peak = (
        GroupPlanner(given, operations, peak, held=0).plan([group], loss).peak
        for given, group in ((whole, large), (parts, small))
    )
    counted = (
        Phase(loading, f.weights + f.adapter + f.loading),
        Phase(held, f.held),
        Phase(sampling, budgets.arena, rows, budgets.step_rows),
        Phase(training, budgets.arena, int(tally.sums["rows"]), most, large_peak),
        Phase(chunks, parts.tree_bytes(CHUNKED, CHUNKED, gradient=True), predicted=small_peak),
    )
    return dict(zip(PHASES, counted, strict=True))


@contextmanager
def launching_nothing() -> Iterator[None]:
    """In the block no kernel is compiled, and nothing is read back that a shape depends on."""
    with (
        mock.patch.object(triton.JITFunction, "run", lambda self, *args, **kwargs: None),
        mock.patch.object(trainer_module, "_compare", lambda *args: None),
    ):
        yield


def sample(sampler: Sampler, tokens: int, context: int) -> int:
    """Fill the batch and the cache of ``tokens``; returns the rows of the largest step.

    One sequence is as long as the context or the cache allows, which decides the partial sums of attention.
    Samples behind short prompts, `SHARED` each, take most places in the batch. Prompts that fill a step come
    last, while all others decode.
    """
    scheduler = sampler.scheduler
    page, chunk = scheduler.pool.page_size, scheduler.prefill_chunk
    spare = scheduler.max_seqs * (NEW + 2 * page)  # for the short prompts, and what all samples draw
    late = min(scheduler.max_rows // chunk + 1, (tokens - spare) // (2 * chunk))
    long = min(context - NEW, tokens - spare - late * chunk)
    short = (scheduler.max_seqs - 1 - late) // SHARED
    requests: list[int] = []
    started, largest = 0, 0

    def step() -> int:
        before = scheduler.tokens_computed
        assert not sampler.step(), "nothing ends"
        return scheduler.tokens_computed - before

    for wave in ([(long, 1)], [(page + 1, SHARED)] * short, [(chunk, 1)] * late):
        for length, n in wave:
            sampling = Sampling(n=n, max_tokens=NEW, top_k=40)
            prompt, lora = [started] * length, sampler.decoder.lora
            job = Job(prompt, sampling, (0, 0, 0), NEW, frozenset(), lora=lora)
            requests.append(sampler.add(job))
            started += n
        while scheduler.counters()["decoding"] < started:
            largest = max(largest, step())
    assert step() == started, "all of them decode at once"
    for request in requests:
        sampler.abort(request)
    return largest


def group_of(rows: int, context: int) -> Group:
    """A group whose tree has so many ``rows``: a prompt with samples behind it, none beyond the context."""
    prompt = [1] * min(rows // 2, context // 2)
    left, samples = rows - len(prompt), []
    while left:
        length = min(left, context // 2 - 1)
        samples.append(Sample(prompt, [2] * (length + 1), advantage=1.0))
        left -= length
    return Group(prompt, samples)


def cells(driver: Driver, size: str) -> Iterator[tuple[str, list[Phase]]]:
    """For each card: what is written of a model there, and its phases; none where it is refused."""
    for gigabytes in CARDS:
        try:
            phases = measure(driver, size, card(gigabytes))
        except EngineError:
            yield "refused", []
            continue
        shares = " · ".join(f"{phase.bytes / phase.formula:.1%}" for phase in phases.values())
        yield shares, list(phases.values())


def predicted(driver: Driver) -> dict[str, Any]:
    """The record of `PLANNED`: bytes predicted and counted of the largest tree and of one in chunks."""
    found: dict[str, Any] = {}
    for size, gigabytes in PLANNED:
        phases = measure(driver, size, card(gigabytes))
        found[f"{size} on {gigabytes} GB"] = {
            name: {
                "predicted": phases[name].predicted,
                "counted": phases[name].bytes,
                "ratio": phases[name].predicted / phases[name].bytes,
            }
            for name in ("training", "chunks")
        }
    return {"shapes": found, **stamp()}


def main(arguments: Sequence[str] = ()) -> int:
    """Print the table, or write the record. Exit code: 1 if a phase takes more than the formula gives it."""
    driver, fit = pretend(), True
    if "--predicted" in arguments:
        print(f"record: {write_record(RESULTS, 'card-peaks', predicted(driver))}")
        return 0
    print(" | ".join(["| Qwen2.5", *(f"{gigabytes} GB" for gigabytes in CARDS)]) + " |")
    print("|---" * (1 + len(CARDS)) + "|")
    for size in SIZES:
        found = list(cells(driver, size))
        print(" | ".join([f"| {size}", *(text for text, _ in found)]) + " |", flush=True)
        fit &= all(phase.bytes <= phase.formula for _, phases in found for phase in phases)
    return 0 if fit else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
