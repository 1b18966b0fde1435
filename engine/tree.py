"""Token trees, on which the trainer computes: tries of token runs, whose ancestors are their context.

Prompts merge where their ids are equal. Sampled tokens of different samples never merge, because clipping is
not linear in the advantage. A group is a prompt with its samples as leaves; a dialogue replayed turn by turn
is a caterpillar tree. Each run of tokens is one range of rows, computed once forward and once backward. The
last token of a leaf is only a target: nothing is predicted from it, so it gets no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proactor.engine.arguments import short
from proactor.engine.prefix import common_prefix
from proactor.engine.types import EngineError, Group, Sample

Ids = NDArray[np.int64]
ROOT = -1


@dataclass(slots=True)
class Node:
    """A run of tokens after ``parent`` (an index, or ROOT), the first of them at ``depth``."""

    ids: Ids
    parent: int
    depth: int
    leaf: bool = False
    children: dict[int, int] = field(default_factory=dict)


class Tree:
    """The trie of some groups.

    ``nodes`` in creation order; ``prompt_end[g]`` is the node that ends group g's prompt; ``leaves[g][s]``
    the node of a sample's rows (None when it has none). Raises EngineError for an empty prompt or completion,
    a sample of another prompt, or a group whose parent sample is not in the tree.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self.nodes: list[Node] = []
        self.roots: dict[int, int] = {}
        self.prompt_end: list[int] = []
        self.leaves: list[list[int | None]] = []
        self._leaf_of: dict[int, int] = {}
        extended = {id(g.parent) for g in self.groups if g.parent is not None}
        for group in self.groups:
            self._add(group, extended)

    @property
    def rows(self) -> int:
        """Rows that enter each linear layer: the tree's token count."""
        return sum(len(n.ids) for n in self.nodes)

    @property
    def flat_tokens(self) -> int:
        """Rows that separate, unshared sequences would take."""
        return sum(len(g.prompt_ids) + len(s.token_ids) - 1 for g in self.groups for s in g.samples)

    def _add(self, group: Group, extended: set[int]) -> None:
        if not len(group.prompt_ids):
            raise EngineError("group.prompt_ids: a prompt needs at least one token")
        prompt = _ids(group.prompt_ids, "group.prompt_ids")
        start, at = 0, ROOT
        if group.parent is not None:
            at = self._leaf_of.get(id(group.parent), ROOT)
            start = len(group.parent.prompt_ids) + len(group.parent.token_ids)
            if at == ROOT or group.prompt_ids[:start] != group.parent.prompt_ids + group.parent.token_ids:
                raise EngineError(
                    "group.parent: the parent sample must stand earlier in the tree and begin this group's "
                    "prompt; give both groups one `tree` key"
                )
        for sample in group.samples:
            if sample.prompt_ids is not group.prompt_ids and list(sample.prompt_ids) != list(
                group.prompt_ids
            ):
                raise EngineError("group: a sample's prompt is not the group's")
        end = self._insert(prompt[start:], at, start)
        self.prompt_end.append(end)
        self.leaves.append([self._add_leaf(s, end, len(prompt), id(s) in extended) for s in group.samples])

    def _add_leaf(self, sample: Sample, parent: int, depth: int, extended: bool) -> int | None:
        if not len(sample.token_ids):
            raise EngineError("sample.token_ids: a sample needs at least one token")
        ids = _ids(sample.token_ids, "sample.token_ids")
        if not extended:
            ids = ids[:-1]
        if not len(ids):
            return None
        self.nodes.append(Node(ids, parent, depth, leaf=True))
        self._leaf_of[id(sample)] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def _insert(self, ids: Ids, at: int, depth: int) -> int:
        """Insert ``ids`` below node ``at``, splitting and adding prompt nodes; returns their last node."""
        while len(ids):
            children = self.roots if at == ROOT else self.nodes[at].children
            child = children.get(int(ids[0]))
            if child is None:
                self.nodes.append(Node(ids, at, depth))
                children[int(ids[0])] = len(self.nodes) - 1
                return len(self.nodes) - 1
            shared = common_prefix(self.nodes[child].ids.tolist(), ids.tolist())
            if shared < len(self.nodes[child].ids):
                child = self._split(child, shared, children)
            ids, at, depth = ids[shared:], child, depth + shared
        return at

    def _split(self, index: int, length: int, siblings: dict[int, int]) -> int:
        """Split node ``index`` after ``length`` tokens; returns the new upper part.

        The lower part keeps the index, so that `prompt_end` and `leaves` stay valid.
        """
        lower = self.nodes[index]
        upper = Node(lower.ids[:length], lower.parent, lower.depth, children={int(lower.ids[length]): index})
        self.nodes.append(upper)
        siblings[int(upper.ids[0])] = len(self.nodes) - 1
        lower.ids, lower.parent, lower.depth = lower.ids[length:], len(self.nodes) - 1, lower.depth + length
        return len(self.nodes) - 1

    def order(self) -> list[int]:
        """Node indices, parents first, prompt nodes before leaves: a trunk is one range of rows."""
        order: list[int] = []
        inner = [i for i, n in enumerate(self.nodes) if n.parent == ROOT]
        below: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            below.setdefault(node.parent, []).append(i)
        late: list[int] = []
        stack = list(reversed(inner))
        while stack:
            i = stack.pop()
            order.append(i)
            children = below.get(i, [])
            late.extend(c for c in children if self.nodes[c].leaf)
            stack.extend(c for c in reversed(children) if not self.nodes[c].leaf)
            if not stack and late:
                stack.extend(reversed(late))
                late.clear()
        return order


@dataclass(slots=True)
class TokenBatch:
    """What a loss sees besides log-probabilities: columns [N] over trained tokens, sample after sample.

    target: int64 ids. old, sampled: recorded policy and sampled log-probabilities, float32, NaN where a
    sample has none. advantage, weight: float32. sample: int64 index into ``samples``. position: int64 index
    into the sample's ``token_ids``. version: int64, the policy version that drew it. entropy: float32, filled
    in by the trainer. reference: log-probabilities with the adapter off, if the loss has ``needs_reference``.
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
        k: [] for k in ("row", "target", "old", "sampled", "advantage", "sample", "position", "version")
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
            parts["sample"].append(np.full(len(keep), len(samples), np.int64))
            parts["position"].append(keep.astype(np.int64))
            parts["version"].append(np.asarray(sample.token_versions(), np.int64)[keep])
            samples.append(sample)
    joined = {k: np.concatenate(v) if v else np.empty(0, np.int64) for k, v in parts.items()}
    row = joined.pop("row").astype(np.int64)
    joined["weight"] = np.ones(len(row), np.float32)
    return row, joined, samples


def _column(values: Sequence[float], length: int) -> NDArray[np.generic]:
    if not values:
        return np.full(length, np.nan, np.float32)
    if len(values) != length:
        raise EngineError(f"sample: {len(values)} log-probabilities for {length} tokens")
    return np.asarray(values, np.float32)


def _ids(values: Sequence[int], what: str) -> Ids:
    """Token ids as int64. Raises EngineError, naming ``what``, for anything but whole numbers."""
    try:
        ids = np.asarray(values)
    except ValueError:  # lists of several lengths
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise EngineError(f"{what} should be a list of token ids, not {short(values)}")
    return ids.astype(np.int64, copy=False)
