"""Segments: runs of key rows in which a row sees what its segment's ancestors hold and what precedes it.

What both forms of attention are built from: blocks of rows (`engine/blocks.py`) on a CPU, spans on a GPU.
"""

from __future__ import annotations

from typing import NamedTuple

from proactor.engine.tree import ROOT, Tree
from proactor.kernels.spans import Spans


class Segment(NamedTuple):
    """``length`` rows from ``start``, below the segment ``parent`` (an index in the same list, or ROOT)."""

    start: int
    length: int
    parent: int


def tree_segments(tree: Tree, start: dict[int, int]) -> list[Segment]:
    """A segment for each node, whose first row is ``start[node]``, in the order of ``start``."""
    place = {node: i for i, node in enumerate(start)} | {ROOT: ROOT}
    return [Segment(first, len(tree.nodes[i].ids), place[tree.nodes[i].parent]) for i, first in start.items()]


def segment_spans(segments: list[Segment], origin: int = 0) -> Spans:
    """The segments as `Spans`; the rows before ``origin`` are keys alone."""
    starts, lengths, parents = ([s[i] for s in segments] for i in range(3))
    return Spans.tree(starts, lengths, parents, origin=origin)
