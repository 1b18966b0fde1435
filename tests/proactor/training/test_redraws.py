"""Groups without spread are drawn again, up to a cap and counted; gradients that are not finite end a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from proactor.config_base import ConfigError
from proactor.engine import Engine
from proactor.progress import Quiet
from proactor.training.answers import AnswerGroup
from proactor.training.loop import train
from proactor.training.runs import Run, RunError
from proactor.training.stats import reward_statistics
from proactor.training.steps import batch, grpo_step
from proactor.training.workspace import Workspace
from tests.proactor.runs import config

REWARD = "reward=tests.proactor.runs:length_reward"


class FlatFor:
    """A reward without spread in the first ``calls`` groups; it remembers the completions of each group."""

    def __init__(self, calls: int) -> None:
        self.calls, self.seen = calls, list[list[str]]()

    def __call__(self, prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
        self.seen.append(completions)
        return [float(i * (len(self.seen) > self.calls)) for i in range(len(completions))]


def opened(tmp_path: Path, model: Path, calls: int, redraws: int, *more: str) -> tuple[Workspace, FlatFor]:
    settings = config(tmp_path, model, REWARD, f"grpo.redraws={redraws}", *more)
    workspace, reward = Workspace.open(settings), FlatFor(calls)
    workspace.reward = reward
    return workspace, reward


def step(workspace: Workspace) -> tuple[dict[str, Any], list[list[str]], int]:
    """(the row of a step, texts by group, tokens of the groups that were kept)."""
    assert workspace.config.grpo is not None
    row, groups = grpo_step(workspace, workspace.config.grpo, 0)
    texts = [[a.sample.text for a in g.answers] for g in groups]
    return row, texts, sum(len(a.sample.token_ids) for g in groups for a in g.answers)


def test_only_groups_without_spread_are_drawn_again(tiny_model: Path, tmp_path: Path) -> None:
    plain, reward = opened(tmp_path, tiny_model, 2, 0)
    before, first, tokens = step(plain)
    assert "groups_redrawn" not in before and before["zero_spread_share"] == 2 / len(first)
    workspace, reward = opened(tmp_path, tiny_model, 2, 5)
    row, texts, kept = step(workspace)
    assert row["groups_redrawn"] == 2 and len(reward.seen) == len(first) + 2
    assert texts[2:] == first[2:] and texts[:2] == reward.seen[-2:] and texts[:2] != first[:2]
    assert row["zero_spread_share"] == 0 and row["groups"] == len(first)
    assert row["tokens_sampled"] == kept + row["tokens_redrawn"] > kept
    assert before["tokens_sampled"] == tokens


def test_the_statistics_of_a_step_see_its_advantages(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def spy(gather: Any, groups: Sequence[AnswerGroup]) -> dict[str, float]:
        seen.extend(sample.advantage for answers in groups for sample in answers.group.samples)
        return reward_statistics(gather, groups)

    monkeypatch.setattr("proactor.training.steps.reward_statistics", spy)
    step(opened(tmp_path, tiny_model, 0, 1)[0])
    assert any(seen) and None not in seen


def test_redraws_end_at_their_cap(tiny_model: Path, tmp_path: Path) -> None:
    workspace, reward = opened(tmp_path, tiny_model, 10**6, 2)
    row, texts, _ = step(workspace)
    assert row["groups_redrawn"] == 2 * len(texts) and len(reward.seen) == 3 * len(texts)
    assert row["zero_spread_share"] == 1 and row["zero_gradient"] == 1
    draws = [reward.seen[i * len(texts) : (i + 1) * len(texts)] for i in range(3)]
    assert draws[0] != draws[1] != draws[2], "each draw has a noise of its own"


def drawn_from(workspace: Workspace) -> tuple[dict[str, Any], list[str]]:
    """(the row of step 1, the dialogue of each group that was kept)."""
    assert workspace.config.grpo is not None
    row, groups = grpo_step(workspace, workspace.config.grpo, 1)
    return row, [g.decision.dialogue.id for g in groups]


def test_other_dialogues_take_the_place_of_groups_without_spread(tiny_model: Path, tmp_path: Path) -> None:
    """The next of the epoch's order, whole; one of many decisions fills more than one place."""
    other = ("grpo.redraw=other", "data.train.limit=6")
    plain, reward = opened(tmp_path, tiny_model, 3, 0, *other)
    before, first = drawn_from(plain)
    assert before["zero_spread_share"] == 3 / len(first)
    workspace, reward = opened(tmp_path, tiny_model, 3, 5, *other)
    row, kept = drawn_from(workspace)
    assert kept[: len(first) - 3] == first[3:], "what has spread stays, in order"
    _, _, others = batch(workspace.train, 2, workspace.config.seed, "grpo", 1)
    sizes, expected = {d.id: len(d.decision_turns) for d in others}, list[str]()
    for dialogue in others:
        if len(expected) < 3:
            expected += [dialogue.id] * sizes[dialogue.id]
    assert kept[len(first) - 3 :] == expected and set(expected).isdisjoint(first)
    assert row["groups_redrawn"] == 3 and row["zero_spread_share"] == 0
    assert row["groups"] == len(kept) and len(reward.seen) == len(first) + len(expected)
    assert row["tokens_sampled"] - row["tokens_redrawn"] == row["tokens_trained"] > 0 < row["tokens_redrawn"]


def test_other_dialogues_end_with_the_rounds_or_with_the_epoch(tiny_model: Path, tmp_path: Path) -> None:
    """Each is drawn once a step; the last draw stays, whatever it is."""
    workspace, reward = opened(tmp_path, tiny_model, 10**6, 64, "grpo.redraw=other")
    row, kept = drawn_from(workspace)
    sizes = {d.id: len(d.decision_turns) for d in workspace.train}
    assert len(reward.seen) == sum(sizes.values()) and len(sizes) == 4
    assert row["groups_redrawn"] == len(reward.seen) - len(kept) > 0
    assert Counter(kept) == {name: sizes[name] for name in set(kept)} and row["zero_spread_share"] == 1


def test_a_step_begins_with_its_batch_and_goes_on_in_the_epochs_order() -> None:
    items = [f"{i}" for i in range(7)]
    order = [item for step in range(3) for item in batch(items, 3, 5, "grpo", step, str)[1]]
    for step in range(6):
        epoch, chosen, others = batch(items, 3, 5, "grpo", step, str)
        assert epoch == step // 3 and sorted(chosen + others) == items
        if epoch == 0:
            assert others == order[3 * step + 3 :] + order[: 3 * step]


@pytest.mark.parametrize("override", ["redraws=1", "overlong={limit: 9, cache: 3}", "advantages=reinforce"])
def test_graph_mode_takes_none_of_it(tiny_model: Path, tmp_path: Path, override: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"grpo.{override.partition('=')[0]}=.*: not with prompt.mode=graph"
    ):
        config(tmp_path, tiny_model, "prompt.mode=graph", f"grpo.{override}")


def test_gradients_that_stay_not_finite_end_the_run(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the second GRPO step on every gradient is NaN: the third such step in a row is the last. The
    message proposes what can be done: a resumed run keeps its rate.
    """
    plain, calls = Engine.train, 0

    def broken(self: Engine, data: Any, settings: Any) -> dict[str, float]:
        nonlocal calls
        if not hasattr(settings, "advantages"):
            return plain(self, data, settings)
        calls += 1
        if calls > 1:
            for sample in (s for g in data for s in g.samples):
                sample.advantage, sample.weight = 1.0, 1e38
        return plain(self, data, settings)

    monkeypatch.setattr(Engine, "train", broken)
    settings = config(tmp_path, tiny_model, REWARD, "max_nonfinite=3", "grpo.steps=9", "save_every=100")
    settings = settings.model_copy(
        update={"engine": settings.engine.model_copy(update={"deterministic": False})}
    )
    with pytest.raises(
        RunError, match=r"^grpo: the gradient was not finite in 3 steps in a row, up to step 8"
    ) as caught:
        train(settings, ui=Quiet())
    run = Run(settings.folder)
    rows = [row for row in run.rows() if row["kind"] == "grpo"]
    assert [row["nonfinite_gradient"] for row in rows] == [0, 1, 1, 1]
    assert len({row["adapter_norm"] for row in rows}) == 1, "nothing changed the adapter after the first"
    assert run.state.exists() and all(math.isfinite(row["lr"]) for row in rows)
    proposed = str(caught.value).rpartition("(name=… ")[2].removesuffix("=…)").split()
    assert proposed == [f"start={run.last}", "sft=null", "grpo.lr"]
    assert (run.last / "adapter_config.json").exists()
    lower = config(tmp_path, tiny_model, REWARD, "name=again", *proposed[:2], "grpo.lr=1e-5")
    Run(lower.folder).begin(lower, resume=False, fresh=False)
    with pytest.raises(RunError, match=r"grpo\.lr was"):
        run.begin(settings.model_copy(update={"grpo": lower.grpo}), resume=True, fresh=False)
