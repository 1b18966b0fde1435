"""Log-probabilities of given ids: the trainer's forward over packed trees, without gradient."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

from proactor.engine.forward import tree_logprobs
from proactor.engine.model import Decoder
from proactor.engine.parallel import Parallel
from proactor.engine.tree import pack
from proactor.engine.types import EngineError, Group, Sample, with_parents


@torch.no_grad()
def sequence_logprobs(
    decoder: Decoder,
    sequences: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]],
    adapter: bool,
    token_budget: int,
    trees: Sequence[Hashable] | None = None,
) -> list[Tensor]:
    """Log-probabilities (temperature 1) of ids[start:end] of each sequence, float32 on the CPU.

    Common beginnings before the spans are computed once; spans never merge. ``trees``: a key a sequence, as
    `Group.tree`. Raises EngineError for an impossible span or a sequence beyond the context.
    """
    if trees is not None and len(trees) != len(sequences):
        raise EngineError(f"logprobs: {len(sequences)} sequences with {len(trees)} trees")
    out: list[Tensor] = [torch.empty(0) for _ in sequences]
    groups: list[Group] = []
    places: dict[int, int] = {}  # id of a sample -> place of its sequence
    for i, (ids, (start, end)) in enumerate(zip(sequences, spans, strict=True)):
        if not 1 <= start <= end <= len(ids):
            raise EngineError(
                f"logprobs: span {start}:{end} of sequence {i}, which has {len(ids)} tokens (the first has "
                "no probability)"
            )
        if len(ids) > decoder.config.context_length:
            raise EngineError(
                f"logprobs: sequence {i} has {len(ids)} tokens, the context {decoder.config.context_length}"
            )
        if end > start:
            prompt = list(ids[:start])
            sample = Sample(prompt, list(ids[start:end]))
            places[id(sample)] = i
            groups.append(Group(prompt, [sample], tree=None if trees is None else trees[i]))
    for tree in pack(groups, token_budget, together=not decoder.form.exact):
        values, flat = tree_logprobs(decoder, tree, adapter)
        counts = torch.bincount(flat.batch.sample, minlength=len(flat.batch.samples)).tolist()
        for sample, part in zip(flat.batch.samples, values.cpu().split(counts), strict=True):
            out[places[id(sample)]] = part
    return out


def mean_nll(decoder: Decoder, parallel: Parallel, groups: Sequence[Group], token_budget: int) -> float:
    """`Engine.nll`: the mean of `total_nll` over all ranks. Every rank must call this."""
    with parallel.together("nll"):
        total, count = total_nll(decoder, groups, token_budget)
    sums, _ = parallel.reduce({"total": total, "count": count}, {})
    return sums["total"] / max(sums["count"], 1.0)


@torch.no_grad()
def total_nll(decoder: Decoder, groups: Sequence[Group], token_budget: int) -> tuple[float, float]:
    """(sum of the negative log-likelihoods, number) of the groups' trained tokens, in nats.

    Groups without a trained token are left out.
    """
    total, count = 0.0, 0.0
    kept = with_parents(groups, lambda group: not group.masked)
    for tree in pack(kept, token_budget, together=not decoder.form.exact):
        values, _ = tree_logprobs(decoder, tree)
        total, count = total - float(values.double().sum()), count + len(values)
    return total, count
