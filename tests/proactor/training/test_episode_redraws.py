"""Groups of episodes without spread are played again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from proactor.config_base import ConfigError
from proactor.environments.episode import Episode
from proactor.episode_config import MethodOptions
from proactor.progress import Quiet
from proactor.training.episodes import Arena
from proactor.training.episodes_loop import EpisodeTraining
from proactor.training.method_credit import Credit
from proactor.training.runs import Run
from proactor.training.steps import batch
from tests.proactor.methods.episodes import episode, failed
from tests.proactor.training.episodes import config

pytestmark = pytest.mark.usefixtures("guess")


def drawn_again(
    arena: Arena, monkeypatch: pytest.MonkeyPatch, flat: set[int], **changes: Any
) -> tuple[dict[str, Any], list[str], list[dict[str, Any]]]:
    """(the row of step 0 of an arena, tasks in the epoch's order, samples) where the first groups of the
    tasks at the places ``flat`` of that order have no spread. The arena stays as it was.
    """
    assert arena.config.grpo is not None
    grpo = arena.config.grpo.model_copy(update={"batch_tasks": 3, **changes})
    settings = arena.config.model_copy(update={"grpo": grpo})
    _, tasks, others = batch(arena.tasks.train, 3, settings.seed, "grpo", 0, str)
    named = {task for place, task in enumerate([*tasks, *others]) if place in flat}
    seen = Counter[str]()

    def without_spread(self: Credit, episodes: Sequence[Episode]) -> bool:
        seen[episodes[0].task] += 1
        return episodes[0].task in named and seen[episodes[0].task] == 1

    monkeypatch.setattr(Credit, "without_spread", without_spread)
    training = EpisodeTraining(replace(arena, config=settings), Run("nowhere", writer=False), [], Quiet())
    state = arena.engine.state_dict()
    row, samples = training.grpo_row(0)
    arena.engine.load_state_dict(state)
    return row, [*tasks, *others], samples


def test_tasks_without_spread_are_played_again(arena: Arena, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same tasks with other tokens, or the next of the order; the others keep what they were."""
    plain, order, first = drawn_again(arena, monkeypatch, set(), redraws=0)
    assert "groups_redrawn" not in plain
    same, _, again = drawn_again(arena, monkeypatch, {0, 2}, redraws=3)
    assert same["groups_redrawn"] == 2 and same["episodes"] == 12
    assert same["tokens_sampled"] > same["tokens_redrawn"] > 0
    assert [s["task"] for s in again[::4]] == [s["task"] for s in first[::4]] == order[:3]
    assert again[4:8] == first[4:8] and again[:4] != first[:4] and again[8:] != first[8:]
    other, _, more = drawn_again(arena, monkeypatch, {0, 2, 4}, redraws=3, redraw="other")
    assert other["groups_redrawn"] == 3 and more[:4] == first[4:8]
    assert [s["task"] for s in more[::4]] == [order[1], order[3], order[5]]
    _, _, capped = drawn_again(arena, monkeypatch, {0, 2, 4}, redraws=1, redraw="other")
    assert [s["task"] for s in capped[::4]] == [order[1], order[3], order[4]], "the last draw stays"


def test_a_group_is_without_spread_where_no_token_gets_an_advantage() -> None:
    alike, other = [episode([0.0, 1.0]) for _ in range(2)], episode([0.0, 0.0])
    for name in ("userrl", "bao", "agent_omit"):
        credit = Credit.of(MethodOptions(name=name))
        assert credit.without_spread([*alike, failed("error"), episode([])])
        assert not credit.without_spread([*alike, other])
        assert not credit.without_spread([alike[0], failed("error")]), "nothing to compare"


@pytest.mark.parametrize("name", ["infopo", "stepagent"])
def test_methods_that_draw_nothing_again(guess_model: Path, tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=f"grpo.redraws=1: {name} "):
        config(tmp_path, guess_model, "grpo.redraws=1", f"method={{name: {name}}}")
