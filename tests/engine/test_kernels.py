"""The engine on Triton kernels: tokens, log-probabilities, losses and gradients of the torch forms."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, SFT, Engine, Group, GRPOLoss, LoRA, Sampling, SFTLoss, TokenBatch
from proactor.engine.sampler import Sampler
from proactor.kernels import logprob, spans
from proactor.kernels.jit import HAS_TRITON, interpreted
from proactor.kernels.registry import OPS
from tests.engine.engines import EOS, load, outside, prompts, reward, shake
from tests.tiny import save_tiny

pytestmark = pytest.mark.skipif(not HAS_TRITON, reason="triton has no wheel for this system")
DEVICE = "cpu" if interpreted() else "cuda"
DRAW = Sampling(n=2, max_tokens=4, seed=5, temperature=0.9, top_k=40, top_p=0.97, ignore_eos=True)
LOSS = GRPO(lr=1e-2, beta=0.02, max_norm=0.5)


Launches = dict[str, set[str]]
"""For each kernel that has run, the functions of the kernels' package that stood above a launch of it."""


@contextmanager
def recorded() -> Iterator[Launches]:
    """Records the kernel launches of a `with` block."""
    seen: Launches = {}
    if interpreted():
        from triton.runtime.interpreter import InterpretedFunction as Kernel
    else:
        from triton.runtime.jit import JITFunction as Kernel
    run = Kernel.__getitem__

    def watch(self: Any, grid: Any) -> Any:
        above, frame = seen.setdefault(self.fn.__name__, set()), sys._getframe(1)
        while frame is not None:
            if str(frame.f_globals.get("__name__")).startswith("proactor.kernels."):
                above.add(frame.f_code.co_name)
            frame = frame.f_back  # type: ignore[assignment]
        return run(self, grid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Kernel, "__getitem__", watch)
        yield seen


@pytest.fixture
def launched() -> Iterator[Launches]:
    with recorded() as seen:
        yield seen


def small(folder: Path, family: str = "qwen2", inner: int = 64) -> Path:
    """One layer, small enough for the interpreter."""
    sizes = {"hidden_size": 64, "intermediate_size": inner, "head_dim": 16, "num_hidden_layers": 1}
    save_tiny(folder, family, eos_token_id=EOS, **sizes)
    return folder


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
    tmp_path: Path, family: str, resident: str, monkeypatch: pytest.MonkeyPatch, launched: Launches
) -> None:
    folder = small(tmp_path / "model", family)
    settings = {"quantization": "nf4", "resident": resident, "page_size": 16}
    ids = prompts(2, length=9, shared=17)
    ours, plain = on_triton(monkeypatch, folder, **settings), on_torch(monkeypatch, folder, **settings)
    loading = set(launched)
    expected = plain.sample(ids, DRAW)
    assert set(launched) == loading, "the torch engine ran a kernel"
    monkeypatch.setenv("PROACTOR_KERNELS", "triton")
    groups = ours.sample(ids, DRAW)
    assert [s.token_ids for g in groups for s in g.samples] == [
        s.token_ids for g in expected for s in g.samples
    ]
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
    # AdamW's first step takes the sign of a gradient, which is arbitrary near 0
    apart = (moved[0] - moved[1]).abs() > 1e-4
    assert float(apart.float().mean()) < 1e-3
    everywhere = """
    rms_norm_forward rms_norm_backward swiglu_forward swiglu_backward rope lora_add span_forward
    span_query_gradient span_key_gradient paged_attention logprob_values logprob_slopes policy_loss
    policy_statistics squares clip adamw keyed_uniforms sample quantize_nf4
    """.split()
    own = {
        "qwen2": ["rope_into_pages", "nf4_linear", "lora_down", "dequantize_packed"],
        "qwen3": ["dequantize_nf4"],
    }
    if not interpreted():  # in float32 a card dequantises and multiplies
        own["qwen2"].remove("nf4_linear")
    missing = {f"{name}_kernel" for name in (*everywhere, *own[family])} - set(launched)
    assert not missing


# --- each operation ---

ABOVE = {
    "nf4_dequantize": "dequantize_nf4",
    "nf4_quantize": "quantize_nf4",
    "lora_add": "launch_add",
    "logprob": "log_probabilities",
    "sample": "sample_tokens",
}
"""The function that launches an operation where it has another name; `lora_linear` launches what `lora_add`
does without its checks.
"""
ALONE = {
    "adamw": "for callers that clip themselves or not at all: the engine takes clipped_adamw, on this kernel"
}
"""Operations that the engine does without, and why they exist."""


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Launches:
    """What runs while two engines load, sample, score and train."""
    folder = tmp_path_factory.mktemp("every-op")
    few = Sampling(n=2, max_tokens=2, seed=5, top_p=0.97, ignore_eos=True)
    with recorded() as seen, pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans, "LEAST_BLOCKS", 1)  # split the keys' work of small trees too
        for family, resident in (("qwen2", "nf4"), ("qwen3", "dense")):
            engine = on_triton(
                patch,
                small(folder / family, family, 256),
                quantization="nf4",
                resident=resident,
                page_size=16,
            )
            engine.sample(prompts(1, length=5), few)
            groups = engine.sample(prompts(1, length=9, shared=17), few)
            engine.logprobs([groups[0].prompt_ids])
            engine.train(reward(groups), LOSS)
    return seen


@pytest.mark.parametrize("op", OPS, ids=lambda op: op.name)
def test_the_engine_calls_it(op: Any, lived: Launches) -> None:
    name = ABOVE.get(op.name, op.name)
    called = any(name in above for above in lived.values())
    assert called != (op.name in ALONE), f"{op.name}: {'called' if called else 'never called'}"


def test_every_kernel_runs(lived: Launches) -> None:
    kernels = {launch.kernel.__name__ for op in OPS for launch in op.launches}
    unused = (
        set() if interpreted() else {"nf4_linear_kernel", "sum_parts_kernel"}
    )  # in float32 a card dequantises
    assert kernels - set(lived) == unused


# --- waits ---

READS = ("tolist", "item", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__")
"""What makes a host wait for a device, by method of a tensor."""


def test_a_step_reads_the_device_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = on_triton(monkeypatch, folder, page_size=16)
    reads: list[str] = []
    steps: list[int] = []

    def counted(name: str) -> Any:
        plain = getattr(torch.Tensor, name)

        def read(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if (
                sys._getframe(1).f_globals["__name__"].startswith("proactor.")
            ):  # the interpreter reads as it likes
                reads.append(name)
            return plain(self, *args, **kwargs)

        return read

    step = Sampler._step

    def watched(self: Sampler, *args: Any) -> Any:
        reads.clear()
        ended = step(self, *args)
        steps.append(len(reads))
        return ended

    monkeypatch.setattr(Sampler, "_step", watched)
    for name in READS:
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    engine.sample(prompts(2, length=5), DRAW)
    assert len(steps) >= DRAW.max_tokens and set(steps) == {1}


def test_logits_without_a_distribution_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = on_triton(monkeypatch, folder, page_size=16)
    engine.decoder.head[3] = float("nan")
    with pytest.raises(ValueError, match=r"no allowed token of a finite logit in rows \[0, 1\]"):
        engine.sample(prompts(1, length=5), DRAW)


# --- the loss inside the head ---


class Custom(GRPOLoss):
    """The same formula, but a loss of the caller's own: it is asked once, about all tokens."""

    def __call__(self, logprobs: torch.Tensor, batch: TokenBatch) -> Any:
        self.asked = [*getattr(self, "asked", []), len(logprobs)]
        return super().__call__(logprobs, batch)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small(tmp_path_factory.mktemp("head") / "model")


def test_built_in_losses_go_through_the_head_in_chunks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two head products a chunk, and the gradient of the general form, which recomputes the logits."""
    monkeypatch.setattr(logprob, "KEEP_BYTES", 0)
    monkeypatch.setattr(logprob, "CHUNK_BYTES", 3 * 101 * 4)  # three rows
    engine = on_triton(monkeypatch, folder)
    head, products = engine.decoder.head, []
    linear = engine.decoder.form.linear

    def counted(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        products.extend([1] if weight is head else [])
        return linear(x, weight, bias)

    engine.decoder.form.linear = counted
    groups = [
        Group(ids[:3], [outside(ids[:3], ids[3 + i :], temperature=0.8) for i in range(3)])
        for ids in prompts(2, 8)
    ]
    for group in groups:
        for i, sample in enumerate(group.samples):
            sample.advantage = [1.5, -1.0, 0.25][i]
            sample.policy_logprobs = [-4.5 - 0.4 * (-1) ** t for t in range(len(sample.token_ids))]
            sample.logprobs = [p + 0.2 * i for p in sample.policy_logprobs]
    config = GRPO(beta=0.2, normalizer="samples", importance_cap=1.1, entropy_bonus=0.3)
    custom, rows = Custom(config), []
    for loss in (GRPOLoss(config), custom):
        engine.zero_grad()
        products.clear()
        stats = engine.forward_backward(groups, loss)
        rows.append((len(products), stats, engine.trainer.lora.grad.clone()))  # type: ignore[union-attr]
    (fused, ours, gradient), (general, theirs, expected) = rows
    tokens = sum(len(s.token_ids) for g in groups for s in g.samples)
    assert custom.asked == [tokens]
    chunks = fused // 2  # beta asks for the bare model's log-probabilities: one product a chunk more
    assert chunks > 5 and (fused, general) == (2 * chunks, 3 * chunks)
    assert ours.keys() == theirs.keys() and ours["clip_share"] > 0 and ours["kl"] > 0
    assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


def test_supervised_loss_goes_through_the_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprob, "CHUNK_BYTES", 3 * 101 * 4)
    engine = on_triton(monkeypatch, folder)
    groups = [Group(ids[:3], [outside(ids[:3], ids[3:])]) for ids in prompts(2, 8)]
    groups[0].samples[0].mask = [True, False, False, True, True]
    results = []
    for loss in (SFTLoss(SFT()), lambda logprobs, batch: -(logprobs * batch.weight).sum()):
        engine.zero_grad()
        with recorded() as seen:
            stats = engine.forward_backward(groups, loss)
        inside = any("logprob_loss" in above for above in seen.values())
        results.append((inside, stats, engine.trainer.lora.grad.clone()))  # type: ignore[union-attr]
    (fused, ours, gradient), (general, theirs, expected) = results
    assert fused and not general
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert float((gradient - expected).norm() / expected.norm()) < 1e-5


def test_a_mixed_batch_is_drawn_as_on_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of two adapters and of the base, through the kernels and the torch form alike."""
    loras = {"policy": LoRA(rank=4, alpha=8), "judge": LoRA(rank=2, alpha=8, targets=("q", "down"))}
    settings = {"lora": loras, "page_size": 16, "kv_tokens": 512}
    draws = [Sampling(max_tokens=2, seed=5, ignore_eos=True, adapter=name) for name in (True, "judge", False)]
    ids, found = prompts(3, length=2), []
    for engine in (on_triton(monkeypatch, folder, **settings), on_torch(monkeypatch, folder, **settings)):
        shake(engine, seed=2)
        shake(engine, seed=1, adapter="judge")
        monkeypatch.setenv("PROACTOR_KERNELS", "triton" if not found else "reference")
        found.append([group.samples[0] for group in engine.sample(ids, draws)])
    for draw, prompt, mine, theirs in zip(draws, ids, *found, strict=True):
        assert mine.token_ids == theirs.token_ids and mine.adapter == theirs.adapter
        assert mine.logprobs == pytest.approx(theirs.logprobs, abs=2e-5)
        [own] = engine.logprobs([prompt + mine.token_ids], [(len(prompt), len(prompt) + 2)], draw.adapter)
        assert mine.logprobs == pytest.approx(own.tolist(), abs=2e-5)
