"""A token tree as flat arrays: rows, and the (row, target) pairs that are trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proactor.engine.tree import Ids, Tree
from proactor.engine.types import EngineError, Sample


@dataclass(slots=True)
class TokenBatch:
    """What a loss sees besides log-probabilities: columns [N] over trained tokens, sample after sample.

    target: int64 ids. old, sampled: recorded policy and sampled log-probabilities, float32, NaN where a
    sample has none. advantage, weight: float32. sample: int64 index into ``samples``. position: int64 index
    into the sample's ``token_ids``. version: int64, the policy version that drew it. entropy: float32, filled
    in by the trainer; a loss may depend on it, with gradient. reference: log-probabilities with the adapter
    off, if the loss has ``needs_reference``. recorded: what the sampler recorded as ``old``, where the
    trainer put log-probabilities of its own there (None: it did not).
    """

    target: Tensor
    old: Tensor
    sampled: Tensor
    advantage: Tensor
    weight: Tensor
    sample: Tensor
    position: Tensor
    version: Tensor
    samples: list[Sample]
    entropy: Tensor
    reference: Tensor | None = None
    recorded: Tensor | None = None

    def turns(self) -> Tensor:
        """The number [N] of each token's turn (`Sample.turns`), counted over all samples."""
        first = torch.ones_like(self.sample, dtype=torch.bool)
        same = self.sample[1:] == self.sample[:-1]
        first[1:] = ~(same & (self.position[1:] == self.position[:-1] + 1))
        return first.cumsum(0) - 1

    def take(self, tokens: Tensor | slice) -> TokenBatch:
        """The batch of some tokens. Columns not filled in yet stay as they are, ``samples`` stays whole."""
        count = len(self.target)
        columns: dict[str, Any] = {}
        for f in fields(self):
            column = getattr(self, f.name)
            if isinstance(column, Tensor) and len(column) == count:
                columns[f.name] = column[tokens]
        return replace(self, **columns)


@dataclass(slots=True)
class Layout:
    """A tree as flat arrays: ids and positions [T], each node's first row, and (row, target) pairs.

    ``head_row`` [R]: the rows whose logits are needed, ascending, one for each row and temperature, with
    ``head_temperature`` [R]. ``pair_row`` [N]: index into them of each pair, ascending, with ``pair_target``
    [N]. ``unsort`` [N]: brings pairs into the order of `TokenBatch`.
    """

    ids: Tensor
    positions: Tensor
    start: dict[int, int]
    head_row: Tensor
    head_temperature: Tensor
    pair_row: Tensor
    pair_target: Tensor
    unsort: Tensor
    batch: TokenBatch

    def to(self, device: torch.device) -> Layout:
        """The layout with every tensor on ``device``."""
        return self if self.ids.device == device else _move(self, device)

    def part(self, rows: Tensor) -> tuple[Layout, Tensor]:
        """(the part of ``rows`` [T], numbered anew in their order; the tokens that they predict).

        Tokens are indices into the columns of the batch, ascending. ``start`` is left empty.
        """
        place = torch.full_like(self.ids, -1)
        place[rows] = torch.arange(len(rows), device=rows.device)
        heads = _present(place[self.head_row])
        number = torch.full_like(self.head_row, -1)
        number[heads] = torch.arange(len(heads), device=heads.device)
        pairs = _present(number[self.pair_row])
        tokens, unsort = self.unsort.argsort()[pairs].sort()
        part = Layout(
            ids=self.ids[rows],
            positions=self.positions[rows],
            start={},
            head_row=place[self.head_row[heads]],
            head_temperature=self.head_temperature[heads],
            pair_row=number[self.pair_row[pairs]],
            pair_target=self.pair_target[pairs],
            unsort=unsort,
            batch=self.batch.take(tokens),
        )
        return part, tokens


def _present(place: Tensor) -> Tensor:
    """Indices of what is not -1, in ascending order of it; equal ones keep their order."""
    order = place.argsort(stable=True)
    return order[place[order] >= 0]


def _move(record: Any, device: torch.device) -> Any:
    """A copy of a dataclass with its tensors, and those of a `TokenBatch` inside it, on ``device``."""
    moved = {}
    for f in fields(record):
        value = getattr(record, f.name)
        if isinstance(value, Tensor):
            moved[f.name] = value.to(device)
        elif isinstance(value, TokenBatch):
            moved[f.name] = _move(value, device)
    return replace(record, **moved)


def layout(tree: Tree) -> Layout:
    """Flatten ``tree``: rows in `Tree.order`, and one (row, target) pair for each trained token."""
    start, total = {}, 0
    for i in tree.order():
        start[i] = total
        total += len(tree.nodes[i].ids)
    ids, positions = np.empty(total, np.int64), np.empty(total, np.int64)
    for i, first in start.items():
        node = tree.nodes[i]
        ids[first : first + len(node.ids)] = node.ids
        positions[first : first + len(node.ids)] = np.arange(node.depth, node.depth + len(node.ids))
    rows, columns, samples = _pairs(tree, start)
    temperature = np.asarray([samples[s].temperature for s in columns["sample"]], np.float64)
    if (temperature <= 0).any():
        raise EngineError(
            "sample.temperature: 0 (greedy) has no log-probabilities to train; set it to 1 to train on the "
            "tokens"
        )
    keys, pair_row = np.unique(np.stack([rows.astype(np.float64), temperature]), axis=1, return_inverse=True)
    pair_row = pair_row.reshape(-1)
    sort = np.argsort(pair_row, kind="stable")
    unsort = np.empty_like(sort)
    unsort[sort] = np.arange(len(sort))
    batch = TokenBatch(
        **{k: torch.from_numpy(v) for k, v in columns.items()}, samples=samples, entropy=torch.empty(0)
    )
    return Layout(
        ids=torch.from_numpy(ids),
        positions=torch.from_numpy(positions),
        start=start,
        head_row=torch.from_numpy(keys[0].astype(np.int64)),
        head_temperature=torch.from_numpy(keys[1].astype(np.float32)),
        pair_row=torch.from_numpy(pair_row[sort]),
        pair_target=batch.target[torch.from_numpy(sort)],
        unsort=torch.from_numpy(unsort),
        batch=batch,
    )


def _pairs(tree: Tree, start: dict[int, int]) -> tuple[Ids, dict[str, NDArray[np.generic]], list[Sample]]:
    """Predecessor row of each trained token, and the columns of `TokenBatch`."""
    parts: dict[str, list[NDArray[np.generic]]] = {
        k: []
        for k in ("row", "target", "old", "sampled", "advantage", "weight", "sample", "position", "version")
    }
    samples: list[Sample] = []
    for g, group in enumerate(tree.groups):
        end = tree.prompt_end[g]
        last = start[end] + len(tree.nodes[end].ids) - 1
        for sample, leaf in zip(group.samples, tree.leaves[g], strict=True):
            keep = np.flatnonzero(sample.trained_mask())
            length = len(sample.token_ids)
            row = np.empty(length, np.int64)
            row[0] = last
            if leaf is not None:
                row[1:] = start[leaf] + np.arange(length - 1)
            parts["row"].append(row[keep])
            parts["target"].append(np.asarray(sample.token_ids, np.int64)[keep])
            parts["old"].append(_column(sample.policy_logprobs, length)[keep])
            parts["sampled"].append(_column(sample.logprobs, length)[keep])
            parts["advantage"].append(np.asarray(sample.token_advantages(), np.float32)[keep])
            parts["weight"].append(np.asarray(sample.token_weights(), np.float32)[keep])
            parts["sample"].append(np.full(len(keep), len(samples), np.int64))
            parts["position"].append(keep.astype(np.int64))
            parts["version"].append(np.asarray(sample.token_versions(), np.int64)[keep])
            samples.append(sample)
    joined = {k: np.concatenate(v) if v else np.empty(0, np.int64) for k, v in parts.items()}
    row = joined.pop("row").astype(np.int64)
    return row, joined, samples


def _column(values: Sequence[float], length: int) -> NDArray[np.generic]:
    if not values:
        return np.full(length, np.nan, np.float32)
    if len(values) != length:
        raise EngineError(f"sample: {len(values)} log-probabilities for {length} tokens")
    return np.asarray(values, np.float32)
