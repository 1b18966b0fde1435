"""Engines small enough for Triton's interpreter, on the pretended card or beside it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from proactor.engine import Engine
from proactor.kernels.jit import HAS_TRITON
from tests.card import card
from tests.engine.engines import EOS, load
from tests.tiny import save_tiny

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "head_dim": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "eos_token_id": EOS,
}
needs_card = pytest.mark.skipif(
    not (card.AVAILABLE and HAS_TRITON),
    reason="needs triton and a PyTorch with _setup_privateuseone_for_python_backend (2.11 to 2.13)",
)


def write(folder: Path, family: str = "qwen2", **changes: Any) -> Path:
    """A model of one layer and 101 ids; id 100 ends."""
    save_tiny(folder, family, **{**SIZES, **changes})
    return folder


def open_engine(folder: Path, **changes: Any) -> Engine:
    """An engine in NF4 with pages of 8 tokens and an adapter that is no longer zero."""
    settings = {
        "dtype": "float32",
        "quantization": "nf4",
        "resident": "nf4",
        "page_size": 8,
        "kv_tokens": 256,
    }
    return load(folder, **{**settings, "device": "cuda", **changes})


@contextmanager
def beside_card() -> Iterator[None]:
    """In the block the CPU is the device, with the card's kernels."""
    from proactor.engine import loading

    with (
        mock.patch.dict("os.environ", {"PROACTOR_KERNELS": "triton"}),
        mock.patch.object(loading, "choose_device", lambda name: torch.device("cpu")),
    ):
        yield
