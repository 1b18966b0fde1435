"""Tile sizes of the attention kernels by device: M query rows (heads of a group folded in) against N keys.

They are what the compiler fits into registers without spills and into shared memory; no card has timed them
yet. The rows "float32" are for that type on any card: tiles take twice the room there, and no matrix unit
multiplies them exactly.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from proactor.kernels.jit import interpreted
from proactor.kernels.op import Launch, settings_for

Table = Mapping[str, Mapping[str, int]]
FORWARD: Table = {
    "default": {"M": 32, "N": 32, "warps": 4, "stages": 2},
    "sm_80": {"M": 64, "N": 32, "warps": 4, "stages": 2},  # twice the rows and warps spill under triton 3.6
    "sm_90": {"M": 128, "N": 32, "warps": 8, "stages": 3},
    "sm_100": {"M": 128, "N": 32, "warps": 8, "stages": 2},
    "gfx942": {"M": 64, "N": 32, "warps": 4, "stages": 2},
    "interpreter": {"M": 32, "N": 16, "warps": 4, "stages": 1},
    "float32": {"M": 16, "N": 16, "warps": 4, "stages": 1},
}
QUERY_GRADIENT: Table = {
    "default": {"M": 64, "N": 32, "warps": 8, "stages": 2},
    "sm_90": {"M": 64, "N": 64, "warps": 8, "stages": 2},
    "gfx942": {"M": 64, "N": 32, "warps": 4, "stages": 2},
    "interpreter": {"M": 32, "N": 16, "warps": 4, "stages": 1},
    "float32": {"M": 16, "N": 16, "warps": 8, "stages": 1},
}
KEY_GRADIENT: Table = {
    "default": {"M": 32, "N": 64, "warps": 8, "stages": 2},
    "sm_100": {
        "M": 32,
        "N": 32,
        "warps": 4,
        "stages": 2,
    },  # 64 keys spill under triton 3.6, here and on gfx942
    "gfx942": {"M": 32, "N": 32, "warps": 4, "stages": 2},
    "interpreter": {"M": 32, "N": 16, "warps": 4, "stages": 1},
    "float32": {"M": 16, "N": 16, "warps": 4, "stages": 1},
}
DECODE: Table = {
    "default": {"M": 16, "N": 32, "warps": 4, "stages": 3},
    "sm_90": {"M": 16, "N": 64, "warps": 4, "stages": 3},
    "gfx942": {"M": 16, "N": 32, "warps": 4, "stages": 2},
    "interpreter": {"M": 16, "N": 16, "warps": 4, "stages": 1},
    "float32": {"M": 16, "N": 16, "warps": 8, "stages": 1},
}
"""One row a tile: M only has room for the heads of a group, and no matrix unit takes fewer than 16 rows."""
ROWS: Table = {
    "default": {"M": 64, "N": 32, "warps": 4, "stages": 2},
    "sm_90": {"M": 64, "N": 64, "warps": 4, "stages": 3},
    "sm_120": {"M": 32, "N": 32, "warps": 4, "stages": 2},
    "interpreter": {"M": 32, "N": 16, "warps": 4, "stages": 1},
    "float32": {"M": 16, "N": 16, "warps": 8, "stages": 1},
}
"""Many rows of one table row: members of a family, tokens of a prompt."""


def tile_sizes(table: Table, q: Tensor) -> Mapping[str, int]:
    """The row of ``table`` for q's type and device."""
    return (
        table["float32"] if q.dtype == torch.float32 and not interpreted() else settings_for(table, q.device)
    )


TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def launches_by_size(kernel: Any, table: Table, types: Mapping[str, str], **constants: Any) -> list[Launch]:
    """How to compile ``kernel`` for each row of ``table``: the head shapes of Qwen2.5 14B and 0.5B in
    bfloat16, and the first in float32.
    """
    found = []
    for name, row in table.items():
        targets = tuple(t for t in TARGETS if t not in table) if name == "default" else (name,)
        targets = TARGETS if name == "float32" else targets
        for dim, group in ((128, 5),) if name == "float32" else ((128, 5), (64, 7)):
            sizes = {"D": dim, "G": group, "M": row["M"], "N": row["N"], "BLOCK_D": dim, "WIDE": False}
            ours = {k: v for k, v in types.items() if k in kernel.arg_names}
            if name == "float32":
                ours = {k: v.replace("bf16", "fp32") for k, v in ours.items()}
            if name != "interpreter":
                found.append(Launch(kernel, ours, sizes | constants, row["warps"], row["stages"], targets))
    return found
