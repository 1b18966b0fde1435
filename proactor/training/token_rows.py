"""Dialogues as rows of token ids for the pre-training of a small model.

A dialogue and its decision points are one row of a batch: the trunk once, then segments that each see the
trunk up to their turn, by a 4-D attention mask.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.config_base import SmallModel
from proactor.dialogue import Dialogue
from proactor.dialogue.decisions import decisions
from proactor.dialogue.prompt import PromptEncoder, unknowable

IGNORED = -100
BLOCK = 32
"""Lengths of batches are multiples of this: oneDNN compiles and keeps its products by shape."""
GIVEN = 2
"""Tokens of a copy that are not trained: they say where the copy begins."""


@dataclass(slots=True)
class TokenRow:
    """A dialogue as one row of a batch.

    Per token: its id, position, segment (0 is the trunk) and, outside the trunk, the weight of its loss.
    ``trunk_seen``: tokens of the trunk that each segment sees.
    """

    ids: list[int]
    positions: list[int]
    segment: list[int]
    trunk_seen: list[int]
    weight: list[float]

    def branch(self, seen: int, ids: list[int], trained: int, weight: float = 1.0) -> None:
        """Add a segment after the first ``seen`` tokens of the trunk; its last ``trained`` have a loss."""
        self.trunk_seen.append(seen)
        self.ids += ids
        self.positions += range(seen, seen + len(ids))
        self.segment += [len(self.trunk_seen) - 1] * len(ids)
        self.weight += [0.0] * (len(ids) - trained) + [weight] * trained


def row(encoder: PromptEncoder, dialogue: Dialogue, size: SmallModel) -> TokenRow:
    """A dialogue for training: its trunk, then decision points, each with its board and wanted answer.

    Where the answer is to wait, a ``size.waiting_share`` of the points is drawn, with the inverse weight.
    Each point brings one more segment: ``size.copy_tokens`` tokens of the trunk before it, said again.
    """
    draws = random.Random(f"row/{size.seed}/{dialogue.id}")
    out, trunk = _open_row(encoder, dialogue)
    wait = len(encoder.answer(()))
    for seen, prompt, answer in _segments(encoder, dialogue, size):
        weight = 1.0
        if len(answer) <= wait and size.waiting_share < 1:
            if draws.random() >= size.waiting_share:
                continue
            weight = 1 / size.waiting_share
        out.branch(seen, [*prompt, *answer], len(answer), weight)
        if (length := min(size.copy_tokens, seen)) > GIVEN:
            start = draws.randrange(seen - length + 1)
            out.branch(seen, trunk[start : start + length], length - GIVEN)
    return out


def held_out_row(encoder: PromptEncoder, dialogue: Dialogue, size: SmallModel) -> TokenRow:
    """A dialogue for the held-out loss: every decision point once, nothing else."""
    out, _ = _open_row(encoder, dialogue)
    for seen, prompt, answer in _segments(encoder, dialogue, size):
        out.branch(seen, [*prompt, *answer], len(answer))
    return out


def _open_row(encoder: PromptEncoder, dialogue: Dialogue) -> tuple[TokenRow, list[int]]:
    """(a row that holds the trunk up to the last decision, the ids of the whole trunk)."""
    trunk = encoder.trunk(dialogue)
    end = trunk.ends[dialogue.decision_turns[-1]]
    return TokenRow(trunk.ids[:end], list(range(end)), [0] * end, [0], [0.0] * end), trunk.ids


def _segments(
    encoder: PromptEncoder, dialogue: Dialogue, size: SmallModel
) -> Iterator[tuple[int, list[int], list[int]]]:
    """(trunk tokens seen, rest of the prompt, wanted answer) of each decision point.

    Points where an unknown window may be right are left out.
    """
    ends = encoder.trunk(dialogue).ends
    for point in decisions(encoder, [dialogue], seed=size.seed, epoch=0):
        if not unknowable(dialogue, point.turn, point.board):
            seen = ends[point.turn]
            answer = encoder.target_ids(dialogue, point.turn, point.board, pending=size.pending)
            yield seen, point.prompt[seen:], answer


def collate(
    rows: Sequence[TokenRow], pad: int, text_weight: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(model inputs, next-token labels [B, L], loss weights [B, L]) of rows padded to a multiple of `BLOCK`.

    Inputs: ids and positions [B, L] int64, additive attention mask [B, 1, L, L] float32.
    """
    length = -(-max(len(r.ids) for r in rows) // BLOCK) * BLOCK
    ids = torch.full((len(rows), length), pad)
    positions = torch.zeros(len(rows), length, dtype=torch.long)
    labels, weights = torch.full((len(rows), length), IGNORED), torch.zeros(len(rows), length)
    visible = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    for b, r in enumerate(rows):
        n = len(r.ids)
        ids[b, :n], positions[b, :n] = torch.tensor(r.ids), torch.tensor(r.positions)
        segment, index = torch.tensor(r.segment), torch.arange(n)
        same_segment = (segment[:, None] == segment[None, :]) & (index[None, :] <= index[:, None])
        trunk = (segment[None, :] == 0) & (index[None, :] < torch.tensor(r.trunk_seen)[segment][:, None])
        visible[b, :n, :n] = same_segment | trunk
        inside = segment[1:] == segment[:-1]
        labels[b, : n - 1] = torch.where(inside, ids[b, 1:n], IGNORED)
        weights[b, : n - 1] = torch.where(segment[1:] == 0, text_weight, torch.tensor(r.weight)[1:])
    mask = torch.zeros(len(rows), 1, length, length).masked_fill_(
        ~visible[:, None], torch.finfo(torch.float32).min
    )
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}, labels, weights
