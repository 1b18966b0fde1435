"""Worlds that behave badly, and a gym of them."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from proactor.environments.errors import GymError
from proactor.environments.protocol import Call, Opening, Outcome

RELEASE = threading.Event()
"""Set at the end of a test, so that its hanging threads go away."""


class Counting:
    """Counts its calls and ends at ``stop``; ``bad`` is what it does at its second call."""

    user_verbs = frozenset({"answer"})

    def __init__(self, bad: str = "", stop: int = 3) -> None:
        self.bad, self.stop, self.count, self.seed = bad, stop, 0, 0

    def reset(self, seed: int) -> Opening:
        self.count, self.seed = 0, seed
        if self.bad == "reset":
            raise RuntimeError("no reset")
        return Opening([{"role": "user", "content": "count"}])

    def step(self, call: Call) -> Outcome:
        self.count += 1
        if self.count == 2 and self.bad:
            return self.misbehave()
        return Outcome(f"{call.verb} {self.count}", self.count / 10, self.count >= self.stop)

    def misbehave(self) -> Any:
        match self.bad:
            case "raises":
                raise KeyError("lost\nand more")
            case "exits":
                sys.exit(3)
            case "hangs":
                RELEASE.wait(120)
            case "nan":
                return Outcome("", float("nan"))
            case "scored":
                return Outcome("", info={"score": 0.7, "solved": True})
            case "huge":
                return Outcome("", 10**400)
            case "score":
                return Outcome("", info={"score": "good"})
            case "info":
                return Outcome("", info=None)  # type: ignore[arg-type]
            case "text":
                return "done"
            case "observation":
                return Outcome(b"", 0.0)  # type: ignore[arg-type]
            case "drifts":
                return Outcome(f"{random.random()}")
        return Outcome("late")


class Drawing:
    """Seeds and draws from the global generators, as some of UserRL's environments do."""

    user_verbs = frozenset({"action"})

    def __init__(self) -> None:
        random.seed(42)
        np.random.seed(42)  # noqa: NPY002

    def reset(self, seed: int) -> Opening:
        random.seed(seed)
        return Opening([])

    def step(self, call: Call) -> Outcome:
        return Outcome(f"{random.random()} {np.random.random()}")  # noqa: NPY002


class Gym:
    """Tasks are named for what their worlds do; ``train`` names those to train on, ``test`` the others."""

    name = "bad"
    max_turns = 5

    def __init__(self, train: Sequence[str] = ("fine",), test: Sequence[str] = ("fine",)) -> None:
        self._train, self._test = train, test

    def tasks(self, split: str) -> Sequence[str]:
        return self._train if split == "train" else self._test

    def make(self, task: str) -> Any:
        if task == "absent":
            raise GymError("no task 'absent'")
        if task == "drawing":
            return Drawing()
        task = task.rstrip("0123456789")  # a run may want several fine ones
        return Counting(stop=99) if task == "long" else Counting("" if task == "fine" else task)
