"""What holds for every gym: any call is answered, equal calls are answered equally, also by a copy; and they
can be sent to a process.
"""

from __future__ import annotations

import copy
import json
import math
import pickle
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine import Sample
from proactor.environments.calls import VERBS
from proactor.environments.episode import Episode, Turn
from proactor.environments.errors import EpisodeOver
from proactor.environments.gyms.catalog import open_gym
from proactor.environments.protocol import Call, Gym, Outcome
from proactor.environments.users import UserModel
from tests.proactor.environments import own_tasks, shop


class Agreeing(UserModel):
    """Answers every question with yes, and every mark with a half."""

    def _answer(self, question: str) -> str:
        wanted = re.search(r"JSON list of (\d+)", question)
        return json.dumps([0.5] * int(wanted[1])) if wanted else "Yes"

    def _counted(self) -> dict[str, int]:
        return {}

    def __deepcopy__(self, memo: object) -> Agreeing:
        raise AssertionError("a model is shared, not copied")


@pytest.fixture(scope="module")
def gyms(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Gym]:
    folder: Path = tmp_path_factory.mktemp("gyms")
    files = {
        "functions": own_tasks.FUNCTIONS,
        "intentions": own_tasks.INTENTIONS,
        "tau": shop.TASKS,
        "telepathy_entities": own_tasks.ENTITIES,
        "turtle_stories": own_tasks.STORIES,
        **shop.TABLES,
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    user = Agreeing()
    return {
        "agentcf": open_gym({"name": "agentcf", "train": 3, "test": 1}),
        "function": open_gym({"name": "function", "path": folder, "parity": True}),
        "function_family": open_gym({"name": "function_family", "train": 3, "test": 1}),
        "intention": open_gym({"name": "intention", "path": folder}),
        "questions": open_gym({"name": "questions"}),
        "taira": open_gym({"name": "taira", "train": 3, "test": 1}),
        "tau": open_gym({"name": "tau", "path": folder, "database": folder}),
        "telepathy": open_gym({"name": "telepathy", "path": folder}, user=user),
        "turtle": open_gym({"name": "turtle", "path": folder}, user=user),
    }


NAMES = [
    *(
        "agentcf",
        "function",
        "function_family",
        "intention",
        "questions",
        "taira",
        "tau",
        "telepathy",
        "turtle",
    )
]

CONTENTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "1 2 3 4",
            "1e308 9 9 9",
            "0 0 0 0",
            "9" * 400,
            "test",
            "tools",
            "Is it red?",
            "What is your budget?",
            "2",
            "Searcher rain > Planner",
            "ItemRetriever hat-red > ItemRetriever coat-silk > Interactor",
            "[answer] 3",
            "[finish]",
            '{"name": "get_order_details", "arguments": {"order_id": ["#W1"]}}',
            '{"name": "calculate", "arguments": {"expression": "9**9**9**9"}}',
            '{"name": "respond", "arguments": {"content": 3}}',
            '{"name": ' + "[" * 5000 + "}",
            f"think: {json.dumps({'thought': '1' * 5000})}",
            "\ud83d",
            "\0",
        ]
    ),
)
CALLS = st.lists(st.builds(Call, st.sampled_from([*VERBS, "finish", "", "sell"]), CONTENTS), max_size=8)


def answers(world: Any, calls: list[Call]) -> list[Outcome]:
    """What a world answers until its end, after which it answers nothing."""
    outcomes = []
    for call in calls:
        if outcomes and outcomes[-1].ended:
            with pytest.raises(EpisodeOver):
                world.step(call)
            break
        outcomes.append(world.step(call))
    return outcomes


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None)
@given(calls=CALLS, at=st.integers(0, 8), seed=st.integers(0, 3))
def test_any_call_is_answered_and_a_copy_answers_alike(
    gyms: dict[str, Gym], name: str, calls: list[Call], at: int, seed: int
) -> None:
    gym = gyms[name]
    task = gym.tasks("all")[seed % len(gym.tasks("all"))]
    world, again = gym.make(task), gym.make(task)
    assert world.reset(seed) == again.reset(seed)
    before = answers(world, calls[:at])
    for outcome in before:
        assert isinstance(outcome.observation, str) and math.isfinite(outcome.reward)
        assert 0 <= outcome.reward <= 1
    twin = copy.deepcopy(world)
    if not (before and before[-1].ended):
        rest = answers(world, calls[at:])
        assert answers(twin, calls[at:]) == rest
        assert answers(again, calls) == before + rest
    assert world.reset(seed) == gym.make(task).reset(seed)  # it may begin anew at any time


RIGHT = own_tasks.FUNCTIONS[0]["expected_result"]
PATHS: list[tuple[str, str, list[Call], float, bool]] = [
    ("function", "own-0", [Call("answer", "3"), Call("answer", str(RIGHT))], 1, True),
    ("function", "own-0", [Call("action", "1 2 3 4"), Call("answer", "3")], 0, False),
    ("questions", "dog", [Call("action", "Is it red?"), Call("answer", "dog")], 1, True),
    ("questions", "dog", [Call("answer", "cow"), Call("finish")], 0, False),
    ("intention", "bike", [Call("action", "Will you ride on roads or on trails?")], 1.0, True),
    (
        "intention",
        "oslo",
        [Call("action", d["inquiry"]) for d in own_tasks.INTENTIONS[0]["missing_details"]],
        1.0 + 0.7 + 0.4,
        True,
    ),
    # the most important detail alone is worth 1, and solves nothing
    (
        "intention",
        "oslo",
        [Call("action", own_tasks.INTENTIONS[0]["missing_details"][0]["inquiry"]), Call("finish")],
        1.0,
        False,
    ),
    ("turtle", "own-photo", [Call("answer", "two sisters"), Call("answer", "a photo")], 0.5, False),
]


@pytest.mark.parametrize(("name", "task", "calls", "score", "solved"), PATHS)
def test_what_an_episode_reached_and_whether_it_solved_the_task(
    gyms: dict[str, Gym], name: str, task: str, calls: list[Call], score: float, solved: bool
) -> None:
    world = gyms[name].make(task)
    world.reset(0)
    outcomes = answers(world, calls)
    turns = [Turn((c,), (0, 0), (0, 0), "", o.reward) for c, o in zip(calls, outcomes, strict=True)]
    ended = Episode(name, task, 0, Sample([], []), turns, "terminated", 9, info=dict(outcomes[-1].info))
    assert ended.score == pytest.approx(score) and ended.solves() == solved


@pytest.mark.parametrize("name", NAMES)
def test_an_episode_ends_with_its_last_turn(gyms: dict[str, Gym], name: str) -> None:
    gym = gyms[name]
    world = gym.make(gym.tasks("train")[0])
    world.reset(0)
    outcomes = [world.step(Call("search", "nothing")) for _ in range(gym.max_turns)]
    assert [outcome.ended for outcome in outcomes] == [False] * (gym.max_turns - 1) + [True]
    assert outcomes[-1].truncated


@pytest.mark.parametrize(
    "name", ["agentcf", "function", "function_family", "intention", "questions", "taira", "tau"]
)
def test_it_can_be_made_in_another_process(gyms: dict[str, Gym], name: str) -> None:
    gym = gyms[name]
    make = pickle.loads(pickle.dumps(partial(gym.make, gym.tasks("train")[0])))
    world = make()
    opening = pickle.loads(pickle.dumps(world.reset(0)))
    assert opening.messages and opening.tools
    assert pickle.loads(pickle.dumps(world.step(Call("action", "1 2 3 4")))).observation
