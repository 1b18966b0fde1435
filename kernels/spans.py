"""Who sees whom among the rows of a token tree, as spans of rows: no mask is ever written out.

Rows [T] stand in segments, one a tree node, parents before children. A row sees its own segment causally and,
of each ancestor, the first rows up to the branch. Everything a segment sees is then a few runs of rows. The
last of them is the run that ends in the segment itself: it starts at ``base``, which is an ancestor's first
row where ancestors stand directly in front of the segment. The others are its *spans*.

`Spans` cuts this into work for the kernels of `span_attention`, on the host, once a tree: tiles of query
rows, and for the gradients of keys the same relation transposed, tiles of key rows with the ranges of query
rows that see them. Cost is proportional to visible blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proactor.kernels.op import require

Int32 = NDArray[np.int32]
Run = tuple[int, int]
"""Rows first … end - 1."""

PROGRAMS = 512
"""Key tiles are split until about this many programs of equal weight exist: a prompt's keys are seen by all
samples, a sample's by one.
"""
LEAST_BLOCKS = 32
"""No split below this many blocks of queries."""


@dataclass(frozen=True, slots=True)
class KeyWork:
    """Work of the key gradients. ``items`` [I, 5]: first key row, end, first entry, end of entries, slot of
    the partial sum (-1: the only one).

    ``entries`` [E, 3]: first query row, end, key limit: these queries see the tile's keys below the limit
    that do not stand behind them. ``sums`` [J, 4]: first key row, end, first slot, count of slots to add up
    in order. ``slots``: how many there are.
    """

    items: Tensor
    entries: Tensor
    sums: Tensor
    slots: int


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Segments of rows and what they see; make it with `tree` or `causal`.

    start, length, base [S]; span_offsets [S + 1] into spans [N, 2] (first row, end); visitors[i]: (first row,
    end, limit) of the later rows that see segment i's rows below ``limit``.
    """

    rows: int
    start: Int32
    length: Int32
    base: Int32
    span_offsets: Int32
    spans: Int32
    visitors: list[list[tuple[int, int, int]]]
    _cache: dict[object, object] = field(default_factory=dict)

    @classmethod
    def tree(
        cls,
        starts: Sequence[int],
        lengths: Sequence[int],
        parents: Sequence[int],
        cuts: Sequence[int] | None = None,
    ) -> Spans:
        """Segments of a tree: first row, row count, index of the parent (-1: a root) and how many of the
        parent's rows are seen (None: all).

        Segments must cover 0 … T - 1 once each, and a parent must come before its children, in the list and
        in rows. Raises KernelError naming the argument.
        """
        cut = [lengths[p] if p >= 0 else 0 for p in parents] if cuts is None else list(cuts)
        _check(starts, lengths, parents, cut)
        seen: list[list[Run]] = []
        base: list[int] = []
        for start, parent, visible in zip(starts, parents, cut, strict=True):
            runs: list[Run] = []
            if parent >= 0:
                runs = list(seen[parent])
                if base[parent] < starts[parent] + visible:
                    runs.append((base[parent], starts[parent] + visible))
            joined = bool(runs) and runs[-1][1] == start
            base.append(runs.pop()[0] if joined else start)
            seen.append(runs)
        return cls(
            rows=int(sum(lengths)),
            start=np.asarray(starts, np.int32),
            length=np.asarray(lengths, np.int32),
            base=np.asarray(base, np.int32),
            span_offsets=np.cumsum([0, *(len(runs) for runs in seen)], dtype=np.int32),
            spans=np.asarray([r for runs in seen for r in runs], np.int32).reshape(-1, 2),
            visitors=_visitors(starts, lengths, parents, cut),
        )

    @classmethod
    def causal(cls, cu_seqlens: Sequence[int]) -> Spans:
        """Separate causal sequences: sequence i holds rows cu_seqlens[i] … cu_seqlens[i + 1] - 1; empty ones
        are dropped.
        """
        edges = [int(x) for x in cu_seqlens]
        require(len(edges) > 0 and edges[0] == 0, "cu_seqlens", f"must begin with 0, got {edges[:1]}")
        pairs = [(a, b) for a, b in pairwise(edges) if a != b]
        return cls.tree([a for a, _ in pairs], [b - a for a, b in pairs], [-1] * len(pairs))

    @property
    def pairs(self) -> int:
        """Visible (query, key) pairs."""
        own = self.length.astype(np.int64)
        owner = np.repeat(np.arange(len(own)), np.diff(self.span_offsets))
        far = np.bincount(owner, self.spans[:, 1] - self.spans[:, 0], len(own)).astype(np.int64)
        return int((own * (far + self.start - self.base) + own * (own + 1) // 2).sum())

    def visible(self) -> NDArray[np.bool_]:
        """The relation as a dense mask [T, T], for checks."""
        mask = np.zeros((self.rows, self.rows), bool)
        for i, (start, length, base) in enumerate(zip(self.start, self.length, self.base, strict=True)):
            own = slice(start, start + length)
            for first, end in self.spans[self.span_offsets[i] : self.span_offsets[i + 1]]:
                mask[own, first:end] = True
            mask[own, base:start] = True
            mask[own, own] = np.tri(length, dtype=bool)
        return mask

    def runs(self, segment: int) -> list[Run]:
        """All runs of rows that a segment sees, its own last."""
        far = self.spans[self.span_offsets[segment] : self.span_offsets[segment + 1]].tolist()
        end = int(self.start[segment] + self.length[segment])
        return [*((a, b) for a, b in far), (int(self.base[segment]), end)]

    def tiles(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tiles [N, 5] of at most ``rows`` query rows (first row, end, base, first span, end of spans), the
        heaviest first, and the spans [·, 2].
        """
        key = ("tiles", rows, device)
        if key not in self._cache:
            owner, first = cut(self.start, self.length, rows)
            end = np.minimum(first + rows, (self.start + self.length)[owner])
            far = np.concatenate([[0], np.cumsum(self.spans[:, 1] - self.spans[:, 0])])
            seen = far[self.span_offsets[1:]] - far[self.span_offsets[:-1]]
            order = np.argsort(-(seen[owner] + end - self.base[owner]), kind="stable")
            columns = (first, end, self.base[owner], self.span_offsets[owner], self.span_offsets[owner + 1])
            self._cache[key] = (to_device(np.stack(columns, 1)[order], device), to_device(self.spans, device))
        return self._cache[key]  # type: ignore[return-value]

    def key_work(self, keys: int, rows: int, heads: int, device: torch.device) -> KeyWork:
        """Work of the key gradients in tiles of ``keys`` rows against blocks of ``rows`` query rows, for
        ``heads`` programs an item.
        """
        key = ("keys", keys, rows, heads, device)
        if key not in self._cache:
            self._cache[key] = self._key_work(keys, rows, heads, device)
        return self._cache[key]  # type: ignore[return-value]

    def _key_work(self, keys: int, rows: int, heads: int, device: torch.device) -> KeyWork:
        tiles = []
        for owner, first in zip(*(a.tolist() for a in cut(self.start, self.length, keys)), strict=True):
            end = int(self.start[owner] + self.length[owner])
            stop = min(first + keys, end)
            later = [(a, b, min(limit, stop)) for a, b, limit in self.visitors[owner] if limit > first]
            seen = _joined([(first, end, stop), *later])
            tiles.append((first, stop, seen, sum(-(-(b - a) // rows) for a, b, _ in seen)))
        total = sum(blocks for _, _, _, blocks in tiles)
        most = max(LEAST_BLOCKS, -(-total * heads // PROGRAMS))
        items, weights, sums, slots = [], [], [], 0
        entries: list[tuple[int, int, int]] = []
        for first, stop, seen, blocks in tiles:
            parts = -(-blocks // most)
            if parts > 1:
                sums.append((first, stop, slots, parts))
            for part in range(parts):
                low, high = blocks * part // parts, blocks * (part + 1) // parts
                mine = _between(seen, rows, low, high)
                weights.append(low - high)
                slot = slots + part if parts > 1 else -1
                items.append((first, stop, len(entries), len(entries) + len(mine), slot))
                entries += mine
            slots += parts if parts > 1 else 0
        order = np.argsort(np.asarray(weights, np.int64), kind="stable")
        return KeyWork(
            to_device(np.asarray(items, np.int32).reshape(-1, 5)[order], device),
            to_device(np.asarray(entries, np.int32).reshape(-1, 3), device),
            to_device(np.asarray(sums, np.int32).reshape(-1, 4), device),
            slots,
        )


def _check(
    starts: Sequence[int], lengths: Sequence[int], parents: Sequence[int], cuts: Sequence[int]
) -> None:
    count = len(starts)
    for name, values in (("lengths", lengths), ("parents", parents), ("cuts", cuts)):
        require(len(values) == count, name, f"{len(values)} of them for {count} starts")
    require(all(n > 0 for n in lengths), "lengths", "every segment needs a row")
    at = 0
    for start, length in sorted(zip(starts, lengths, strict=True)):
        require(start == at, "starts", f"row {min(start, at)} is covered twice or not at all")
        at += length
    for i, (start, parent, cut) in enumerate(zip(starts, parents, cuts, strict=True)):
        require(-1 <= parent < i, "parents", f"segment {i} has parent {parent}; parents come first")
        if parent >= 0:
            require(starts[parent] < start, "parents", f"segment {i} stands before its parent's rows")
            require(
                0 <= cut <= lengths[parent],
                "cuts",
                f"segment {i} sees {cut} of {lengths[parent]} parent rows",
            )


def _visitors(
    starts: Sequence[int], lengths: Sequence[int], parents: Sequence[int], cuts: Sequence[int]
) -> list[list[tuple[int, int, int]]]:
    """For each segment the rows of its children's subtrees; a whole subtree sees as much of it as the child
    does.
    """
    below: list[list[tuple[int, int, int]]] = [[] for _ in starts]
    for i in reversed(range(len(starts))):
        below[i] = _joined(sorted(below[i]))
        parent = parents[i]
        if parent >= 0:
            limit = starts[parent] + cuts[i]
            subtree = sorted([(starts[i], starts[i] + lengths[i], 0), *((a, b, 0) for a, b, _ in below[i])])
            below[parent] += [(a, b, limit) for a, b, _ in _joined(subtree)]
    return [
        [entry for entry in entries if entry[2] > start] for start, entries in zip(starts, below, strict=True)
    ]


def _joined(entries: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Neighbours of one limit as one entry."""
    out: list[tuple[int, int, int]] = []
    for first, end, limit in entries:
        if out and out[-1][1] == first and out[-1][2] == limit:
            out[-1] = (out[-1][0], end, limit)
        else:
            out.append((first, end, limit))
    return out


def _between(
    entries: list[tuple[int, int, int]], rows: int, low: int, high: int
) -> list[tuple[int, int, int]]:
    """What holds the blocks low … high - 1 of the entries' rows, cut into blocks of ``rows``."""
    out, before = [], 0
    for first, end, limit in entries:
        count = -(-(end - first) // rows)
        begin, stop = max(low - before, 0), min(high - before, count)
        if begin < stop:
            out.append((first + begin * rows, min(first + stop * rows, end), limit))
        before += count
    return out


def cut(start: Int32, length: Int32, size: int) -> tuple[Int32, Int32]:
    """(segment, first row) of each piece of at most ``size`` rows of the segments."""
    count = -(-length // size)
    owner = np.repeat(np.arange(len(start)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return owner.astype(np.int32), (start[owner] + place * size).astype(np.int32)


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as an int32 tensor."""
    return torch.from_numpy(np.ascontiguousarray(array, np.int32)).to(device)
