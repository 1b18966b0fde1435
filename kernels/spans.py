"""Visibility among the rows of a token tree, as spans of rows instead of a mask.

Rows [T] are grouped in segments, one per tree node, parents before children. A row sees its own segment
causally and, of each ancestor, the rows up to the branch. A segment thus sees a few runs of rows. The last
run ends in the segment itself, and starts at ``base``: an ancestor's first row if ancestors directly precede
the segment, else the segment's own. The other runs are its *spans*.

Rows before ``origin`` are keys alone: an earlier pass computed them (`past.Past`), and they make no queries.

`Spans` cuts this into work for the kernels of `span_attention`, on the host, once per tree: tiles of query
rows and, for the key gradients, the transposed relation: tiles of key rows with the ranges of query rows that
see them. Cost is proportional to the number of visible blocks.
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
"""(first row, end)."""

PROGRAMS = 512
"""Heavy key tiles are split, for about this many programs of equal work.

All samples see the keys of a prompt, and only one sees its own.
"""
LEAST_BLOCKS = 32
"""Fewest query blocks per part of a split key tile."""


@dataclass(frozen=True, slots=True)
class KeyWork:
    """Work of the key gradients; tensors are int32.

    ``items`` [I, 5]: first key row, end, first entry, end of entries, slot of a partial sum (-1: not split).
    ``entries`` [E, 3]: first query row, end, key limit; these queries see the tile's keys that are below the
    limit and at or before them. ``sums`` [J, 4]: first key row, end, first slot, number of slots to add in
    order. ``slots``: number of partial sums.
    """

    items: Tensor
    entries: Tensor
    sums: Tensor
    slots: int


@dataclass(frozen=True, slots=True, eq=False)
class Spans:
    """Segments of rows and what they see; build it with `tree` or `causal`.

    ``rows``: T; the first ``origin`` of them are keys alone. start, length, base [S]; span_offsets [S + 1]
    into spans [N, 2] (first row, end); visitors[i]: (first row, end, limit) of the later rows that see
    segment i's rows below ``limit``.
    """

    rows: int
    start: Int32
    length: Int32
    base: Int32
    span_offsets: Int32
    spans: Int32
    visitors: list[list[tuple[int, int, int]]]
    origin: int = 0
    _cache: dict[object, object] = field(default_factory=dict)

    @classmethod
    def tree(
        cls,
        starts: Sequence[int],
        lengths: Sequence[int],
        parents: Sequence[int],
        cuts: Sequence[int] | None = None,
        origin: int = 0,
    ) -> Spans:
        """Spans of a tree's segments: first row, row count, parent's index (-1: root), parent rows seen.

        ``cuts`` None: all of the parent's rows. Segments must cover each of 0 … T - 1 once, and a parent must
        precede its children, in the list and in rows. Segments that end at or before row ``origin`` are keys
        alone; none may lie on both sides of it. Raises KernelError naming the argument.
        """
        cut = [lengths[p] if p >= 0 else 0 for p in parents] if cuts is None else list(cuts)
        _check(starts, lengths, parents, cut, origin)
        spans: list[list[Run]] = []
        base: list[int] = []
        for start, parent, visible in zip(starts, parents, cut, strict=True):
            runs: list[Run] = []
            if parent >= 0:
                runs = list(spans[parent])
                if base[parent] < starts[parent] + visible:
                    runs.append((base[parent], starts[parent] + visible))
            joined = bool(runs) and runs[-1][1] == start
            base.append(runs.pop()[0] if joined else start)
            spans.append(runs)
        return cls(
            rows=int(sum(lengths)),
            start=np.asarray(starts, np.int32),
            length=np.asarray(lengths, np.int32),
            base=np.asarray(base, np.int32),
            span_offsets=np.cumsum([0, *(len(runs) for runs in spans)], dtype=np.int32),
            spans=np.asarray([r for runs in spans for r in runs], np.int32).reshape(-1, 2),
            visitors=_visitors(starts, lengths, parents, cut, origin),
            origin=origin,
        )

    @classmethod
    def causal(cls, cu_seqlens: Sequence[int]) -> Spans:
        """Packed causal sequences, which may be empty: i has rows cu_seqlens[i] … cu_seqlens[i + 1] - 1.

        Raises KernelError naming the argument.
        """
        edges = [int(x) for x in cu_seqlens]
        require(len(edges) > 0 and edges[0] == 0, "cu_seqlens", f"must begin with 0, got {edges[:1]}")
        pairs = [(a, b) for a, b in pairwise(edges) if a != b]
        return cls.tree([a for a, _ in pairs], [b - a for a, b in pairs], [-1] * len(pairs))

    @property
    def pairs(self) -> int:
        """Number of visible (query, key) pairs."""
        length = self.length.astype(np.int64)
        owner = np.repeat(np.arange(len(length)), np.diff(self.span_offsets))
        in_spans = np.bincount(owner, self.spans[:, 1] - self.spans[:, 0], len(length)).astype(np.int64)
        pairs = length * (in_spans + self.start - self.base) + length * (length + 1) // 2
        return int(pairs[self.start >= self.origin].sum())

    def visible(self) -> NDArray[np.bool_]:
        """The relation as a dense mask bool [T - origin, T] (query, key), for checks."""
        mask = np.zeros((self.rows, self.rows), bool)
        for i, (start, length, base) in enumerate(zip(self.start, self.length, self.base, strict=True)):
            rows = slice(start, start + length)
            for first, end in self.spans[self.span_offsets[i] : self.span_offsets[i + 1]]:
                mask[rows, first:end] = True
            mask[rows, base:start] = True
            mask[rows, rows] = np.tri(length, dtype=bool)
        return mask[self.origin :]

    def runs(self, segment: int) -> list[Run]:
        """All runs of rows that a segment sees, the run that ends in itself last."""
        spans = self.spans[self.span_offsets[segment] : self.span_offsets[segment + 1]].tolist()
        end = int(self.start[segment] + self.length[segment])
        return [*((a, b) for a, b in spans), (int(self.base[segment]), end)]

    def tiles(self, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Tiles int32 [N, 5] of at most ``rows`` query rows, the heaviest first, and the spans int32 [·, 2].

        Columns: first row, end, base, first span, end of spans. Cached per device.
        """
        key = ("tiles", rows, device)
        if key not in self._cache:
            asking = np.flatnonzero(self.start >= self.origin)
            place, first = cut(self.start[asking], self.length[asking], rows)
            owner = asking[place]
            end = np.minimum(first + rows, (self.start + self.length)[owner])
            before = np.concatenate([[0], np.cumsum(self.spans[:, 1] - self.spans[:, 0])])
            in_spans = before[self.span_offsets[1:]] - before[self.span_offsets[:-1]]
            order = np.argsort(-(in_spans[owner] + end - self.base[owner]), kind="stable")
            columns = (first, end, self.base[owner], self.span_offsets[owner], self.span_offsets[owner + 1])
            self._cache[key] = (to_device(np.stack(columns, 1)[order], device), to_device(self.spans, device))
        return self._cache[key]  # type: ignore[return-value]

    def key_work(self, keys: int, rows: int, heads: int, device: torch.device) -> KeyWork:
        """Work of the key gradients: tiles of ``keys`` key rows by blocks of ``rows`` query rows.

        ``heads``: programs per item, which decides how far tiles are split. Cached per device.
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
            own = [(first, end, stop)] if first >= self.origin else []
            queries = _merge_neighbours([*own, *later])
            tiles.append((first, stop, queries, sum(-(-(b - a) // rows) for a, b, _ in queries)))
        total = sum(blocks for _, _, _, blocks in tiles)
        most = max(LEAST_BLOCKS, -(-total * heads // PROGRAMS))
        items, weights, sums, slots = [], [], [], 0
        entries: list[tuple[int, int, int]] = []
        for first, stop, queries, blocks in tiles:
            parts = max(1, -(-blocks // most))
            if parts > 1:
                sums.append((first, stop, slots, parts))
            for part in range(parts):
                low, high = blocks * part // parts, blocks * (part + 1) // parts
                part_entries = _slice_blocks(queries, rows, low, high)
                weights.append(low - high)
                slot = slots + part if parts > 1 else -1
                items.append((first, stop, len(entries), len(entries) + len(part_entries), slot))
                entries += part_entries
            slots += parts if parts > 1 else 0
        order = np.argsort(np.asarray(weights, np.int64), kind="stable")
        return KeyWork(
            to_device(np.asarray(items, np.int32).reshape(-1, 5)[order], device),
            to_device(np.asarray(entries, np.int32).reshape(-1, 3), device),
            to_device(np.asarray(sums, np.int32).reshape(-1, 4), device),
            slots,
        )


def _check(
    starts: Sequence[int], lengths: Sequence[int], parents: Sequence[int], cuts: Sequence[int], origin: int
) -> None:
    count = len(starts)
    for name, values in (("lengths", lengths), ("parents", parents), ("cuts", cuts)):
        require(len(values) == count, name, f"{len(values)} of them for {count} starts")
    require(all(n > 0 for n in lengths), "lengths", "every segment needs a row")
    at = 0
    for start, length in sorted(zip(starts, lengths, strict=True)):
        require(start == at, "starts", f"row {min(start, at)} is covered twice or not at all")
        inside = start < origin < start + length
        require(not inside, "origin", f"{origin} lies inside the segment of rows {start} … {at + length - 1}")
        at += length
    require(0 <= origin <= at, "origin", f"{origin} is not one of the rows 0 … {at}")
    for i, (start, parent, cut) in enumerate(zip(starts, parents, cuts, strict=True)):
        require(-1 <= parent < i, "parents", f"segment {i} has parent {parent}; parents come first")
        if parent >= 0:
            require(starts[parent] < start, "parents", f"segment {i} comes before its parent's rows")
            problem = f"segment {i} sees {cut} of {lengths[parent]} parent rows"
            require(0 <= cut <= lengths[parent], "cuts", problem)


def _visitors(
    starts: Sequence[int], lengths: Sequence[int], parents: Sequence[int], cuts: Sequence[int], origin: int
) -> list[list[tuple[int, int, int]]]:
    """Per segment, the rows of its children's subtrees; a subtree sees as much of it as the child does.

    Rows before ``origin`` visit nobody.
    """
    below: list[list[tuple[int, int, int]]] = [[] for _ in starts]
    for i in reversed(range(len(starts))):
        below[i] = _merge_neighbours(sorted(below[i]))
        parent = parents[i]
        if parent >= 0:
            limit = starts[parent] + cuts[i]
            own = [(starts[i], starts[i] + lengths[i], 0)] if starts[i] >= origin else []
            subtree = sorted([*own, *((a, b, 0) for a, b, _ in below[i])])
            below[parent] += [(a, b, limit) for a, b, _ in _merge_neighbours(subtree)]
    return [
        [entry for entry in entries if entry[2] > start] for start, entries in zip(starts, below, strict=True)
    ]


def _merge_neighbours(entries: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Adjacent entries (first row, end, limit) of equal limit, merged."""
    out: list[tuple[int, int, int]] = []
    for first, end, limit in entries:
        if out and out[-1][1] == first and out[-1][2] == limit:
            out[-1] = (out[-1][0], end, limit)
        else:
            out.append((first, end, limit))
    return out


def _slice_blocks(
    entries: list[tuple[int, int, int]], rows: int, low: int, high: int
) -> list[tuple[int, int, int]]:
    """The part of the entries with blocks low … high - 1, if their rows are cut in blocks of ``rows``."""
    out, before = [], 0
    for first, end, limit in entries:
        count = -(-(end - first) // rows)
        begin, stop = max(low - before, 0), min(high - before, count)
        if begin < stop:
            out.append((first + begin * rows, min(first + stop * rows, end), limit))
        before += count
    return out


def cut(start: Int32, length: Int32, size: int) -> tuple[Int32, Int32]:
    """(segment, first row) of each piece, of at most ``size`` rows, of the segments."""
    count = -(-length // size)
    owner = np.repeat(np.arange(len(start)), count)
    place = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count, count)
    return owner.astype(np.int32), (start[owner] + place * size).astype(np.int32)


def to_device(array: NDArray[np.generic], device: torch.device) -> Tensor:
    """The array as an int32 tensor on ``device``."""
    return torch.from_numpy(np.ascontiguousarray(array, np.int32)).to(device)
