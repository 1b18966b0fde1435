"""The flat adapter buffer: its layout, leaves and gradients as views, and what it refuses to load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from proactor.engine.lora import LoRABuffer, shapes
from proactor.engine.lora_config import LoRA
from proactor.engine.model_config import ModelConfig
from proactor.engine.types import EngineError


@pytest.fixture(scope="module")
def config(folder: Path) -> ModelConfig:
    return ModelConfig.from_folder(folder)


def buffer(config: ModelConfig, **changes: object) -> LoRABuffer:
    return LoRABuffer(config, LoRA.model_validate({"rank": 3, "alpha": 6, **changes}), torch.device("cpu"))


@pytest.mark.parametrize(
    "targets", [("q",), ("v", "q"), ("o", "up"), ("q", "k", "v", "o", "gate", "up", "down")]
)
def test_the_buffer_is_filled_without_gaps(config: ModelConfig, targets: tuple[str, ...]) -> None:
    lora = buffer(config, targets=targets)
    size = shapes(config)
    assert len(lora.flat) == 2 * sum(3 * sum(size[t]) for t in lora.lora.targets)
    lora.flat.copy_(torch.arange(len(lora.flat)))
    assert sorted(int(x) for leaf in lora.leaves for x in leaf.flatten()) == list(range(len(lora.flat)))
    tensors = lora.tensors()
    assert len(tensors) == 2 * len(targets)
    assert sorted(int(x) for pair in tensors.values() for t in pair for x in t.flatten()) == list(
        range(len(lora.flat))
    )
    for name, (a, b) in tensors.items():
        target = next(t for t in size if name.endswith(f"{t}_proj"))
        assert a.shape == (3, size[target][1]) and b.shape == (size[target][0], 3)


def test_leaves_and_gradients_are_views(config: ModelConfig) -> None:
    lora = buffer(config)
    sum((leaf * leaf).sum() for leaf in lora.leaves).backward()  # type: ignore[union-attr]
    assert torch.equal(lora.grad, 2 * lora.flat) and bool(lora.grad.any())
    lora.flat.fill_(3.0)
    assert all(bool((leaf == 3).all()) for leaf in lora.leaves)
    for leaf in lora.leaves:
        leaf.grad = None
    lora.attach_grad()
    assert not lora.grad.any(), "a dropped gradient is a zero one"
    lora.leaves[0].grad = torch.full_like(lora.leaves[0], 7.0)
    lora.attach_grad()
    assert lora.grad[0] == 7.0 and lora.leaves[0].grad.data_ptr() == lora.grad.data_ptr()


def test_any_whole_number_is_a_seed(config: ModelConfig) -> None:
    large, small, other = (
        LoRABuffer(config, LoRA(rank=3), torch.device("cpu"), seed=seed) for seed in (2**64 + 5, 5, 6)
    )
    assert torch.equal(large.flat, small.flat) and not torch.equal(small.flat, other.flat)


def test_it_starts_as_no_change(config: ModelConfig) -> None:
    lora = buffer(config)
    for a, b in lora.tensors().values():
        assert not b.any()
        bound = a.shape[1] ** -0.5  # PEFT's Kaiming-uniform with a = sqrt(5)
        assert float(a.abs().max()) <= bound and float(a.std()) == pytest.approx(bound / 3**0.5, rel=0.3)


def test_loading_names_what_does_not_fit(config: ModelConfig) -> None:
    lora = buffer(config, targets=("q", "v"))
    good = {name: (torch.ones_like(a), torch.ones_like(b)) for name, (a, b) in lora.tensors().items()}
    q, before = "model.layers.1.self_attn.q_proj", lora.flat.clone()
    a, b = good[q]
    with pytest.raises(EngineError, match=r"model.layers.1.self_attn.q_proj is missing"):
        lora.load({name: pair for name, pair in good.items() if name != q})
    with pytest.raises(
        EngineError, match=r"model.layers.9.self_attn.q_proj is not among this engine's targets q, v"
    ):
        lora.load({**good, "model.layers.9.self_attn.q_proj": (a, b)})
    with pytest.raises(
        EngineError,
        match=r"model.layers.1.self_attn.q_proj has A \(3, 31\), B \(32, 3\); expected \(3, 32\), \(32, 3\)",
    ):
        lora.load({**good, q: (a[:, 1:], b)})
    assert torch.equal(lora.flat, before), "nothing is half loaded"
    lora.load(good)
    assert bool((lora.flat == 1).all())


def test_scale(config: ModelConfig) -> None:
    assert LoRA(rank=4, alpha=8).scale == 2 and LoRA(rank=4, alpha=8, rslora=True).scale == 4
    adapter = buffer(config, rslora=True).adapters[0, ("q", "k", "v")]
    assert adapter.scales == pytest.approx([6 / 3**0.5] * 3)
    assert adapter.spans == [(0, 32), (32, 48), (48, 64)]


def test_what_is_not_finite_in_float32_is_refused_and_nothing_changes(config: ModelConfig) -> None:
    lora, other = buffer(config), buffer(config)
    before = lora.flat.clone()
    for value in (float("nan"), float("inf"), 1e300):
        tensors = {name: (a.double(), b.double()) for name, (a, b) in other.tensors().items()}
        tensors[list(tensors)[-1]][1][0, 0] = value
        with pytest.raises(EngineError, match="down_proj holds values that are not finite in float32"):
            lora.load(tensors)
        assert torch.equal(lora.flat, before)


def test_a_rank_beyond_every_linear_is_refused_before_it_takes_memory(config: ModelConfig) -> None:
    for rank in (max(map(max, shapes(config).values())) + 1, 2**31 - 1):
        with pytest.raises(EngineError, match=rf"lora\.rank={rank}: above \d+, the model's largest linear"):
            LoRABuffer(config, LoRA(rank=rank), torch.device("cpu"))
