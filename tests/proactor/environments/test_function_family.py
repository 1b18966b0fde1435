"""FunctionGym's sub-families: what is drawn, how its splits differ, what is refused."""

from __future__ import annotations

import pytest

from proactor.environments.errors import GymError
from proactor.environments.gyms.function import value_of
from proactor.environments.gyms.function_expert import FunctionExpert
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.protocol import Call


def test_tasks_are_drawn_by_the_seed_and_differ() -> None:
    gym, again, other = FunctionFamily(), FunctionFamily(), FunctionFamily(seed=1)
    tasks = [gym.task(name) for name in gym.tasks("all")]
    assert tasks == [again.task(name) for name in again.tasks("all")]
    assert tasks != [other.task(name) for name in other.tasks("all")]
    assert (len(gym.tasks("train")), len(gym.tasks("test"))) == (400, 100)
    assert len({(task.rule, task.test_case) for task in tasks}) == 500
    assert all(1 <= number <= 5 for task in tasks for number in task.test_case)
    assert all(set(task.rule) <= set("abcd +-") for task in tasks)
    assert all(value_of(task.expression, task.test_case) == task.expected for task in tasks)
    assert gym.name == "function[+-, 1 to 5]"


def test_rules_of_the_tests_may_be_unseen() -> None:
    gym = FunctionFamily(signs="+-*", unseen_rules=True)
    rules = {split: {gym.task(name).rule for name in gym.tasks(split)} for split in ("train", "test")}
    assert rules["test"] and not rules["train"] & rules["test"]


def test_a_task_is_functiongyms_and_the_expert_solves_it() -> None:
    world, expert = FunctionFamily().make("test-0"), FunctionExpert()
    world.reset(0)
    assert "exactly four integers" in world.step(Call("action", "1 2 3 4.5")).observation
    outcome = None
    while not world.over:
        move = expert.move()
        assert move is not None
        outcome = world.step(move.call)
        expert.see(move.call, outcome.observation)
    assert outcome is not None and outcome.reward == 1


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"signs": "^"}, "signs='\\^'"),
        ({"largest": 0}, "largest=0"),
        ({"largest": 1, "signs": "+", "train": 30}, "fewer than 30 different train tasks"),
    ],
)
def test_what_is_refused(options: dict, said: str) -> None:
    with pytest.raises(GymError, match=said):
        FunctionFamily(**options)
    with pytest.raises(GymError, match="no task 'test-9'"):
        FunctionFamily(test=1).make("test-9")
    with pytest.raises(GymError, match="no split 'dev'"):
        FunctionFamily(test=1).tasks("dev")
