"""IntentionGym: the rule user's matching, the worth of a question, the end; and what its tasks refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.environments.errors import EpisodeOver, GymError
from proactor.environments.gyms.intention import IntentionGym, IntentionTask, IntentionWorld, worth
from proactor.environments.gyms.intention_user import REFUSAL, Detail
from proactor.environments.protocol import Call
from proactor.files import SourceError

DETAILS = [
    ("Length of the trip", "3", "How long do you plan to stay in Oslo?", ["A week", "A weekend"]),
    ("Budget", "2", "What can you spend on the trip to Oslo?", ["Little", "Much"]),
    ("Dining", "1", "Which food do you like to eat?", ["Local dishes", "Vegetarian meals"]),
]
RECORD = {
    "id": "oslo",
    "category": "Travel",
    "task": "Plan a trip to Oslo.",
    "missing_details": [
        dict(zip(("description", "importance", "inquiry", "options"), detail)) for detail in DETAILS
    ],
}


def gym_of(folder: Path, *records: dict, **options: object) -> IntentionGym:
    (folder / "intentions.json").write_text(json.dumps(records or [RECORD]))
    return IntentionGym(folder, **options)


@pytest.fixture
def world(tmp_path: Path) -> IntentionWorld:
    return gym_of(tmp_path).make("oslo")


@pytest.mark.parametrize(
    ("question", "asked", "reward"),
    [
        ("How long do you plan to stay in Oslo?", [0], 1.0),
        ("How many days is your stay?", [0], 1.0),
        ("What is your budget?", [1], 0.7),
        ("Do you eat vegetarian food?", [2], 0.4),
        ("How long will you stay, and what is your budget?", [0, 1], 0.8),
        ("Stay, budget, food?", [0, 1, 2], 0.6),
        ("How is the weather today?", [], 0.0),
        ("Who won the football match in 1998?", [], 0.0),
        ("", [], 0.0),
    ],
)
def test_a_question_and_what_it_is_worth(
    world: IntentionWorld, question: str, asked: list[int], reward: float
) -> None:
    world.reset(0)
    assert world.user.asked(question) == asked
    outcome = world.step(Call("action", question))
    assert outcome.reward == pytest.approx(reward)
    said = [f"{DETAILS[place][0]}: {world.user.wishes[place]}." for place in asked]
    assert outcome.observation == (" ".join(said) or REFUSAL)
    assert outcome.info["covered"] == len(asked)


def test_worth() -> None:
    assert worth([]) == 0 and worth([1, 3]) == pytest.approx(0.8) and worth([1, 1, 1, 1]) == 0


def test_the_wish_is_drawn_by_the_seed(world: IntentionWorld) -> None:
    wishes = set()
    for seed in range(20):
        world.reset(seed)
        again = list(world.user.wishes)
        world.reset(seed)
        assert world.user.wishes == again
        wishes.add(tuple(again))
    assert len(wishes) > 3


def test_asking_again_is_answered_and_worth_nothing(world: IntentionWorld) -> None:
    world.reset(0)
    first, second = (world.step(Call("action", "What is your budget?")) for _ in range(2))
    assert second.observation == first.observation and (second.reward, second.info["new"]) == (0.0, 0)


def test_the_end(tmp_path: Path) -> None:
    made = gym_of(tmp_path, max_turns=2).make("oslo")
    made.step(Call("action", "stay, budget?"))
    last = made.step(Call("action", "weather?"))
    assert last.terminated and last.truncated
    with pytest.raises(EpisodeOver, match="oslo"):
        made.step(Call("action", "food?"))
    made.reset(0)
    done = made.step(Call("action", "stay, budget, food?"))
    assert done.terminated and not done.truncated and done.info["coverage"] == 1
    made.reset(0)
    finished = made.step(Call("guess", "[Finish] now"))
    assert finished.observation == "Session ended. You covered 0/3 missing details." and finished.terminated


@settings(max_examples=40)
@given(st.lists(st.sampled_from([d[2] for d in DETAILS] + ["weather?", "budget and food?"]), max_size=8))
def test_each_detail_is_covered_and_paid_once(questions: list[str]) -> None:
    details = tuple(Detail(d[0], int(d[1]), d[2], tuple(d[3])) for d in DETAILS)
    made = IntentionWorld(IntentionTask("oslo", "", "", details), max_turns=6)
    new = 0
    for question in questions:
        if made.over:
            break
        outcome = made.step(Call("action", question))
        new += outcome.info["new"]
        assert new == outcome.info["covered"] == 3 - len(made.left)
        assert (outcome.reward > 0) == (outcome.info["new"] > 0)
        assert outcome.ended == (new == 3 or made.turns == 6)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"missing_details": []}, "missing_details"), ({"category": None}, "0.category"), ({"id": 3}, "0.id")],
)
def test_a_wrong_record_is_named(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(SourceError, match=said):
        gym_of(tmp_path, {**RECORD, **change})


def test_which_tasks_there_are(tmp_path: Path) -> None:
    gym = gym_of(tmp_path)
    assert gym.tasks("train") == ["oslo"]
    with pytest.raises(GymError, match="no tasks of the split 'test'"):
        gym.tasks("test")
    with pytest.raises(GymError, match="twice"):
        gym_of(tmp_path, RECORD, RECORD)


def test_inquiries_of_real_tasks_are_understood(data_dir: Path) -> None:
    gym = IntentionGym(data_dir / "userrl")
    asked = right = 0
    for name in gym.tasks("train")[:100]:
        world = gym.make(name)
        for place, detail in enumerate(world.task.details):
            asked += 1
            right += world.user.asked(detail.inquiry) == [place]
    assert right > 0.95 * asked
