"""Telepathy and Turtle with a scripted model: questions, marks, improvement, nonsense; and the catalog of
gyms.
"""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest

from proactor.environments.errors import EpisodeOver, GymError
from proactor.environments.gyms.catalog import GYMS, open_gym
from proactor.environments.gyms.questions import QuestionsGym
from proactor.environments.gyms.tasks import Tasks
from proactor.environments.host import Host
from proactor.environments.protocol import Call
from proactor.environments.users import UserModel
from tests.proactor.environments import own_tasks


class Scripted(UserModel):
    """Says what it was told to, and keeps what it was asked."""

    def __init__(self, *says: str) -> None:
        super().__init__()
        self.says, self.asked = list(says), []

    def _answer(self, question: str) -> str:
        self.asked.append(question)
        said = self.says.pop(0)
        if said == "raise":
            raise ConnectionError("no answer")
        return said

    def _counted(self) -> dict[str, int]:
        return {"requests": len(self.asked)}


def world(folder: Path, name: str, user: Scripted, **options: Any) -> Any:
    (folder / "telepathy_entities.json").write_text(json.dumps(own_tasks.ENTITIES))
    (folder / "turtle_stories.json").write_text(json.dumps(own_tasks.STORIES))
    gym = open_gym({"name": name, "path": folder, **options}, user=user)
    made = gym.make(gym.tasks("all")[0])
    made.reset(0)
    return made


def test_telepathy(tmp_path: Path) -> None:
    user = Scripted("Yes", "No, it is not.", "[0]", "marks: [1]")
    made = world(tmp_path, "telepathy", user)
    calls = [("action", "Has it keys?"), ("action", "Is it red?"), ("answer", "Organ"), ("answer", "Piano")]
    outcomes = [made.step(Call(*call)) for call in calls]
    assert [o.observation for o in outcomes] == ["Yes.", "No.", "Not quite: 0.00 of 1.", "That is right!"]
    assert [o.reward for o in outcomes] == [0, 0, 0, 1] and outcomes[-1].terminated
    assert "Piano - has keys" in user.asked[0] and "Has it keys?" in user.asked[0]
    assert (user.counters["requests"], user.counters["nonsense"]) == (4, 0)
    with pytest.raises(EpisodeOver):
        made.step(Call("action", "And now?"))


def test_turtle_pays_what_an_answer_improves(tmp_path: Path) -> None:
    made = world(tmp_path, "turtle", Scripted("[0.5, 0]", "[0, 1]", "[1, 0.5]", "[1, 1]"))
    outcomes = [made.step(Call("answer", "a story")) for _ in range(4)]
    assert [o.reward for o in outcomes] == pytest.approx([0.375, 0, 0.5, 0.125])
    assert [o.terminated for o in outcomes] == [False, False, False, True]
    assert outcomes[1].info["score"] == 0.375 and outcomes[-1].info["solved"]


@pytest.mark.parametrize(
    "said", ["", "Perhaps", "Yes and no", "nonsense [1]", "I cannot answer yes to that."]
)
def test_nonsense_to_a_question_counts_as_maybe(tmp_path: Path, said: str) -> None:
    outcome = world(tmp_path, "turtle", Scripted(said)).step(Call("action", "Why?"))
    assert (outcome.observation, outcome.info["nonsense"]) == ("Maybe.", 1)


@pytest.mark.parametrize(
    ("said", "read"),
    [("Yes, there is no doubt", "Yes."), ("It does not fly, no.", "No."), ("The answer is no.", "No.")],
)
def test_an_answer_stands_first_or_is_mentioned_alone(tmp_path: Path, said: str, read: str) -> None:
    outcome = world(tmp_path, "turtle", Scripted(said)).step(Call("action", "Why?"))
    assert (outcome.observation, outcome.info["nonsense"]) == (read, 0)


def test_marks_are_the_last_list(tmp_path: Path) -> None:
    """What stands before it names criteria, or is a draft."""
    said = "For criterion [1]: not met. Criteria [1, 2] are what I read.\n[0, 0.5]"
    outcome = world(tmp_path, "turtle", Scripted(said)).step(Call("answer", "a story"))
    assert outcome.reward == pytest.approx(0.125) and outcome.info["nonsense"] == 0


@pytest.mark.parametrize(
    "said", ["", "[1]", "[1, 2]", "[1, null]", '["1", 1]', "[1, 1", "all right", "[true, ]"]
)
def test_nonsense_for_marks_counts_as_no_score(tmp_path: Path, said: str) -> None:
    outcome = world(tmp_path, "turtle", Scripted(said)).step(Call("answer", "a story"))
    assert (outcome.reward, outcome.info["nonsense"], outcome.ended) == (0.0, 1, False)


def test_a_user_that_raises_ends_its_episode_alone(tmp_path: Path) -> None:
    world(tmp_path, "turtle", Scripted())
    gym = open_gym({"name": "turtle", "path": tmp_path}, user=Scripted("raise"))

    async def play() -> Any:
        episode = await Host(gym).begin("own-photo", 0)
        return await episode.step([Call("action", "Why?")])

    answer = asyncio.run(play())
    assert (answer.ending, answer.error) == ("error", "own-photo: ConnectionError: no answer")


def test_other_turns_and_the_end(tmp_path: Path) -> None:
    made = world(tmp_path, "turtle", Scripted(), max_turns=2)
    assert made.step(Call("guess", "x")).observation.startswith("Please choose action")
    last = made.step(Call("finish"))
    assert last.terminated and last.truncated and last.reward == 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "gym.name: no gym None"),
        ({"name": "chess"}, "no gym 'chess': there are .*function, function_family, intention"),
        ({"name": "questions", "max_turn": 3}, r"gym.max_turn: unknown key .*did you mean max_turns\?"),
        ({"name": "function"}, "gym.path: the function gym needs it"),
        ({"name": "turtle", "path": "."}, "gym.user: the turtle gym needs it"),
        ({"name": "turtle", "path": ".", "user": 3}, "gym.user: unknown key"),
        ({"name": "function", "path": "/nowhere"}, "/nowhere: no such file"),
        ({"name": "function_family", "largest": "5"}, r"gym\.largest: .*got '5' \(the function_family gym\)"),
        ({"name": "function_family", "unseen_rules": 1}, r"gym\.unseen_rules: .*boolean, got 1"),
        ({"name": "function_family", "seed": True}, r"gym\.seed: .*integer, got True"),
        ({"name": "taira", "ndcg_weight": "a"}, r"gym\.ndcg_weight: .*number, got 'a' \(the taira gym\)"),
        ({"name": "taira", "call_price": math.nan}, r"gym\.call_price: .*finite number, got nan"),
        ({"name": "agentcf", "rounds": 2.5}, r"gym\.rounds: .*integer, got 2\.5"),
        ({"name": "questions", "user_verbs": 5}, r"gym\.user_verbs: .*got 5 \(the questions gym\)"),
        ({"name": "questions", "user_verbs": "action"}, r"gym\.user_verbs: .*got 'action'"),
        ({"name": "questions", "user_verbs": ["action", 3]}, r"gym\.user_verbs\.1: .*string, got 3"),
        ({"name": "questions", "max_turns": "x"}, r"gym\.max_turns: .*integer, got 'x'"),
        ({"name": "intention", "path": ".", "max_turns": None}, r"gym\.max_turns: .*integer, got None"),
        ({"name": "function", "path": 3}, r"gym\.path.*got 3 \(the function gym\)"),
        ({"name": "tau", "path": ".", "database": []}, r"gym\.database.*got \[\]"),
        ({"name": "events", "path": ".", "pay": 1}, r"gym\.pay: .*'plain' or 'priced', got 1"),
    ],
)
def test_what_the_catalog_refuses(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        open_gym(settings)
    assert "\n" not in str(refused.value)


def test_the_catalog_takes_what_the_classes_declare() -> None:
    gym = open_gym({"name": "questions", "user_verbs": ["answer"]})
    assert gym.make("otter").user_verbs == {"answer"}
    assert open_gym({"name": "taira", "train": 3, "test": 1, "call_price": 0}).tasks("test")


def test_a_gym_without_a_user_takes_none() -> None:
    with pytest.raises(GymError, match=r"gym\.user: the questions gym takes none"):
        open_gym({"name": "questions"}, user=Scripted())


def test_a_wrong_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GymError, match=r"gym\.split: .*'official' or 'none', got 'mine'"):
        world(tmp_path, "telepathy", Scripted(), split="mine")
    with pytest.raises(GymError, match="telepathy: split='mine'"):
        Tasks("telepathy", {}, "mine", frozenset())  # type: ignore[arg-type]


def test_the_catalog_opens_a_gym() -> None:
    gym = open_gym({"name": "questions", "max_turns": 5})
    assert isinstance(gym, QuestionsGym) and gym.max_turns == 5
    assert sorted(GYMS) == (
        "agentcf events function function_family intention questions taira tau telepathy turtle".split()
    )


def test_real_entities_and_stories_are_read(data_dir: Path) -> None:
    for name, train, test in [("telepathy", 282, 29), ("turtle", 346, 42)]:
        gym = open_gym({"name": name, "path": data_dir / "userrl"}, user=Scripted())
        assert (len(gym.tasks("train")), len(gym.tasks("test"))) == (train, test)
