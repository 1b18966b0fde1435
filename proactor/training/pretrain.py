"""Pre-training of the small model in a short transformers loop, so that the project needs no download.

The model learns to continue dialogues, to answer at their decision points and to repeat what was said
(`token_rows`).
"""

from __future__ import annotations

import itertools
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from proactor.config_base import Pretrain, SmallModel
from proactor.dialogue import Dialogue
from proactor.dialogue.prompt import PromptEncoder
from proactor.training.origin import bfloat16_products
from proactor.training.provenance import FitSteps
from proactor.training.token_rows import IGNORED, TokenRow, collate, held_out_row, row

PATIENCE = 4
"""Checks of the held-out loss without a lower one after which training ends."""
ATTENTION = "bfloat16_products"
"""Name of `attend` in transformers."""


def attend(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """Attention in bfloat16 with an additive mask, by plain products, in transformers' form.

    q [B, H, L, D], k and v [B, KV, L, D], mask [B, 1, L, L]; returns [B, L, H, D]. On a CPU, torch's fused
    attention is slower in bfloat16, and its scores in float32 would take twice the memory traffic.
    """
    batch, heads, length, size = q.shape
    kv = batch * k.shape[1]
    with torch.autocast("cpu", enabled=False):
        q, k, v, mask = (t.to(torch.bfloat16) for t in (q * scaling, k, v, mask))
        k, v = k.reshape(kv, length, size), v.reshape(kv, length, size)
        # The query heads of a key-value head are rows of one product.
        scores = torch.bmm(q.reshape(kv, -1, size), k.transpose(1, 2)).view(batch, heads, length, length)
        weights = torch.softmax(scores.add_(mask), -1)
        mixed = torch.bmm(weights.view(kv, -1, length), v)
    return mixed.view(batch, heads, length, size).transpose(1, 2), None


def loss_of(model: Any, inputs: dict[str, Tensor], labels: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean negative log-likelihood, in nats per unit of weight."""
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
    steps: int | None = None,
    warm: Sequence[Dialogue] = (),
    patience: int = PATIENCE,
    check_every: int = 50,
    progress: Callable[[float, str], None] | None = None,
) -> list[tuple[int, float]]:
    """`fit` on dialogues. ``warm``: dialogues seen once before those of ``train``; the held-out loss is
    checked from there on.
    """
    first = -(-len(warm) // size.batch)
    batches = itertools.chain(
        itertools.islice(_batches(encoder, warm, size), first), _batches(encoder, train, size)
    )
    return fit(
        model,
        batches,
        [held_out_row(encoder, d, size) for d in held_out],
        size,
        encoder.chat.tokenizer.pad_token_id,
        seconds=seconds,
        steps=steps,
        first=first,
        patience=patience,
        check_every=check_every,
        progress=progress,
    )


def fit(
    model: Any,
    batches: Iterator[list[TokenRow]],
    held_out: Sequence[TokenRow],
    size: SmallModel,
    pad: int,
    *,
    seconds: float,
    steps: int | None = None,
    first: int = 0,
    patience: int = PATIENCE,
    check_every: int = 50,
    progress: Callable[[float, str], None] | None = None,
) -> list[tuple[int, float]]:
    """Train all weights until the held-out loss of the answers stops falling, for ``steps`` or ``seconds``.

    ``first``: steps before the held-out loss is checked. The weights with the lowest held-out loss are kept.
    Returns (step, held-out loss) pairs. The rate warms up over 3% of the steps (or of the time, where that
    runs out first) and falls over the last 60%. Products are in bfloat16 where `bfloat16_products`;
    weights, their gradients and the loss in float32.
    """
    from transformers import AttentionInterface

    bfloat16 = bool(bfloat16_products())
    AttentionInterface.register(ATTENTION, attend)
    model.set_attn_implementation(ATTENTION if bfloat16 else "sdpa")
    products = torch.autocast("cpu", torch.bfloat16, enabled=bfloat16)
    optimizers = _optimizers(model, size)
    best = _Best(model, held_out, pad)
    start, step = time.monotonic(), 0
    while best.stale < patience:
        elapsed = (time.monotonic() - start) / seconds
        if steps and elapsed < (step + 1) / steps:  # fast enough: then the clock decides nothing
            elapsed = step / steps
        if elapsed >= 1:
            break
        for optimizer, rate in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, elapsed / 0.03 + 0.02, (1 - elapsed) / 0.6)
        with products:
            loss = loss_of(model, *collate(next(batches), pad, size.text_weight))
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, _ in optimizers:
            optimizer.step()
        step += 1
        if step % check_every == 0:
            text = f"step {step}, loss {float(loss.detach()):.3f}"
            if step > first:
                with products:
                    text += f", held-out {best.check(step):.3f}"
            if progress is not None:
                progress(elapsed, text)
    with products:
        best.check(step)
    best.restore()
    return best.history


def steps_of(history: Sequence[tuple[int, float]], section: Pretrain) -> FitSteps:
    """How far a `fit` by the limits of ``section`` came, by its (step, held-out loss) pairs."""
    best, _ = min(history, key=lambda pair: pair[1])
    settled = sum(step > best for step, _ in history) >= PATIENCE
    return FitSteps(made=history[-1][0], wanted=section.steps, seconds=section.seconds, settled=settled)


def fit_line(history: Sequence[tuple[int, float]], steps: FitSteps) -> str:
    """What to say of a `fit`: its best step, and what to set where time ran out too early."""
    best, loss = min(history, key=lambda pair: pair[1])
    line = f"held-out loss {loss:.3f} (step {best})"
    if not steps.cut_short:
        return line
    return (
        f"{line}; its time was over after {steps.made} of {steps.wanted} steps, so it knows little: "
        "delete the folder and train again with a larger pretrain.seconds"
    )


class _Best:
    """The weights with the lowest loss on held-out rows. ``stale``: checks since they were seen."""

    def __init__(self, model: Any, rows: Sequence[TokenRow], pad: int) -> None:
        self.model = model
        self.batches = [collate(rows[i : i + 16], pad, 0.0) for i in range(0, len(rows), 16)]
        self.history: list[tuple[int, float]] = []
        self.stale, self.loss = 0, math.inf
        self.weights: dict[str, Tensor] = {}

    @torch.no_grad()
    def check(self, step: int) -> float:
        """The held-out loss now. Keeps the weights where it is the lowest so far."""
        loss = sum(float(loss_of(self.model, *batch)) for batch in self.batches) / len(self.batches)
        self.history.append((step, loss))
        self.stale = 0 if loss < self.loss - 1e-4 else self.stale + 1
        if loss < self.loss or not self.weights:
            self.loss = loss
            self.weights = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        return loss

    def restore(self) -> None:
        """Put the best weights back."""
        self.model.load_state_dict(self.weights)


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
