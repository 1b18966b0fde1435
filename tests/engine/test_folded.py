"""What adapters are folded to for few rows follows every way in which they change, and is counted."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from proactor.engine import Engine, GRPOLoss, Sampling
from tests.engine.engines import EOS, STEP, TRAIN, drawn, load, prompts, rollout, shake

GREEDY = Sampling(max_tokens=5, temperature=0.0, ignore_eos=True)


def through_data(engine: Engine, folder: Path) -> None:
    """An own optimizer that writes behind autograd's back, and says so."""
    for leaf in engine.parameters():
        leaf.data.mul_(-1.5)
    engine.weights_changed()


def by_step(engine: Engine, folder: Path) -> None:
    """A gradient, and a step of its own."""
    torch.stack([(leaf * leaf).sum() for leaf in engine.parameters()]).sum().backward()
    engine.step(STEP)


CHANGES: dict[str, Callable[[Engine, Path], object]] = {
    "train": lambda engine, folder: engine.train(rollout(engine), TRAIN),
    "step": by_step,
    "own optimizer": lambda engine, folder: shake(engine, seed=3),
    "own optimizer through .data": through_data,
    "load_adapter": lambda engine, folder: engine.load_adapter(folder / "other"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_samples_follow_a_change(folder: Path, tmp_path: Path, change: str) -> None:
    engine, other = load(folder), load(folder)
    shake(other, seed=7)
    other.save_adapter(tmp_path / "other")
    before = drawn(engine.sample(prompts(2), GREEDY))
    CHANGES[change](engine, tmp_path)
    after = drawn(engine.sample(prompts(2), GREEDY))
    engine.save_adapter(tmp_path / "now")
    fresh = load(folder, stir=False)
    fresh.load_adapter(tmp_path / "now")
    assert after == drawn(fresh.sample(prompts(2), GREEDY)) and after != before


def test_memory_counts_what_is_folded(folder: Path) -> None:
    engine = load(folder)
    assert engine.memory()["folded"] == 0
    engine.sample(prompts(2), GREEDY)
    once = engine.memory()["folded"]
    assert once == sum(4 * b.shape[0] * a.shape[0] for a, b in stacked(engine)), (
        "float32: A is the adapter's own"
    )
    engine.sample(prompts(2), GREEDY)
    assert engine.memory()["folded"] == once
    exact = load(folder, deterministic=True)
    exact.sample(prompts(2), GREEDY)
    assert exact.memory()["folded"] == 0
    for drops in (shake, partial(Engine.forward_backward, trees=rollout(engine), loss=GRPOLoss(TRAIN))):
        engine.sample(prompts(2), GREEDY)
        assert engine.memory()["folded"] == once
        drops(engine)
        assert engine.memory()["folded"] == 0, "an update and a gradient give it back"


def test_a_mask_may_keep_its_tensors(folder: Path) -> None:
    """A hook's tensors are changed in place from call to call, and may meet autograd."""
    engine, kept = load(folder), list[torch.Tensor]()

    def mask(ids: list[int], position: int) -> torch.Tensor:
        if not kept:
            kept.append(torch.ones(EOS + 1, dtype=torch.bool))
        kept[0][position] = False
        return kept[0]

    drawn_ids = engine.sample(prompts(1), Sampling(max_tokens=4, logit_mask=mask))[0].samples[0].token_ids
    assert not kept[0].is_inference() and not torch.is_inference_mode_enabled()
    assert all(token >= place for place, token in enumerate(drawn_ids))
    (kept[0].float() * torch.ones(EOS + 1, requires_grad=True)).sum().backward()


def stacked(engine: Engine) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(stacked A, stacked B) of each linear."""
    assert engine.trainer is not None and engine.trainer.lora is not None
    return [(pair.a, torch.cat(list(pair.b))) for pair in engine.trainer.lora.adapters.values()]
