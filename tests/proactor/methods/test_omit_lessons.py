"""Agent-Omit's cold start: what an expert's episode can leave out, and the lessons made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from proactor.engine import Engine, Sample, ToolChat
from proactor.environments.demonstration import Demonstration, turn_ids
from proactor.environments.host import Host
from proactor.environments.player import PlayConfig
from proactor.environments.protocol import Call, Opening
from proactor.environments.scripted import Move, play
from proactor.methods.omit_format import (
    OmittingPlayer,
    OmitWording,
    marker,
    omission,
)
from proactor.methods.omit_lessons import Omittable, cold_start, lessons, omitting_at_random
from tests.engine.sessions import run
from tests.proactor.methods.omitting import CONTEXT, LONG, WorldGym, said, saying, world_engine


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return world_engine(tmp_path_factory.mktemp("chat") / "model")


class Script:
    """Says three contents, the last one right."""

    def __init__(self) -> None:
        self.left = iter(["1", "2", "right"])

    def move(self) -> Move | None:
        return Move(Call("action", next(self.left)))

    def see(self, call: Call, observation: str) -> None:
        pass


def demonstrated(told: str = LONG) -> Demonstration:
    shown = play(WorldGym(told), "a", Script())
    thoughts = ("<think>one</think>", "<think>two</think>", "<think>three</think>")
    return Demonstration(shown, Opening([{"role": "user", "content": "go"}]), thoughts, OmitWording(False))


@pytest.fixture(scope="module")
def taught() -> Demonstration:
    return demonstrated()


def tried(engine: Engine, demonstration: Demonstration, then: str, gym: Any = None) -> Any:
    async def go() -> Any:
        async with engine.session() as session, Host(gym or WorldGym()) as host:
            assert engine.chat is not None
            config = PlayConfig(sampling=saying(engine, [then]), max_tokens=CONTEXT)
            player = OmittingPlayer(session, ToolChat(engine.chat), host, config, CONTEXT, OmitWording(False))
            return await cold_start(player, demonstration, 1, 3)

    return run(go())


def test_what_can_be_left_out_is_what_does_not_cost_the_task_and_saves_tokens(
    engine: Engine,
) -> None:
    long = "of words " * 15
    found, counts = tried(engine, demonstrated(long), said("right"), WorldGym(long))
    assert found == Omittable(thoughts=(1, 2, 3), results=(1,)), "result 2 would go when nothing follows"
    assert counts == {"omit/tried": 5, "omit/kept": 4}
    lost, _ = tried(engine, demonstrated(long), said("4"), WorldGym(long))
    assert lost == Omittable(thoughts=(3,)), "where nobody solves the task, nothing is shown to be spare"
    short, _ = tried(engine, demonstrated(""), said("right"), WorldGym(""))
    assert short is not None and short.results == (), "a tag is longer than a result of one character"


def test_an_episode_that_the_environment_refuses_is_counted(engine: Engine, taught: Demonstration) -> None:
    found, counts = tried(engine, taught, said("right"), WorldGym("other words "))
    assert found is None and counts == {"omit/refused": 1}


def test_lessons_are_each_omission_alone_and_the_episode_with_all(
    engine: Engine, taught: Demonstration
) -> None:
    assert engine.chat is not None
    chat = ToolChat(engine.chat)
    text = engine.chat.tokenizer.decode
    found = lessons(taught, Omittable(thoughts=(2,), results=(1,)), chat)
    whole, rest, single = found
    assert isinstance(whole, Sample) and f"{LONG}1" in text(whole.token_ids)
    assert marker(1) in text(rest.prompt_ids) and f"{LONG}1" not in text(rest.prompt_ids)
    assert text(single.token_ids).startswith("<think></think>" + omission(1)) and len(single.turns()) == 1
    assert len(whole.turns()) + len(rest.turns()) == 3
    plain = taught.episode(chat)
    assert text(turn_ids(plain)[1]).startswith("<think>two</think>")
    assert [s.token_ids for s in lessons(taught, Omittable(), chat)] == [plain.sample.token_ids]


def test_random_omissions_depend_on_the_task_alone(taught: Demonstration) -> None:
    one, two = (omitting_at_random(taught) for _ in range(2))
    assert one.left_out == two.left_out and one.said == taught.said
    other = replace(taught, played=replace(taught.played, episode=replace(taught.played.episode, task="b")))
    drawn = {omitting_at_random(replace(other)).left_out, one.left_out}
    assert all(n <= 3 for found in drawn for n in found.thoughts) and all(
        n <= 2 for found in drawn for n in found.results
    )
