"""Attention blocks of the CPU form: which rows see which keys, stacked into few batched products.

Members that share a context form a family: siblings in a tree, the samples of a prompt. Long runs are cut
into chunks, each a family of one whose context is everything before it. Families of similar shape are stacked
into one `AttentionBlock` when the padding costs less than another round of small operations. A unit is a tree
row, or a page of the KV cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from proactor.engine.segments import Segment
from proactor.engine.tree import ROOT
from proactor.kernels.attention_block import AttentionBlock

CHUNK = 256
"""Longest run of rows handled as one member: half of its square of own keys is hidden."""
OVERHEAD = 3_000
"""Query-key pairs, each counted once for all heads, that take as long as one more block. From 1,000 to 6,000
the times of a training step are the same, for 4 heads of 32 and 9 of 64."""
DECODE_OVERHEAD = 40_000
"""The same for decoding: a pair takes less, and blocks are built again whenever the set changes."""

Index = NDArray[np.int64]
Shape = tuple[int, int, int, int]
EMPTY: Index = np.empty(0, np.int64)


@dataclass(slots=True)
class Member:
    """Query ``rows`` [lq]; query i sees its own keys 0 … ``offset`` + i, which lie in the units ``own``."""

    rows: Index
    own: Index
    offset: int = 0


@dataclass(slots=True)
class Family:
    """Members that all see every key of the ``context`` units."""

    context: Index
    members: list[Member]

    @property
    def shape(self) -> Shape:
        """(members, longest run of rows, most own units, context units)."""
        return (
            len(self.members),
            max(len(m.rows) for m in self.members),
            max(len(m.own) for m in self.members),
            len(self.context),
        )


def segment_families(segments: Sequence[Segment], origin: int = 0) -> list[Family]:
    """Every row of the segments from key ``origin`` on as a query in exactly one family.

    Queries are numbered from ``origin``, keys from 0: the rows before it are keys alone. A segment and the
    child below it with the most rows are one run, and so on downwards: of a dialogue, the whole trunk.
    """
    path: list[Index] = []
    for start, length, parent in segments:
        above = path[parent] if parent != ROOT else EMPTY
        path.append(np.concatenate([above, np.arange(start, start + length)]))
    out: list[Family] = []
    siblings: dict[int, list[Index]] = {}
    for first, last in _runs(segments, origin):
        parent = segments[first].parent
        before = len(path[parent]) if parent != ROOT else 0
        rows = path[last][before:]
        siblings.setdefault(parent, []).append(rows[:CHUNK])
        for at in range(CHUNK, len(rows), CHUNK):
            run = rows[at : at + CHUNK]
            out.append(Family(path[last][: before + at], [Member(run - origin, run)]))
    for parent, runs in siblings.items():
        context = path[parent] if parent != ROOT else EMPTY
        out.extend(Family(context, [Member(r - origin, r) for r in similar]) for similar in _similar(runs))
    return out


def _runs(segments: Sequence[Segment], origin: int) -> list[tuple[int, int]]:
    """(first, last) segment of each run of those from key ``origin`` on."""
    below = [segment.length for segment in segments]
    longest: dict[int, int] = {}
    for i in range(len(segments) - 1, -1, -1):
        start, _, parent = segments[i]
        if parent == ROOT or start < origin:
            continue
        below[parent] += below[i]
        if parent not in longest or below[i] >= below[longest[parent]]:
            longest[parent] = i
    out = []
    for i, (start, _, parent) in enumerate(segments):
        joined = parent != ROOT and segments[parent].start >= origin and longest[parent] == i
        if start < origin or joined:
            continue
        last = i
        while last in longest:
            last = longest[last]
        out.append((i, last))
    return out


def _similar(runs: list[Index]) -> list[list[Index]]:
    """Split siblings where padding them to one length would waste more than half of it."""
    groups: list[list[Index]] = []
    for rows in sorted(runs, key=len, reverse=True):
        if groups and len(groups[-1][0]) <= 2 * len(rows) + 8:
            groups[-1].append(rows)
        else:
            groups.append([rows])
    return groups


def chunk_families(table: list[int], unit: int, start: int, rows: Index) -> list[Family]:
    """Prompt tokens ``start …`` (their rows given) of a sequence whose keys lie in the pages of ``table``."""
    pages, out = np.asarray(table, np.int64), []
    for first in range(0, len(rows), CHUNK):
        part = rows[first : first + CHUNK]
        begin = start + first
        base, end = begin // unit, -(-(begin + len(part)) // unit)
        out.append(Family(pages[:base], [Member(part, pages[base:end], begin - base * unit)]))
    return out


def stack(families: list[Family], unit: int = 1, overhead: int | None = None) -> list[AttentionBlock]:
    """Stack families into blocks, greedily from the largest, while padding costs less than another block.

    ``unit``: tokens of a unit, 1 for tree rows; ``overhead``: of a block [`OVERHEAD`].
    """
    overhead = OVERHEAD if overhead is None else overhead

    def cost(count: int, shape: Shape) -> int:
        members, rows, own, context = shape
        return count * members * rows * (own + context) * unit

    blocks: list[AttentionBlock] = []
    held: list[Family] = []
    shape, separate = (0, 0, 0, 0), 0  # of the held families: padded shape; cost as a block each
    for family in sorted(families, key=lambda f: f.shape, reverse=True):
        single = cost(1, family.shape)
        a, b, c, d = (max(pair) for pair in zip(shape, family.shape, strict=True))
        padded: Shape = (a, b, c, d)
        if held and cost(len(held) + 1, padded) > separate + single + overhead:
            blocks.append(_block(held, unit))
            held, separate, padded = [], 0, family.shape
        separate += single + (overhead if held else 0)
        held, shape = [*held, family], padded
    return [*blocks, _block(held, unit)] if held else blocks


def _block(held: list[Family], unit: int) -> AttentionBlock:
    """Pad families to one shape. Padding repeats real rows and units; masks hide it."""
    f = len(held)
    n, lq, lo, lc = (max(h.shape[i] for h in held) for i in range(4))
    rows, real = np.zeros((f, n, lq), np.int64), np.zeros((f, n, lq), bool)
    last = np.zeros((f, n), np.int64)
    own, offset = np.zeros((f, n, lo), np.int64), np.zeros((f, n), np.int64)
    context, far = np.zeros((f, lc), np.int64), np.ones((f, lc), bool)
    for i, family in enumerate(held):
        context[i], far[i, : len(family.context)] = family.members[0].own[0], False
        context[i, : len(family.context)] = family.context
        rows[i], own[i] = family.members[0].rows[0], family.members[0].own[0]
        for j, member in enumerate(family.members):
            rows[i, j], own[i, j], offset[i, j] = member.rows[-1], member.own[-1], member.offset
            rows[i, j, : len(member.rows)], own[i, j, : len(member.own)] = member.rows, member.own
            real[i, j, : len(member.rows)], last[i, j] = True, len(member.rows) - 1
    # a padding query sees what the last real one does
    seen = offset[:, :, None] + np.minimum(np.arange(lq), last[:, :, None])
    near = np.arange(lo * unit) > seen[..., None]
    return AttentionBlock(
        rows=torch.from_numpy(rows),
        context=torch.from_numpy(context),
        own=torch.from_numpy(own),
        valid=None if real.all() else torch.from_numpy(np.flatnonzero(real)),
        context_hidden=torch.from_numpy(np.repeat(far, unit, axis=1)) if far.any() else None,
        own_hidden=torch.from_numpy(near) if near.any() else None,
        causal=lq > 1 and not offset.any(),
    )
