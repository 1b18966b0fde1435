"""FunctionGym: probes, answers, the end, its two ways to read numbers; and what its tasks refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.environments.errors import EpisodeOver, GymError
from proactor.environments.gyms.function import FunctionGym, FunctionWorld, value_of
from proactor.environments.gyms.tasks import official_tests
from proactor.environments.protocol import Call
from proactor.files import SourceError

HELD = "func-14"  # one of UserRL's official tests
RECORDS = [
    {"id": "func-1", "rule": "c * (a * b) * d", "test_case": [3, 5, 5, 3], "expected_result": 225.0},
    {"id": HELD, "rule": "(b - a) / (c - d)", "test_case": [1, 9, 8, 6], "expected_result": 4.0},
]


def gym_of(folder: Path, records: list[dict] = RECORDS, **options: object) -> FunctionGym:
    (folder / "functions.json").write_text(json.dumps(records))
    return FunctionGym(folder, **options)


def world(folder: Path, task: str = HELD, **options: object) -> FunctionWorld:
    made = gym_of(folder, **options).make(task)
    made.reset(0)
    return made


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (Call("action", "1 3 2 1"), "For numbers [1.0, 3.0, 2.0, 1.0], the result is 2.0."),
        (Call("action", "1, 2, 7, 4"), "For numbers [1.0, 2.0, 7.0, 4.0], the result is 0.3333."),
        (Call("action", "1 2 3 3"), "Error parsing numbers or calculating result."),
        (Call("action", "1 9 8 6"), "This is the test case"),
        (Call("action", "1 2 3"), "Please provide exactly four numbers."),
        (Call("action", "1 2 3 4.0"), "Please provide exactly four integers"),
        (Call("action", " "), "Please provide four numbers after [action]."),
        (Call("search", "Test"), "Test case: [1, 9, 8, 6]"),
        (Call("search", "rule"), "Search content should only be 'test'"),
        (Call("answer", "five"), "Invalid numerical answer."),
        (Call("answer", ""), "Answer is empty."),
        (Call("answer", "nan"), "Your answer is wrong."),
        (Call("", "1 2 3 4"), "Invalid action format."),
        (Call("guess", "4"), "Invalid action format."),
        (Call("guess", "[search] test"), "Test case: [1, 9, 8, 6]"),
    ],
)
def test_what_the_agent_is_told(tmp_path: Path, call: Call, said: str) -> None:
    outcome = world(tmp_path).step(call)
    assert outcome.observation.startswith(said)
    assert outcome.reward == 0 and not outcome.ended


def test_an_answer_may_be_retried_and_the_right_one_ends(tmp_path: Path) -> None:
    made = world(tmp_path, max_turns=2)
    assert made.step(Call("answer", "5")).observation.startswith("Your answer is wrong.")
    right = made.step(Call("answer", "4.0000005"))
    assert (right.reward, right.terminated, right.truncated) == (1.0, True, True)
    with pytest.raises(EpisodeOver, match=HELD):
        made.step(Call("search", "test"))
    made.reset(0)
    assert not made.step(Call("search", "test")).ended


def test_finish_ends_without_a_reward_and_tells_the_result(tmp_path: Path) -> None:
    outcome = world(tmp_path).step(Call("finish"))
    assert outcome.terminated and outcome.reward == 0 and outcome.observation.endswith("4.0")


def test_the_float_hole_is_there_in_parity_mode_alone(tmp_path: Path) -> None:
    shifted = Call("action", "1.0000000001 9 8 6")
    assert world(tmp_path, parity=True).step(shifted).observation.endswith("the result is 4.0.")
    assert "integers" in world(tmp_path).step(shifted).observation
    exponent = world(tmp_path, parity=True).step(Call("action", "1e3 9 8"))
    assert exponent.observation.startswith("For numbers [1.0, 3.0, 9.0, 8.0]")


@settings(max_examples=40)
@given(st.lists(st.sampled_from(["action 1 2 3 4", "answer 4", "answer 5", "search test", "x"]), max_size=12))
def test_bookkeeping_of_any_episode(tmp_path_factory: pytest.TempPathFactory, said: list[str]) -> None:
    made = world(tmp_path_factory.mktemp("gym"), max_turns=6)
    rewards: list[float] = []
    for text in said:
        verb, _, content = text.partition(" ")
        if made.over:
            with pytest.raises(EpisodeOver):
                made.step(Call(verb, content))
            break
        outcome = made.step(Call(verb, content))
        rewards.append(outcome.reward)
        assert outcome.ended == (text == "answer 4" or len(rewards) == 6)
        assert outcome.truncated == (len(rewards) == 6)
    assert sum(rewards) == ("answer 4" in said[: len(rewards)])


def test_the_official_tests_stay_out_of_training(tmp_path: Path) -> None:
    assert len(official_tests("function")) == 78 and len(official_tests("telepathy")) == 41
    kept = gym_of(tmp_path)
    assert (kept.tasks("train"), kept.tasks("test")) == (["func-1"], [HELD])
    assert gym_of(tmp_path, split="none").tasks("train") == ["func-1", HELD]
    with pytest.raises(GymError, match="no split 'dev'"):
        kept.tasks("dev")
    with pytest.raises(GymError, match="no task 'func-0'"):
        kept.make("func-0")


def test_a_split_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GymError, match="no tasks of the split 'test'"):
        gym_of(tmp_path, RECORDS[:1]).tasks("test")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rule": "__import__('os')"}, "func-1.rule"),
        ({"rule": "a.b"}, "func-1.rule"),
        ({"rule": "a + e"}, "func-1.rule"),
        ({"rule": "a + + "}, "func-1.rule"),
        ({"expected_result": 226}, "func-1: the rule gives 225.0"),
        ({"test_case": [1, 2, 3]}, "0.test_case"),
        ({"id": HELD}, "occurs twice"),
    ],
)
def test_a_wrong_record_is_named(tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises((SourceError, GymError), match=said):
        gym_of(tmp_path, [{**RECORDS[0], **change}, RECORDS[1]])


def test_every_shipped_rule_gives_its_result(data_dir: Path) -> None:
    gym = FunctionGym(data_dir / "userrl")
    for name in gym.tasks("all"):
        task = gym.task(name)
        assert value_of(task.expression, task.test_case) == pytest.approx(task.expected, abs=1e-6)
    assert len(gym.tasks("train")) + len(gym.tasks("test")) == len(gym.tasks("all"))
