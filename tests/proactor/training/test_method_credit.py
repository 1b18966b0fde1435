"""From episodes to groups: what is left out, which advantages tokens get, and the gradient of the rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, Group, GRPOLoss
from proactor.engine.model import Decoder
from proactor.environments.episode import Episode
from proactor.episode_config import MethodOptions
from proactor.training.episodes import Arena
from proactor.training.method_credit import Credit
from tests.proactor.methods.episodes import episode, failed

pytestmark = pytest.mark.usefixtures("guess")


def played(arena: Arena, *tasks: str) -> list[list[Episode]]:
    return arena.play(tasks or ("train-8-0", "train-9-1"), n=4, iteration=1, epoch=0)[0]


@pytest.mark.parametrize("name", ["userrl", "bao", "infopo"])
def test_each_method_gives_each_trained_token_an_advantage(arena: Arena, name: Any) -> None:
    credit = Credit.of(arena.config.method.model_copy(update={"name": name}))
    [whole] = played(arena, "train-8-0")
    groups, left_out = credit.groups([whole], arena.engine, arena.chat, 0)
    assert left_out["groups_with_spread"] + left_out["groups_without_spread"] == len(groups) == 1
    for sample, one in zip(groups[0].samples, whole, strict=True):
        assert sample.reward == one.score
        values = sample.token_advantages()
        assert len(values) == len(sample.token_ids)
        assert not any(v for v, on in zip(values, sample.trained_mask(), strict=True) if not on)


def credited(played: Sequence[Sequence[Episode]]) -> tuple[list[Group], Counter[str]]:
    method = Credit.of(MethodOptions())
    return method.groups(played, None, None, 0)  # type: ignore[arg-type]


def test_what_cannot_be_compared_is_left_out_and_counted() -> None:
    good, bad, empty = episode([0.0, 1.0]), episode([0.0, 0.0]), episode([])
    groups, left_out = credited(
        [
            [good, bad, failed("error"), failed("timeout"), failed("cancelled"), empty],
            [episode([1.0]), failed("error")],
            [episode([1.0]), episode([1.0])],
        ]
    )
    assert left_out == {
        "episodes_failed": 4,
        "episodes_without_turns": 1,
        "groups_too_small": 1,
        "groups_with_spread": 1,
        "groups_without_spread": 1,
    }
    assert groups[0].samples == [good.sample, bad.sample]
    assert good.sample.token_advantages()[0] > 0 > bad.sample.token_advantages()[0]


def test_a_world_that_raises_ends_one_episode(arena: Arena) -> None:
    episodes = [e for group in played(arena, "train-0-0", "train-1-1") for e in group]
    endings = {e.ending for e in episodes}
    assert "error" in endings and any("lost" in e.error for e in episodes)
    assert all(len(e.turns) == 2 for e in episodes if e.ending == "error")


def gradient(arena: Arena, groups: Sequence[Group]) -> tuple[torch.Tensor, int]:
    """(the adapter's gradient, rows that the decoder computed) of a loss that adds up over tokens."""
    engine, rows = arena.engine, []
    whole = Decoder.hidden

    def counted(self: Decoder, ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        rows.append(ids.numel())
        return whole(self, ids, *rest)

    engine.zero_grad()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Decoder, "hidden", counted)
        engine.forward_backward(groups, GRPOLoss(GRPO(normalizer="constant")))
    engine.reduce_gradients()
    leaves = [p.grad.flatten().clone() for p in engine.parameters() if p.grad is not None]
    engine.zero_grad()
    return torch.cat(leaves), sum(rows)


def test_rows_are_prompt_and_trajectories_and_the_gradient_is_that_of_each_alone(arena: Arena) -> None:
    groups, _ = arena.credit.groups(played(arena), arena.engine, arena.chat, 0)
    assert len(groups) == 2 and all(len(group.samples) == 4 for group in groups)
    samples = [sample for group in groups for sample in group.samples]
    for i, sample in enumerate(samples):
        sample.advantage = [(i - 3.5) / (turn + 1) for turn in range(len(sample.turns()))]
    together, computed = gradient(arena, groups)
    prompts = [group.prompt_ids for group in groups]
    assert prompts[0] == prompts[1]
    trajectories = sum(len(sample.token_ids) - 1 for sample in samples)  # the last token is a target alone
    assert computed == len(prompts[0]) * len(groups) + trajectories
    parts = [gradient(arena, [Group(sample.prompt_ids, [sample])]) for sample in samples]
    assert sum(rows for _, rows in parts) == len(prompts[0]) * len(samples) + trajectories
    flat = torch.stack([part for part, _ in parts]).sum(0)
    assert float(flat.abs().max()) > 0
    torch.testing.assert_close(together, flat, rtol=1e-5, atol=1e-5)
