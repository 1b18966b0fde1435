"""Log-probabilities of given ids: the trainer's forward over packed trees, without gradient."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from proactor.engine.arguments import integer, short
from proactor.engine.forward import tree_choices, tree_logprobs
from proactor.engine.layout import Layout
from proactor.engine.memory import naming_shortage
from proactor.engine.parallel import Parallel
from proactor.engine.policy import Policy
from proactor.engine.prompts import ids_of
from proactor.engine.ranges import ranged
from proactor.engine.types import EngineError, Group, Sample, with_parents
from proactor.engine.weights import Weights


@torch.no_grad()
def sequence_logprobs(
    policy: Policy,
    weights: Weights,
    sequences: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]] | None,
    trees: Sequence[Hashable] | None = None,
) -> list[Tensor]:
    """Log-probabilities (temperature 1) of ids[start:end] of each sequence, float32 on the CPU.

    Common beginnings before the spans are computed once; spans never merge. ``trees``: a key a sequence, as
    `Group.tree`. Raises EngineError for an impossible span or a sequence beyond the context.
    """
    groups, places = _groups(policy, sequences, spans, trees)
    return _by_sequence(scored_trees(policy, weights, groups), places, [torch.empty(0) for _ in sequences])


@torch.no_grad()
def sequence_choices(policy: Policy, weights: Weights, sequences: Sequence[Sequence[int]]) -> list[Tensor]:
    """`Engine.greedy`."""
    groups, places = _groups(policy, sequences, None, None)
    results = (
        tree_choices(weights.decoder, tree, policy.named) for tree in policy.trees(groups, gradient=False)
    )
    return _by_sequence(results, places, [torch.empty(0, dtype=torch.int64) for _ in sequences])


def _groups(
    policy: Policy,
    sequences: Sequence[Sequence[int]],
    spans: Sequence[tuple[int, int]] | None,
    trees: Sequence[Hashable] | None,
) -> tuple[list[Group], dict[int, int]]:
    """(a group for each sequence with something to score, {id of its sample: place of its sequence})."""
    if isinstance(sequences, str | bytes | Mapping) or not hasattr(sequences, "__len__"):
        raise EngineError(f"logprobs: takes a list of lists of token ids, not {short(sequences)}")
    sequences = [ids_of(ids, f"logprobs: sequence {i}") for i, ids in enumerate(sequences)]
    if spans is None:
        spans = [(1, len(ids)) for ids in sequences]
    for name, given in (("spans", spans), ("trees", trees)):
        if given is not None and len(given) != len(sequences):
            raise EngineError(f"logprobs: {len(sequences)} sequences with {len(given)} {name}")
    groups: list[Group] = []
    places: dict[int, int] = {}  # id of a sample -> place of its sequence
    room, most = policy.decoder.config.context_length, policy.budgets.most_rows(gradient=False)
    for i, (ids, span) in enumerate(zip(sequences, spans, strict=True)):
        start, end = _span(span, i)
        if not 1 <= start <= end <= len(ids):
            raise EngineError(
                f"logprobs: span {start}:{end} of sequence {i}, which has {len(ids)} tokens (the first has "
                "no probability)"
            )
        if len(ids) > room:
            raise EngineError(f"logprobs: sequence {i} has {len(ids)} tokens, the context {room}")
        if most is not None and end - 1 > most:
            raise EngineError(
                f"logprobs: sequence {i} needs a pass over {end - 1} tokens, and one of {most} fits the GPU"
            )
        if end > start:
            prompt = list(ids[:start])
            sample = Sample(prompt, list(ids[start:end]))
            places[id(sample)] = i
            groups.append(Group(prompt, [sample], tree=None if trees is None else trees[i]))
    return groups, places


def _by_sequence(
    results: Iterable[tuple[Tensor, Layout]], places: Mapping[int, int], empty: list[Tensor]
) -> list[Tensor]:
    """Values of trees' trained tokens, dealt to the sequences; ``empty`` stands for those without any."""
    for sample, part in by_sample(results):
        empty[places[id(sample)]] = part.cpu()
    return empty


def _span(span: Sequence[int], index: int) -> tuple[int, int]:
    if not isinstance(span, Sequence) or len(span) != 2:
        raise EngineError(f"logprobs: the span of sequence {index} is (start, end), not {short(span)}")
    what = f"logprobs: each end of the span of sequence {index}"
    return integer(span[0], what), integer(span[1], what)


def scored_samples(
    policy: Policy, weights: Weights, groups: Sequence[Group]
) -> Iterator[tuple[Sample, Tensor]]:
    """Each sample of ``groups`` with the log-probabilities of its trained tokens."""
    return by_sample(scored_trees(policy, weights, groups))


def by_sample(results: Iterable[tuple[Tensor, Layout]]) -> Iterator[tuple[Sample, Tensor]]:
    """(values, layout) of trees as each sample with the values of its trained tokens."""
    for values, flat in results:
        counts = torch.bincount(flat.batch.sample, minlength=len(flat.batch.samples)).tolist()
        yield from zip(flat.batch.samples, values.split(counts), strict=True)


def scored_trees(
    policy: Policy, weights: Weights, groups: Sequence[Group]
) -> Iterator[tuple[Tensor, Layout]]:
    """(log-probabilities, layout) of each tree of ``groups``."""
    for tree in policy.trees(groups, gradient=False):
        what = f"a pass over a tree of {tree.rows} rows without gradient"
        shortage = naming_shortage(policy.decoder.device, what, "set token_budget to less")
        with shortage, ranged("score: tree"):
            values, flat = tree_logprobs(weights.decoder, tree)
        yield values, flat


def mean_nll(policy: Policy, weights: Weights, parallel: Parallel, groups: Sequence[Group]) -> float:
    """`Engine.nll`: the mean of `total_nll` over all ranks. Every rank must call this."""
    with parallel.together("nll"):
        total, count = total_nll(policy, weights, groups)
    sums, _ = parallel.reduce({"total": total, "count": count}, {})
    return sums["total"] / max(sums["count"], 1.0)


@torch.no_grad()
def total_nll(policy: Policy, weights: Weights, groups: Sequence[Group]) -> tuple[float, float]:
    """(sum of the negative log-likelihoods, number) of the groups' trained tokens, in nats.

    Groups without a trained token are left out.
    """
    total, count = 0.0, 0.0
    policy.refuse_long(groups, gradient=False)
    kept = with_parents(groups, lambda group: not group.masked)
    for values, _ in scored_trees(policy, weights, kept):
        total, count = total - float(values.double().sum()), count + len(values)
    return total, count
