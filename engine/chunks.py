"""Chunks of a token tree: parts small enough for one pass with gradient, cut from the root on.

A chunk's rows see rows of the same chunk and kept rows of earlier ones. Kept are the rows that a later chunk
sees: all ancestors of it. The walk is depth first, samples before the turns that follow, so that a dialogue
falls apart into turns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from proactor.engine.segments import Segment
from proactor.engine.tree import ROOT, Ids, Tree


@dataclass(slots=True)
class Piece:
    """``length`` rows of a node from row ``first`` of the tree's layout, in chunk ``chunk``.

    ``parent``: the piece before it on the path, or ROOT. ``slot``: its first key among the kept ones of all
    chunks; None: nobody sees it later.
    """

    first: int
    length: int
    parent: int
    chunk: int
    slot: int | None = None


@dataclass(frozen=True, slots=True)
class Chunk:
    """``rows`` [T] of the tree's layout.

    ``before``: kept rows of earlier chunks, which are keys 0 … before - 1; the own rows follow them.
    ``keep`` [M]: which of the own rows are kept, as keys before … before + M - 1 of later chunks.
    ``segments``: of all these keys.
    """

    rows: Ids
    before: int
    keep: Ids
    segments: list[Segment]


def cut(tree: Tree, start: dict[int, int], most: int) -> list[Chunk]:
    """Chunks of at most ``most`` rows; ``start`` gives each node's first row. They depend on nothing else.

    A node that fits a chunk is not cut.
    """
    pieces = _pieces(tree, start, most)
    count = pieces[-1].chunk + 1 if pieces else 0
    return [_chunk(pieces, i) for i in range(count)]


def most_kept(tree: Tree, least: int) -> int:
    """At most so many rows of ``tree`` are kept, in chunks of ``least`` rows or more: those with others below
    them, and those of samples that a chunk may not hold.
    """
    parents = {node.parent for node in tree.nodes}
    lengths = ((len(node.ids), i in parents) for i, node in enumerate(tree.nodes))
    return sum(length for length, inner in lengths if inner or length > least)


def kept_alone(chunks: Sequence[Chunk]) -> list[Chunk]:
    """What is left of each chunk with its kept rows alone; chunks that keep nothing are left out."""
    out = []
    for chunk in chunks:
        if not len(chunk.keep):
            continue
        segments: list[Segment] = []
        renumbered = {ROOT: ROOT}
        kept = dict(zip(chunk.keep.tolist(), range(len(chunk.keep)), strict=True))
        for i, segment in enumerate(chunk.segments):
            local = segment.start - chunk.before
            if local >= 0 and local not in kept:
                continue
            first = segment.start if local < 0 else chunk.before + kept[local]
            renumbered[i] = len(segments)
            segments.append(Segment(first, segment.length, renumbered[segment.parent]))
        out.append(Chunk(chunk.rows[chunk.keep], chunk.before, np.arange(len(chunk.keep)), segments))
    return out


def _pieces(tree: Tree, start: dict[int, int], most: int) -> list[Piece]:
    """All pieces in the order of the walk, with the slots of those that are kept."""
    pieces: list[Piece] = []
    last: dict[int, int] = {ROOT: ROOT}
    chunk, size = 0, 0
    for i in _depth_first(tree):
        done, length, parent = 0, len(tree.nodes[i].ids), last[tree.nodes[i].parent]
        while done < length:
            rest = length - done
            if size == most or (size and size + rest > most >= rest):
                chunk, size = chunk + 1, 0
            take = min(rest, most - size)
            pieces.append(Piece(start[i] + done, take, parent, chunk))
            parent, done, size = len(pieces) - 1, done + take, size + take
        last[i] = parent
    _give_slots(pieces)
    return pieces


def _depth_first(tree: Tree) -> Iterator[int]:
    """Nodes, parents first; of siblings those without children first, then each with all that is below it."""
    below: dict[int, list[int]] = {}
    for i, node in enumerate(tree.nodes):
        below.setdefault(node.parent, []).append(i)
    stack = [ROOT]
    while stack:
        i = stack.pop()
        if i != ROOT:
            yield i
        stack.extend(sorted(below.get(i, []), key=lambda child: (child not in below, -child)))


def _give_slots(pieces: list[Piece]) -> None:
    """Number the rows of the pieces that a later chunk sees: its ancestors', and so theirs in turn."""
    seen: set[int] = set()
    for piece in pieces:
        at = piece.parent
        while at != ROOT and at not in seen:
            if pieces[at].chunk < piece.chunk:
                seen.add(at)
            at = pieces[at].parent
    slots = 0
    for i, piece in enumerate(pieces):
        if i in seen:
            piece.slot = slots
            slots += piece.length


def _chunk(pieces: list[Piece], index: int) -> Chunk:
    segments: list[Segment] = []
    place = {ROOT: ROOT}
    before = own = 0
    rows: list[Ids] = []
    keep: list[Ids] = []
    for i, piece in enumerate(pieces):
        if piece.chunk > index:
            break
        if piece.chunk < index:
            if piece.slot is None:
                continue
            first = piece.slot
            before = first + piece.length
        else:
            first = before + own
            rows.append(np.arange(piece.first, piece.first + piece.length))
            if piece.slot is not None:
                keep.append(np.arange(own, own + piece.length))
            own += piece.length
        place[i] = len(segments)
        segments.append(Segment(first, piece.length, place[piece.parent]))
    kept = np.concatenate(keep) if keep else np.empty(0, np.int64)
    return Chunk(np.concatenate(rows), before, kept, segments)
