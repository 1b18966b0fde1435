"""Stage A with thoughts: what the expert's episodes hold, which are dropped, and a run that learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from proactor.engine import Sample
from proactor.environments.demonstration import turn_ids
from proactor.environments.episode import Episode
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.host import HostConfig
from proactor.environments.player import Player
from proactor.environments.wording import SECTIONS
from proactor.methods.bao import read_sections
from proactor.training.demonstrations import Demonstrations
from proactor.training.episodes import Arena
from proactor.training.episodes_loop import train_episodes
from proactor.training.runs import Run
from proactor.training.teaching import Teaching
from tests.proactor.training.episodes import PLAY, calling_folder, config
from tests.proactor.training.test_loop import rows

FAMILY = {"signs": "+-", "largest": 3, "train": 7, "test": 2, "seed": 0, "max_turns": 8}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    gym = FunctionFamily(**FAMILY)  # type: ignore[arg-type]
    opening = gym.make(gym.tasks("train")[0]).reset(0)
    return calling_folder(tmp_path_factory.mktemp("family") / "model", opening, steps=2, context=4096)


def test_the_expert_is_shown_what_the_agent_will_be_shown(model: Path, tmp_path: Path) -> None:
    """The reward line, where the host shows it; and an expert that needs more turns than there are fails."""
    settings = config(
        tmp_path,
        model,
        engine={"kv_tokens": 4096},
        environment={
            "gym": "function_family",
            "options": FAMILY,
            "dev": 2,
            "play": PLAY,
            "host": {"show_reward": True},
        },
        sft={"thoughts": False},
        grpo=None,
    )
    arena = Arena.open(settings)
    task = arena.tasks.train[0]
    taught = Teaching(arena, Run(settings.folder)).episodes()
    [sample] = taught.samples(task)
    assert isinstance(sample, Sample)
    said = arena.chat.template.chat.tokenizer.decode(sample.token_ids)
    assert said.count("\nReward: 0.0") == len(sample.turns()) - 1 >= 2
    replies = turn_ids(taught.demonstration(task).episode(arena.chat))

    async def replayed(player: Player) -> Episode:
        return await player.play(task, 0, key=0, lead=replies)

    seen = arena.playing(0, replayed)[0].sample.token_ids  # as far as an episode's tokens go
    assert "Reward: 0.0" in arena.chat.template.chat.tokenizer.decode(seen)
    assert seen == sample.token_ids[: len(seen)]
    short = Demonstrations.of(arena.gym, arena.chat, thoughts=False, host=HostConfig(max_turns=2))
    assert short.samples(task) == "failed"


def spoiled(episode: Episode, replies: Sequence[str], place: int) -> tuple[Episode, Sequence[str]]:
    """An episode of the expert, and its replies, with the fault of a place."""
    match place:
        case 0:  # no plan in any turn
            return episode, [reply.replace("<plan>", "").replace("</plan>", "") for reply in replies]
        case 1:  # the first call once more
            first, *later = episode.turns
            return replace(episode, turns=[first, first, *later]), [replies[0], *replies]
        case 2:
            return replace(episode, turns=[replace(turn, reward=0.0) for turn in episode.turns]), replies
    return episode, replies


def test_a_run_learns_thoughts_and_counts_what_it_drops(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = config(
        tmp_path,
        model,
        "eval.final=false",
        engine={"kv_tokens": 4096},
        environment={"gym": "function_family", "options": FAMILY, "dev": 2, "play": PLAY},
        sft={"lr": 1e-2, "batch_tasks": 5, "max_steps": 3, "eval_every": 3, "thoughts": True},
        grpo=None,
    )
    arena = Arena.open(settings)
    taught = Demonstrations.of(arena.gym, arena.chat, thoughts=True)
    [sample] = taught.samples(arena.tasks.train[3])
    assert isinstance(sample, Sample) and len(sample.turns()) >= 3
    for start, end in sample.turns():
        said = arena.chat.template.chat.tokenizer.decode(sample.token_ids[start:end])
        assert all(read_sections(said).values()) and said.index("</query>") < said.index("<tool_call>")
    assert all(
        f"<{name}>" not in arena.chat.template.chat.tokenizer.decode(sample.prompt_ids) for name in SECTIONS
    )

    played = Demonstrations._played

    def faulty(self: Demonstrations, task: str) -> tuple[Episode, Sequence[str]]:
        place = arena.tasks.train.index(task) if task in arena.tasks.train else -1
        return spoiled(*played(self, task), place)

    monkeypatch.setattr(Demonstrations, "_played", faulty)
    train_episodes(settings)
    logged = rows(settings.folder)
    steps = [row for row in logged if row["kind"] == "sft"]
    assert len(steps) == 3
    for row in steps:
        assert row["demonstrations"] == 2 and row["skipped_update"] == 0
        assert row["left_out_sections"] == row["left_out_repeated"] == row["left_out_failed"] == 1
    losses = [row["held_out_loss"] for row in logged if row["kind"] == "eval"]
    assert len(losses) == 2 and losses[1] < losses[0]
