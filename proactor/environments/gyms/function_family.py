"""FunctionGym on a sub-family of rules, drawn here, for models that are too small for UserRL's.

A rule joins a, b, c and d, once each and in any order, by the given signs from left to right with the usual
precedence; test cases are integers from 1 to ``largest``. Figures on a sub-family are named so, and stand
beside no figure on UserRL's tasks.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from proactor.environments.errors import GymError
from proactor.environments.gyms.arithmetic import parse
from proactor.environments.gyms.function import NAMES, FunctionTask, FunctionWorld, value_of

SIGNS = "+-*/"


class FunctionFamily:
    """``train`` and ``test`` tasks, drawn by ``seed``; no two tasks share both rule and test case, and with
    ``unseen_rules`` no rule of a test is trained on. Raises GymError for signs or numbers that give too few.
    """

    def __init__(
        self,
        signs: str = "+-",
        largest: int = 5,
        train: int = 400,
        test: int = 100,
        seed: int = 0,
        unseen_rules: bool = False,
        max_turns: int = 16,
    ) -> None:
        if not signs or not set(signs) <= set(SIGNS) or largest < 1 or train < 1 or test < 0:
            raise GymError(f"function_family: signs={signs!r}, largest={largest}, train={train}, test={test}")
        self.name = f"function[{signs}, 1 to {largest}]"
        self.max_turns = max_turns
        self._tasks: dict[str, FunctionTask] = {}
        drawn = random.Random(f"{signs}/{largest}/{seed}")
        rules = sorted({_rule(drawn, signs) for _ in range(5000)})
        self.rules = tuple(rules)
        drawn.shuffle(rules)
        parts = {"train": rules, "test": rules}
        if unseen_rules:
            cut = max(1, len(rules) // 5)
            parts = {"train": rules[cut:], "test": rules[:cut]}
        seen: set[tuple[str, tuple[int, ...]]] = set()
        for part, count in (("train", train), ("test", test)):
            for number in range(count):
                task = _draw(drawn, parts[part], largest, seen, f"{part}-{number}")
                if task is None:
                    raise GymError(f"{self.name}: there are fewer than {count} different {part} tasks")
                self._tasks[task.id] = task

    def tasks(self, split: str) -> Sequence[str]:
        """Ids of ``train``, ``test`` or ``all``. Raises GymError for another split."""
        if split not in ("train", "test", "all"):
            raise GymError(f"{self.name}: no split {split!r}: there are train, test and all")
        return [name for name in self._tasks if split == "all" or name.startswith(f"{split}-")]

    def task(self, name: str) -> FunctionTask:
        """A task, with the rule that the agent is not told."""
        if name not in self._tasks:
            raise GymError(f"{self.name}: no task {name!r}")
        return self._tasks[name]

    def make(self, task: str) -> FunctionWorld:
        """A world of a task, with strict integers."""
        return FunctionWorld(self.task(task), self.max_turns, parity=False)


def _rule(drawn: random.Random, signs: str) -> str:
    names = drawn.sample(NAMES, len(NAMES))
    return names[0] + "".join(f" {drawn.choice(signs)} {name}" for name in names[1:])


def _draw(
    drawn: random.Random,
    rules: Sequence[str],
    largest: int,
    seen: set[tuple[str, tuple[int, ...]]],
    name: str,
) -> FunctionTask | None:
    """A task that was not seen before; None where a thousand draws find none."""
    for _ in range(1000):
        rule = drawn.choice(rules)
        test_case = tuple(drawn.randint(1, largest) for _ in NAMES)
        if (rule, test_case) not in seen:
            seen.add((rule, test_case))
            expression = parse(rule, NAMES)
            value = value_of(expression, test_case)
            assert value is not None, "no rule divides by anything but a number of at least 1"
            return FunctionTask(name, rule, expression, test_case, value)
    return None
