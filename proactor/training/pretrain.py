"""Pre-training of the small model in a short transformers loop, so that the project needs no download.

The model learns to continue dialogues, to answer at their decision points and to repeat what was said. A
dialogue and all its decision points are one row of a batch: a 4-D attention mask lets each answer see the
trunk up to its turn.
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proactor.config import SmallModel
from proactor.dialogue import Dialogue
from proactor.dialogue.decisions import decisions
from proactor.dialogue.prompt import PromptEncoder, unknowable

IGNORED = -100
GIVEN = 2
"""Tokens of a copy that are not trained: they say where the copy begins."""


@dataclass(slots=True)
class TokenRow:
    """A dialogue as one row of a batch.

    Per token: its id, position, segment (0 is the trunk, then one per decision point) and whether it belongs
    to a wanted answer. ``trunk_seen``: tokens of the trunk that each segment sees.
    """

    ids: list[int]
    positions: list[int]
    segment: list[int]
    trunk_seen: list[int]
    answer: list[bool]

    def branch(self, seen: int, ids: list[int], trained: int) -> None:
        """Add a segment after the first ``seen`` tokens of the trunk; its last ``trained`` are an answer."""
        self.trunk_seen.append(seen)
        self.ids += ids
        self.positions += range(seen, seen + len(ids))
        self.segment += [len(self.trunk_seen) - 1] * len(ids)
        self.answer += [False] * (len(ids) - trained) + [True] * trained


def row(encoder: PromptEncoder, dialogue: Dialogue, size: SmallModel, copies: bool = True) -> TokenRow:
    """The trunk once, then the board and wanted answer of each decision point, as segments.

    With ``copies`` each decision point has one more segment: a span of `SmallModel.copy_tokens` tokens of the
    trunk before it, said again. Points where an unknown window may be right are left out.
    """
    trunk = encoder.trunk(dialogue)
    end = trunk.ends[dialogue.decision_turns[-1]]
    out = TokenRow(trunk.ids[:end], list(range(end)), [0] * end, [0], [False] * end)
    draws = random.Random(f"copy/{size.seed}/{dialogue.id}")
    for point in decisions(encoder, [dialogue], seed=size.seed, epoch=0):
        if unknowable(dialogue, point.turn, point.board):
            continue
        seen = trunk.ends[point.turn]
        answer = encoder.target_ids(dialogue, point.turn, point.board, pending=size.pending)
        prompt = point.prompt[seen:]
        out.branch(seen, [*prompt, *answer], trained=len(answer))
        if copies and (length := min(size.copy_tokens, seen)) > GIVEN:
            start = draws.randrange(seen - length + 1)
            out.branch(seen, trunk.ids[start : start + length], trained=length - GIVEN)
    return out


def collate(
    rows: Sequence[TokenRow], pad: int, text_weight: float
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(model inputs, next-token labels [B, L], loss weights [B, L]) of padded rows.

    Inputs: ids and positions [B, L] int64, additive attention mask [B, 1, L, L] float32.
    """
    length = max(len(r.ids) for r in rows)
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
        weights[b, : n - 1] = torch.where(
            torch.tensor(r.answer)[1:], 1.0, torch.where(segment[1:] == 0, text_weight, 0.0)
        )
    mask = torch.zeros(len(rows), 1, length, length).masked_fill_(
        ~visible[:, None], torch.finfo(torch.float32).min
    )
    return {"input_ids": ids, "position_ids": positions, "attention_mask": mask}, labels, weights


def has_bfloat16_products() -> bool:
    """Whether this CPU has instructions for products in bfloat16, faster than in float32."""
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def loss_of(model: Any, inputs: dict[str, Tensor], labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean negative log-likelihood, in nats per unit of weight.

    Products are in bfloat16 where `has_bfloat16_products`; weights, their gradients and the loss in float32.
    """
    with torch.autocast("cpu", torch.bfloat16, enabled=has_bfloat16_products()):
        logits = model(**inputs, use_cache=False).logits.float()
    nll = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="none"
    )
    return (nll * weights.flatten()).sum() / weights.sum().clamp(min=1)


def pretrain(
    model: Any,
    encoder: PromptEncoder,
    train: Sequence[Dialogue],
    held_out: Sequence[Dialogue],
    size: SmallModel,
    *,
    seconds: float,
    warm: Sequence[Dialogue] = (),
    patience: int = 4,
    check_every: int = 50,
    progress: Callable[[float, str], None] | None = None,
) -> list[tuple[int, float]]:
    """Train all weights until the held-out loss of the answers stops falling, or for ``seconds``.

    ``warm``: dialogues seen once before those of ``train``; the held-out loss is checked from there on.
    Returns (step, held-out loss) pairs. The rate warms up over 3% of the time and falls over the last 60%.
    """
    # Torch's fused attention is slower in bfloat16 than in float32, and than plain products.
    model.set_attn_implementation("eager" if has_bfloat16_products() else "sdpa")
    optimizers = _optimizers(model, size)
    pad = encoder.chat.tokenizer.pad_token_id
    checks = [
        collate([row(encoder, d, size, copies=False) for d in held_out[i : i + 16]], pad, 0.0)
        for i in range(0, len(held_out), 16)
    ]
    first = -(-len(warm) // size.batch)
    batches = itertools.chain(
        itertools.islice(_batches(encoder, warm, size), first), _batches(encoder, train, size)
    )
    history: list[tuple[int, float]] = []
    start, step, best, stale = time.monotonic(), 0, math.inf, 0
    while (elapsed := (time.monotonic() - start) / seconds) < 1 and stale < patience:
        rows = next(batches)
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, elapsed / 0.03 + 0.02, (1 - elapsed) / 0.6)
        loss = loss_of(model, *collate(rows, pad, size.text_weight))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        step += 1
        if step <= first and step % check_every == 0 and progress is not None:
            progress(elapsed, f"step {step}, loss {float(loss.detach()):.3f}")
        elif step % check_every == 0:
            with torch.no_grad():
                held = sum(float(loss_of(model, *batch)) for batch in checks) / len(checks)
            history.append((step, held))
            stale = 0 if held < best - 1e-4 else stale + 1
            best = min(best, held)
            if progress is not None:
                progress(elapsed, f"step {step}, loss {float(loss.detach()):.3f}, held-out {held:.3f}")
    return history


def _optimizers(model: Any, size: SmallModel) -> list[tuple[torch.optim.Optimizer, float]]:
    """(optimizer, its rate): Muon for the layers' matrices, AdamW for the rest.

    With Muon the layers learn to copy values in far fewer steps.
    """
    matrices: list[Tensor] = []
    others: list[Tensor] = []
    for name, parameter in model.named_parameters():
        (matrices if parameter.ndim == 2 and "layers" in name else others).append(parameter)
    muon = torch.optim.Muon(
        matrices, lr=size.muon_lr, weight_decay=0.01, momentum=0.95, adjust_lr_fn="original"
    )
    return [
        (muon, size.muon_lr),
        (torch.optim.AdamW(others, lr=size.lr, betas=(0.9, 0.98), weight_decay=0.0), size.lr),
    ]


def _batches(encoder: PromptEncoder, train: Sequence[Dialogue], size: SmallModel) -> Iterator[list[TokenRow]]:
    """Endless batches of rows of similar length, to pad little. A dialogue is encoded once."""
    order, pool = random.Random(size.seed), size.batch * 16
    encoded: dict[int, list[TokenRow]] = {}
    for start in itertools.count(0, pool):
        first = start % len(train)
        if first not in encoded:
            rows = (row(encoder, d, size) for d in train[first : first + pool])
            encoded[first] = sorted(rows, key=lambda r: len(r.ids))
        batches = [encoded[first][i : i + size.batch] for i in range(0, len(encoded[first]), size.batch)]
        order.shuffle(batches)
        yield from batches
