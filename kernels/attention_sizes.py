"""Tile sizes of the attention kernels by device: M query rows (with a group's heads folded in) by N keys.

Each fits into registers without spills, and into shared memory, by the compile check. No GPU has timed them.
The rows "float32" serve that dtype on every GPU: its tiles take twice the memory.
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
    # 64 keys spill under triton 3.6, on sm_100 and on gfx942
    "sm_100": {"M": 32, "N": 32, "warps": 4, "stages": 2},
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
"""One query row per tile: M holds the heads of a group, and is at least 16, the least of a matrix unit."""
ROWS: Table = {
    "default": {"M": 64, "N": 32, "warps": 4, "stages": 2},
    "sm_90": {"M": 64, "N": 64, "warps": 4, "stages": 3},
    "sm_120": {"M": 32, "N": 32, "warps": 4, "stages": 2},
    "interpreter": {"M": 32, "N": 16, "warps": 4, "stages": 1},
    "float32": {"M": 16, "N": 16, "warps": 8, "stages": 1},
}
"""Many query rows per table row: members of a family, tokens of a prompt."""


def tile_sizes(table: Table, q: Tensor) -> Mapping[str, int]:
    """The row of ``table`` for the dtype and device of ``q``."""
    return (
        table["float32"] if q.dtype == torch.float32 and not interpreted() else settings_for(table, q.device)
    )


TARGETS = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "gfx942")


def launches_by_size(kernel: Any, table: Table, types: Mapping[str, str], **constants: Any) -> list[Launch]:
    """Launches of ``kernel`` for each row of ``table``: head shapes of Qwen2.5 14B and 0.5B in bfloat16.

    The row "float32" is compiled for the head shape of 14B alone. ``types`` may name arguments of other
    kernels, which are ignored.
    """
    head_shapes: tuple[tuple[int, int], ...]
    targets: tuple[str, ...]
    half_types = {k: v for k, v in types.items() if k in kernel.arg_names}
    float32_types = {k: v.replace("bf16", "fp32") for k, v in half_types.items()}
    launches = []
    for name, row in table.items():
        if name == "interpreter":
            continue
        argument_types, head_shapes, targets = half_types, ((128, 5), (64, 7)), (name,)
        if name == "float32":
            argument_types, head_shapes, targets = float32_types, ((128, 5),), TARGETS
        elif name == "default":
            targets = tuple(t for t in TARGETS if t not in table)
        for dim, group in head_shapes:
            sizes = {"D": dim, "G": group, "M": row["M"], "N": row["N"], "BLOCK_D": dim, "WIDE": False}
            launches.append(
                Launch(kernel, argument_types, sizes | constants, row["warps"], row["stages"], targets)
            )
    return launches
