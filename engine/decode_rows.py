"""The rows of decoding sequences on a CPU: index tensors that are advanced from step to step.

`KeptRows` keeps keys and values together (`kept`) and follows the decode set as sequences join and leave;
`PagedRows` reads the pages at every step, for what is not kept: deterministic mode, sequences that end soon,
more than `KEPT_BYTES`, torch's forms on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from proactor.engine.blocks import DECODE_OVERHEAD, Family, Index, Member, stack
from proactor.engine.kept import KeptBlock
from proactor.engine.step import Decode, Step
from proactor.kernels.attention_block import AttentionBlock

SPARE = 64
"""Most tokens a sequence for which there is room, before its cohort is gathered again."""
KEPT_BYTES = 1 << 28
"""Most bytes to keep; a larger decode set reads its pages at every step."""
WORTH = 4
"""Steps that a sequence has to go on to be kept: gathering it costs as much as reading its pages thrice."""
LARGER = 4
"""A cohort so many times as large as those that join is left alone; a smaller one is gathered with them."""


def decode_places(decodes: Sequence[Decode], page_size: int) -> tuple[Index, Index]:
    """(position, slot in the cache) of the token that each sequence computes next."""
    count = len(decodes)
    positions = np.fromiter((d.length for d in decodes), np.int64, count) - 1
    pages = np.fromiter((d.block_table[(d.length - 1) // page_size] for d in decodes), np.int64, count)
    return positions, pages * page_size + positions % page_size


def decode_blocks(decodes: Sequence[Decode], page_size: int) -> list[AttentionBlock]:
    """Blocks of sequences, a row each: samples of a request that share pages are a family."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, d in enumerate(decodes):
        groups.setdefault(d.family, []).append(i)
    families = []
    for rows in groups.values():
        shared = decodes[rows[0]].shared_pages
        members = [
            Member(np.asarray([i]), np.asarray(decodes[i].block_table[shared:], np.int64)) for i in rows
        ]
        families.append(Family(np.asarray(decodes[rows[0]].block_table[:shared], np.int64), members))
    return stack(families, page_size, DECODE_OVERHEAD)


def shared_tokens(decodes: Sequence[Decode], page_size: int) -> Index:
    """Tokens of each sequence that its family shares."""
    return np.asarray([d.shared_pages * page_size for d in decodes], np.int64)


class PagedRows:
    """Index tensors of a decode set whose pages are read at every step.

    Built anew when the set changes or a sequence gets a page.
    """

    def __init__(self, step: Step, page_size: int) -> None:
        self.decodes, self.page_size, self.membership = step.decodes, page_size, step.membership
        self.blocks = decode_blocks(self.decodes, page_size)
        self.shared = shared_tokens(self.decodes, page_size)
        self._spans = [np.arange(block.own.shape[2] * page_size) for block in self.blocks]
        self._order = [block.rows[:, :, 0].numpy() for block in self.blocks]

    def serves(self, step: Step) -> bool:
        """Whether these tensors hold for ``step``, once they are refreshed."""
        return step.membership == self.membership

    def refresh(self) -> tuple[Index, Index]:
        """Positions and write slots of this step's rows; updates the blocks to the lengths."""
        positions, slots = decode_places(self.decodes, self.page_size)
        seen = positions - self.shared
        for block, span, rows in zip(self.blocks, self._spans, self._order, strict=True):
            hidden = torch.from_numpy(span > seen[rows][..., None])
            block.own_hidden = hidden.unsqueeze(2)
        return positions, slots


class Cohort:
    """Sequences that were gathered at one step, with room for ``spare`` further tokens of each."""

    def __init__(self, members: list[Decode], page_size: int, layers: int) -> None:
        self.members, self.live = members, len(members)
        self.spare = max(1, min(SPARE, max(d.left for d in members)))
        self._shared = shared_tokens(members, page_size)
        seen = self._seen()
        self.blocks = [
            KeptBlock(block, seen, self.spare, page_size, layers)
            for block in decode_blocks(members, page_size)
        ]

    def _seen(self) -> Index:
        """Own tokens of each member before this step."""
        return np.fromiter((d.length for d in self.members), np.int64, len(self.members)) - 1 - self._shared

    def place(self, rows: dict[int, int]) -> None:
        """Follow a change of the decode set, given each sequence's row by the `id` of its object."""
        mine = np.fromiter((rows.get(id(d), -1) for d in self.members), np.int64, len(self.members))
        self.live = int((mine >= 0).sum())
        self.blocks = [block for block in self.blocks if block.place(mine)]

    @property
    def worn(self) -> bool:
        """Out of room, or a quarter of what is read belongs to sequences that have left."""
        return self.spare < 1 or 4 * self.live < 3 * len(self.members)

    def advance(self) -> None:
        """Begin a step."""
        self.spare -= 1
        seen = self._seen()
        for block in self.blocks:
            block.advance(seen)


class KeptRows:
    """A decode set as cohorts, each larger than the one gathered after it.

    Those that join are a cohort, gathered together with the cohorts that are not much larger, and with what
    is left of worn ones: a sequence is gathered again a number of times that grows with the logarithm of the
    set, however often the set changes.
    """

    def __init__(self, page_size: int, layers: int, token_bytes: int) -> None:
        self.page_size, self.layers = page_size, layers
        self.most_tokens = KEPT_BYTES // token_bytes
        self.cohorts: list[Cohort] = []
        self.decodes: list[Decode] = []
        self._roster = self._refused = -1

    @property
    def blocks(self) -> list[KeptBlock]:
        """The blocks of all cohorts."""
        return [block for cohort in self.cohorts for block in cohort.blocks]

    def forget(self) -> None:
        """Let go of everything."""
        self.cohorts, self.decodes, self._roster = [], [], -1

    def follow(self, step: Step) -> bool:
        """Take over the step's decode set; False where it is not kept, and nothing is then."""
        if step.roster == self._refused or (not self.cohorts and max(d.left for d in step.decodes) < WORTH):
            return False
        if step.roster != self._roster or any(cohort.worn for cohort in self.cohorts):
            self._roster, self.decodes = step.roster, step.decodes
            self._regroup()
        if sum(block.tokens for block in self.blocks) > self.most_tokens:
            self.forget()
            self._refused = step.roster
            return False
        return True

    def _regroup(self) -> None:
        rows = {id(decode): row for row, decode in enumerate(self.decodes)}
        kept: list[Cohort] = []
        for cohort in self.cohorts:
            cohort.place(rows)
            if cohort.live and not cohort.worn:
                kept.append(cohort)
        known = {id(d) for cohort in kept for d in cohort.members}
        joining = [d for d in self.decodes if id(d) not in known]
        while joining and kept and kept[-1].live < LARGER * len(joining):
            joining += [d for d in kept.pop().members if id(d) in rows]
        if joining:
            joining.sort(key=lambda d: rows[id(d)])
            kept.append(Cohort(joining, self.page_size, self.layers))
            kept[-1].place(rows)
        self.cohorts = kept

    def refresh(self) -> tuple[Index, Index]:
        """Positions and write slots of this step's rows; moves the cohorts on."""
        for cohort in self.cohorts:
            cohort.advance()
        return decode_places(self.decodes, self.page_size)
