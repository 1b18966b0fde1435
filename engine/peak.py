"""Bytes that live at the height of a pass over a given tree: what a plan predicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proactor.engine.chunks import Chunk
from proactor.engine.footprint import COLUMNS, Footprint
from proactor.engine.layout import Layout
from proactor.engine.loss import Loss
from proactor.engine.tree import Tree


@dataclass(frozen=True, slots=True)
class Peak:
    footprint: Footprint

    def of(self, tree: Tree, flat: Layout, chunks: Sequence[Chunk], loss: Loss) -> int:
        most = max((len(c.rows) for c in chunks), default=tree.rows)
        kept = max((c.before + len(c.keep) for c in chunks), default=0)
        beside = kept * self.footprint.kept_row + tree.rows * COLUMNS if chunks else 0
        return self.footprint.pass_bytes(most, True) + beside
