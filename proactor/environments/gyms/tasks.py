"""The tasks of a gym, and which of them UserRL tests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Generic, Literal, TypeVar

from proactor.environments.errors import GymError
from proactor.files import read_json

Task = TypeVar("Task")

Held = Literal["official", "none"]
"""Which tasks are kept out of training: UserRL's official tests, or none."""

TEST_IDS = Path(__file__).with_name("userrl_test_ids.json")


@cache
def official_tests(gym: str) -> frozenset[str]:
    """The ids of UserRL's official tests of a gym.

    ``userrl_test_ids.json`` lists them. They follow from UserRL's scripts (``examples/data_preprocess``):
    items shuffled by numpy's legacy generator with seed 42; Function from the 461st of 538 on, Telepathy and
    Turtle the last tenth, Intention the file of 95 (40 of which are used), Tau the test tasks of tau-bench.
    """
    return frozenset(read_json(TEST_IDS)[gym])


class Tasks(Generic[Task]):
    """Named tasks in the order of their file. ``split``: "official" keeps UserRL's tests out of training."""

    def __init__(self, gym: str, tasks: Mapping[str, Task], split: Held, tests: frozenset[str]) -> None:
        if split not in ("official", "none"):
            raise GymError(f"{gym}: split={split!r}: must be official or none")
        self.gym, self._tasks, self._tests = gym, dict(tasks), tests
        self._held = tests if split == "official" else frozenset()

    def names(self, split: str) -> Sequence[str]:
        """``train``: without what is held out; ``test``: UserRL's tests; ``all``. Raises GymError for another
        one, or where there are no tasks of it.
        """
        chosen = {
            "train": [name for name in self._tasks if name not in self._held],
            "test": [name for name in self._tasks if name in self._tests],
            "all": list(self._tasks),
        }.get(split)
        if chosen is None:
            raise GymError(f"{self.gym}: no split {split!r}: there are train, test and all")
        if not chosen:
            raise GymError(f"{self.gym}: the data holds no tasks of the split {split!r}")
        return chosen

    def __getitem__(self, name: str) -> Task:
        if name not in self._tasks:
            raise GymError(f"{self.gym}: no task {name!r}")
        return self._tasks[name]


def by_id(gym: str, file: Path, records: Sequence[tuple[str, Task]]) -> dict[str, Task]:
    """Records by their ids. Raises GymError for an id that occurs twice, or for none at all."""
    tasks: dict[str, Task] = {}
    for name, record in records:
        if name in tasks:
            raise GymError(f"{file}: {gym} task {name!r} occurs twice")
        tasks[name] = record
    if not tasks:
        raise GymError(f"{file}: no {gym} tasks")
    return tasks
