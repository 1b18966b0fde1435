"""InfoPO in training: what failed groups teach, and what its masked passes cost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from proactor.engine import logprobs as scoring
from proactor.environments.gyms import catalog
from proactor.methods.infopo import feedback_span
from proactor.training.episodes import Arena
from proactor.training.episodes_loop import train_episodes
from proactor.training.method_credit import Credit, frame
from tests.proactor.training.episodes import PLAY, GuessGym, config, guess_folder
from tests.proactor.training.test_loop import rows


@pytest.fixture(scope="module", autouse=True)
def guess() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalog.GYMS, "guess", GuessGym)
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return guess_folder(tmp_path_factory.mktemp("guess") / "model")


def failing(folder: Path, model: Path, method: str) -> dict[str, Any]:
    """The one step of a run in a world that rewards nothing."""
    folder.mkdir()
    settings = config(
        folder,
        model,
        "grpo.steps=1",
        "eval.final=false",
        engine={"kv_tokens": 4096},
        environment={"gym": "guess", "dev": 1, "options": {"right": 0.0}, "play": PLAY},
        method={"name": method},
    )
    train_episodes(settings)
    [row] = [row for row in rows(settings.folder) if row["kind"] == "grpo"]
    return row


def test_groups_that_all_fail_teach_infopo_and_not_grpo(model: Path, tmp_path: Path) -> None:
    outcome, information = (failing(tmp_path / name, model, name) for name in ("userrl", "infopo"))
    assert outcome["score"] == information["score"] == 0
    assert outcome["grad_norm"] == 0 and outcome["zero_gradient"] == 1 and outcome["flat_steps"] == 1
    assert outcome["groups_with_spread"] == 0 and outcome["groups_without_spread"] == 3
    assert information["grad_norm"] > 0 and information["zero_gradient"] == 0
    assert information["groups_with_spread"] == 3 and information["flat_steps"] == 0
    assert information["policy_version"] == outcome["policy_version"] + 1 == 1


def test_masked_passes_cost_the_feedback_and_the_next_action(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of played episodes the sampler's log-probabilities are the unmasked pass: no row is computed twice."""
    settings = config(tmp_path, model, method={"name": "infopo"})
    arena = Arena.open(settings)
    groups, _ = arena.play(["train-8-0", "train-9-1"], n=4, iteration=1, epoch=0)
    seen: list[int] = []
    whole = scoring.tree_logprobs

    def counted(decoder: Any, tree: Any) -> Any:
        seen.append(tree.rows)
        return whole(decoder, tree)

    monkeypatch.setattr(scoring, "tree_logprobs", counted)
    Credit.of(settings.method).groups(groups, arena.engine, arena.chat, 0)
    trunks = masked = 0
    for episode in (e for group in groups for e in group):
        valid = [t for t in range(len(episode.turns)) if feedback_span(episode, t, frame(arena.chat))]
        if valid:
            last = episode.turns[valid[-1]].observation[0]
            trunks += len(episode.sample.prompt_ids) + last
        for t in valid:
            (start, end), (begin, stop) = episode.turns[t].observation, episode.turns[t + 1].action
            masked += end - start + stop - begin
    assert masked > 0 and 0 < sum(seen) <= trunks + masked
