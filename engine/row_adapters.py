"""Which rows of a pass go through which adapter, when requests of several share a batch.

Rows stay in their places: each adapter computes all rows, times 1 on its own and 0 on the others, so that in
deterministic mode a row's bits do not depend on who shares its batch. That costs one low-rank product more an
adapter; a pass of one adapter alone has no mask and costs nothing more.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from proactor.engine.lora import LoRABuffer

RowAdapters = Sequence[tuple[LoRABuffer, Tensor | None]]
"""Adapters of a pass over T rows, each with its rows: float32 [T], 1 or 0; None: all rows."""


def row_adapters(rows: Sequence[tuple[LoRABuffer | None, int]], device: torch.device) -> RowAdapters:
    """The adapters of consecutive ``rows``: (adapter or None for the base, how many rows)."""
    place = {lora: i for i, lora in enumerate(dict.fromkeys(lora for lora, _ in rows))}
    if len(place) <= 1:
        return [(lora, None) for lora in place if lora is not None]
    of_row = np.repeat([place[lora] for lora, _ in rows], [count for _, count in rows])
    return [
        (lora, torch.from_numpy((of_row == i).astype(np.float32)).to(device))
        for lora, i in place.items()
        if lora is not None
    ]
