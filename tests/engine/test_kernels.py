"""The whole engine on the Triton kernels: the same tokens, log-probabilities, losses and gradients as on the torch forms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, Engine, Group, GRPOLoss, Sampling
from proactor.kernels.jit import HAS_TRITON, interpreted
from tests.engine.engines import EOS, load, prompts, reward
from tests.tiny import save_tiny

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = "cpu" if interpreted() else "cuda"
DRAW = Sampling(n=2, max_tokens=4, seed=5, temperature=0.9, top_k=40, top_p=0.97, ignore_eos=True)
LOSS = GRPO(lr=1e-2, beta=0.02, max_norm=0.5)


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Names of the kernels that have run."""
    names: set[str] = set()
    if interpreted():
        from triton.runtime.interpreter import InterpretedFunction as Kernel
    else:
        from triton.runtime.jit import JITFunction as Kernel
    run = Kernel.__getitem__

    def watch(self: Any, grid: Any) -> Any:
        names.add(self.fn.__name__)
        return run(self, grid)

    monkeypatch.setattr(Kernel, "__getitem__", watch)
    yield names


def on_triton(monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: Any) -> Engine:
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    return load(folder, device=DEVICE, dtype="float32", **changes)


def on_torch(monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: Any) -> Engine:
    monkeypatch.setenv("PROACTOR_KERNELS", "reference")
    return load(folder, device="cpu", dtype="float32", **changes)


def trained(engine: Engine, groups: list[Group]) -> tuple[dict[str, float], torch.Tensor]:
    """Statistics and the reduced gradient of one loss."""
    engine.zero_grad()
    stats = engine.forward_backward(groups, GRPOLoss(LOSS))
    engine.reduce_gradients()
    return stats, torch.cat([p.grad.flatten() for p in engine.parameters() if p.grad is not None]).cpu()


@pytest.mark.parametrize(("family", "resident"), [("qwen2", "nf4"), ("qwen3", "dense")])
def test_sampled_and_trained_as_on_torch(
    tmp_path: Path, family: str, resident: str, monkeypatch: pytest.MonkeyPatch, launched: set[str]
) -> None:
    folder = tmp_path / "model"
    save_tiny(folder, family, eos_token_id=EOS, hidden_size=64, intermediate_size=64, head_dim=16, num_hidden_layers=1)
    settings = {"quantization": "nf4", "resident": resident, "page_size": 16}
    ids = prompts(2, length=9, shared=17)
    ours, plain = on_triton(monkeypatch, folder, **settings), on_torch(monkeypatch, folder, **settings)
    loading = set(launched)
    expected = plain.sample(ids, DRAW)
    assert launched == loading, "the torch engine ran a kernel"
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    groups = ours.sample(ids, DRAW)
    assert [s.token_ids for g in groups for s in g.samples] == [s.token_ids for g in expected for s in g.samples]
    for mine, theirs in zip(groups, expected, strict=True):
        for a, b in zip(mine.samples, theirs.samples, strict=True):
            assert a.logprobs == pytest.approx(b.logprobs, abs=2e-5)
            assert a.policy_logprobs == pytest.approx(b.policy_logprobs, abs=2e-5)
    for group in reward(groups):
        for sample, value in zip(group.samples, group.rewards, strict=True):
            sample.advantage = value - 0.5
    stats, gradient = trained(ours, groups)
    stepped = ours.train(groups, LOSS)
    monkeypatch.setenv("PROACTOR_KERNELS", "reference")
    wanted, reference = trained(plain, groups)
    assert stats["loss"] == pytest.approx(wanted["loss"], abs=1e-4)
    assert stats["gap"] / stats["tokens"] < 1e-5
    assert float((gradient - reference).norm() / reference.norm()) < 1e-4
    other = plain.train(groups, LOSS)
    for key in ("loss", "kl", "clip_share", "entropy", "grad_norm", "adapter_norm"):
        assert stepped[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5), key
    moved = [torch.cat([p.detach().flatten() for p in e.parameters()]).cpu() for e in (ours, plain)]
    apart = (
        moved[0] - moved[1]
    ).abs() > 1e-4  # AdamW's first step takes the sign of a gradient, which near 0 is anybody's guess
    assert float(apart.float().mean()) < 1e-3
    everywhere = """
    rms_norm_forward rms_norm_backward swiglu_forward swiglu_backward rope lora_add span_forward span_query_gradient span_key_gradient
    paged_attention logprob_values logprob_slopes policy_loss policy_statistics squares clip adamw keyed_uniforms sample quantize_nf4
    """.split()
    own = {"qwen2": ["rope_into_pages", "nf4_linear", "lora_down", "dequantize_packed"], "qwen3": ["dequantize_nf4"]}
    if not interpreted():  # in float32 a card dequantises and multiplies
        own["qwen2"].remove("nf4_linear")
    missing = {f"{name}_kernel" for name in (*everywhere, *own[family])} - launched
    assert not missing
