"""``proactor make-checkpoint``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from proactor.commands.common import console, terminal


class Format(StrEnum):
    """How the linears are stored."""

    NF4 = "bnb-nf4"
    BF16 = "bf16"


def make_checkpoint(
    shape: Annotated[
        str, typer.Option(help="a known model: qwen2.5-0.5b to qwen2.5-72b", show_default=False)
    ],
    out: Annotated[Path, typer.Option(help="the folder, which must be new", show_default=False)],
    format: Annotated[Format, typer.Option(help="bitsandbytes' 4 bits, or bfloat16")] = Format.NF4,
    tokenizer: Annotated[Path | None, typer.Option(help="a folder whose tokenizer files are copied")] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**32, help="of the weights")] = 0,
) -> None:
    """A model of random weights in the layout of a published one, to measure at its full size.

    Written within 2 GB of memory; 14B in 4 bits takes 9.9 GB of disk. It knows nothing: it answers noise.
    """
    from proactor.engine import known_keys
    from proactor.engine import make_checkpoint as write

    with terminal() as ui:
        size = write(
            out,
            known_keys(shape),
            format.value,
            seed=seed,
            tokenizer_from=tokenizer,
            progress=lambda done, total: ui.substep("writing", done, total),
        )
    console.print(f"{out}: {size / 1e9:.1f} GB", markup=False)
