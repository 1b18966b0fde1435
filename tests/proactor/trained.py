"""Small models that tests train from scratch in seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from proactor.training.pretrain import loss_of


def trained_folder(
    folder: Path, model: Any, tokenizer: Any, batches: Sequence[tuple[Any, ...]], steps: int
) -> Path:
    """A Hugging Face folder (float32) of ``model`` after ``steps`` on ``batches`` (`token_rows.collate`)."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(steps):
        loss = loss_of(model, *batches[step % len(batches)])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
