"""The formulas against what the engine holds and what autograd keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from proactor.engine import GRPO, Engine, Group, GRPOLoss, LoRA, Tree
from proactor.engine.footprint import Footprint, saved_row, weight_bytes
from proactor.engine.forward import SpanView
from proactor.engine.model import Decoder
from proactor.engine.model_config import ModelConfig
from proactor.engine.paged import PagedCache
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.nf4_pack import PackedNF4
from proactor.kernels.spans import Spans
from tests.engine.engines import outside, sampler, watching
from tests.tiny import save_tiny

SIZES = {"hidden_size": 128, "intermediate_size": 384, "head_dim": 16}
needs_interpreter = pytest.mark.skipif(
    not (HAS_TRITON and interpreted()), reason="needs Triton's interpreter"
)


def load(
    folder: Path, family: str, monkeypatch: pytest.MonkeyPatch, layers: int = 1, **options: Any
) -> Engine:
    save_tiny(folder, family, num_hidden_layers=layers, **SIZES)
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    return Engine.load(folder, lora=LoRA(rank=4), quantization="nf4", kv_tokens=64, **options)


def weight_tensors(decoder: Decoder) -> list[torch.Tensor | PackedNF4]:
    """All that a decoder holds, without the adapter."""
    found: list[Any] = [decoder.embed, decoder.norm, decoder.cos, decoder.sin]
    found += [] if decoder.head is decoder.embed else [decoder.head]
    for layer in decoder.layers:
        found += [layer.norm1, layer.norm2, layer.q_norm, layer.k_norm]
        for base in layer.linears.values():
            found += [base.bias, base.ready, *base.parts]
    return [tensor for tensor in found if tensor is not None]


@needs_interpreter
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("resident", ["nf4", "dense"])
def test_what_an_engine_holds(
    family: str, resident: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load(tmp_path / "model", family, monkeypatch, layers=2, resident=resident)
    expected = Footprint.of(engine.config, LoRA(rank=4), resident == "nf4", torch.float32)
    weights = sum(t.nbytes for t in weight_tensors(engine.decoder))
    assert weights <= expected.weights <= 1.02 * weights + 14 * 2000  # each NF4 tensor has tables
    held = engine.memory()
    assert (held["adapter"], held["optimizer"]) == (expected.adapter, expected.optimizer)
    cache = sampler(engine).cache
    assert cache.nbytes == 64 * expected.token == 64 * PagedCache.page_bytes(engine.config, 1, torch.float32)


@needs_interpreter
@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_what_autograd_keeps_of_a_row(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Storages that a layer's backward holds on to, without weights, adapters and rotary angles."""
    engine = load(tmp_path / "model", family, monkeypatch, resident="nf4")
    decoder, config, rows = engine.decoder, engine.config, 24
    view = SpanView(Spans.tree([0, 12, 18], [12, 6, 6], [-1, 0, 0]), 0.25, config.num_kv_heads)
    positions = torch.arange(rows)
    cos, sin = decoder.cos[positions], decoder.sin[positions]
    h, delta = (torch.randn(rows, config.hidden_size).requires_grad_() for _ in range(2))
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    layer, lora = decoder.layers[0], decoder.lora
    assert lora is not None
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        decoder._layer(0, layer, h, delta, cos, sin, rows, view, [(lora, None)])
    for tensor in (lora.flat, cos, sin, *weight_tensors(decoder)):
        if isinstance(tensor, torch.Tensor):
            kept.pop(tensor.untyped_storage().data_ptr(), None)
    assert sum(storage.nbytes() for storage in kept.values()) == rows * (saved_row(config, 4) + 7 * 4 * 4)


class Live(TorchDispatchMode):
    """The most bytes of storages that operations inside returned and that were alive at once; without
    ``others``.
    """

    def __init__(self, others: set[int]) -> None:
        super().__init__()
        self.others = others
        self.alive: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.alive = {key: entry for key, entry in self.alive.items() if not entry[0].expired()}
        mine = sum(size for key, (_, size) in self.alive.items() if key not in self.others)
        self.peak = max(self.peak, mine)
        return out


@needs_interpreter
def test_the_peak_of_a_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below the formula (the head's bytes are those of the rows' logits), and not far below."""
    from triton.runtime.interpreter import InterpretedFunction

    run = InterpretedFunction.run

    def unseen(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():  # the interpreter's own copies
            return run(*args, **kwargs)

    monkeypatch.setattr(InterpretedFunction, "run", unseen)
    engine = load(tmp_path / "model", "qwen2", monkeypatch, resident="dense")
    prompt = list(range(20))
    group = Group(prompt, [outside(prompt, [5] * 6, advantage=1.0 - 2 * i) for i in range(2)])
    footprint, rows = Footprint.of(engine.config, LoRA(rank=4), False, torch.float32), Tree([group]).rows
    logits = 2 * 12 * engine.config.vocab_size * 4
    lora = engine.decoder.lora
    assert lora is not None
    held = [t for t in weight_tensors(engine.decoder) if isinstance(t, torch.Tensor)]
    others = {t.untyped_storage()._cdata for t in (lora.flat, lora.grad, *held)}
    with watching(engine, Live(others)) as live:
        engine.forward_backward([group], GRPOLoss(GRPO()))
    assert live.peak <= logits + rows * footprint.trained_row <= 1.5 * live.peak


def test_qwen25_14b() -> None:
    """Against sums by hand: 13.2 billion weights in linears at 4.127 bits, two tables of 0.779 billion."""
    config = ModelConfig.from_dict(
        {
            "model_type": "qwen2",
            "hidden_size": 5120,
            "intermediate_size": 13824,
            "num_hidden_layers": 48,
            "num_attention_heads": 40,
            "num_key_value_heads": 8,
            "vocab_size": 152064,
            "max_position_embeddings": 32768,
        }
    )
    linears, table = 48 * 275_251_200, 152064 * 5120
    assert weight_bytes(config, True, 2) == pytest.approx(linears * 4.127 / 8 + 2 * 2 * table, rel=2e-3)
    assert weight_bytes(config, False, 2) == pytest.approx(2 * linears + 2 * 2 * table, rel=2e-3)
    footprint = Footprint.of(config, LoRA(rank=16), True, torch.bfloat16)
    assert footprint.token == 192 << 10
    assert footprint.adapter + footprint.optimizer == 16 * 68_812_800
    assert footprint.trained_row > 48 * (saved_row(config, 2) + 7 * 16 * 2)
