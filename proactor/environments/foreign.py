"""Environments of other forms as ours: gymnasium's and UserRL's as they are, or any class with reset and
step.

* ``reset()`` or ``reset(seed=...)`` returns an observation, or an observation and a dict.
* ``step(text)`` or a coroutine ``step_async(text)``, where the text is ``[verb] content``, returns
  (observation, reward, terminated, truncated, info), as in gymnasium, or (observation, reward, done), with or
  without info.
* An observation is a text, or a dict whose ``feedback`` is what the agent sees.

The object is built directly, one for each rollout: UserRL's classes lack ``options`` in reset, so gymnasium's
wrappers around ``gym.make`` fail.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import numpy as np

from proactor.environments.calls import INTERACT, VERBS, to_text
from proactor.environments.errors import GymError
from proactor.environments.protocol import Call, Opening, Outcome

Prompt = Callable[[str], Sequence[Mapping[str, Any]]]
"""The messages before the first turn, from what reset tells the agent."""
Score = Callable[[Sequence[tuple[Call, float]]], float]
"""What an episode has reached, from its calls and their rewards until now."""


def total(steps: Sequence[tuple[Call, float]]) -> float:
    """The sum of the rewards: of environments that pay each step forward once."""
    return sum(reward for _, reward in steps)


class ForeignEnvironment:
    """One object of another form, as an `Environment`.

    ``user_verbs``: which verbs need the user, which the object cannot tell. ``score``: what an episode has
    reached, where that is not the largest reward. Numbers, texts and flags of an info are kept, the histories
    that some environments put there are not.
    """

    def __init__(
        self,
        world: Any,
        user_verbs: Collection[str] = VERBS,
        prompt: Prompt | None = None,
        sync: bool = False,
        score: Score | None = None,
    ) -> None:
        self.world, self.user_verbs = world, frozenset(user_verbs)
        self._prompt, self._score = prompt, score
        self._steps: list[tuple[Call, float]] = []
        self._coroutine = not sync and inspect.iscoroutinefunction(getattr(world, "step_async", None))

    def reset(self, seed: int) -> Opening:
        """Reset the object, with the seed where it takes one."""
        self._steps = []
        takes_seed = "seed" in inspect.signature(self.world.reset).parameters
        first = self.world.reset(seed=seed) if takes_seed else self.world.reset()
        if isinstance(first, Opening):
            return first
        observation, _ = first if isinstance(first, tuple) and len(first) == 2 else (first, {})
        told = feedback_of(observation)
        messages = self._prompt(told) if self._prompt else [{"role": "user", "content": told}]
        return Opening(tuple(messages), (INTERACT,))

    def step(self, call: Call) -> Outcome:
        """Let the object answer the call's text. Raises GymError for an answer that cannot be read."""
        text = to_text(call)
        answer = asyncio.run(self.world.step_async(text)) if self._coroutine else self.world.step(text)
        outcome = answer if isinstance(answer, Outcome) else outcome_of(answer)
        if self._score is None:
            return outcome
        self._steps.append((call, outcome.reward))
        return replace(outcome, info={**outcome.info, "score": self._score(self._steps)})


def outcome_of(answer: object) -> Outcome:
    """The outcome that a step's tuple means. Raises GymError for anything else."""
    match answer:
        case (observation, reward, terminated, truncated, dict() as info):
            pass
        case (observation, reward, terminated, dict() as info):
            truncated = False
        case (observation, reward, terminated):
            truncated, info = False, {}
        case _:
            shape = f"{len(answer)} values" if isinstance(answer, tuple) else type(answer).__name__
            raise GymError(f"step returned {shape}, not (observation, reward, terminated, truncated, info)")
    for flag in (terminated, truncated):
        if not isinstance(flag, bool | np.bool_):
            raise GymError(f"step returned {flag!r} where a bool tells whether the episode is over")
    try:
        number = float(cast(Any, reward))
    except (TypeError, ValueError):
        raise GymError(f"the reward is {reward!r}, no number") from None
    kept = {key: value for key, value in info.items() if isinstance(value, str | bool | int | float)}
    return Outcome(feedback_of(observation), number, bool(terminated), bool(truncated), kept)


def feedback_of(observation: object) -> str:
    """What the agent sees of an observation. Raises GymError where there is nothing to see."""
    told = observation.get("feedback") if isinstance(observation, Mapping) else observation
    if not isinstance(told, str):
        raise GymError(f"the observation ({type(observation).__name__}) has no text and no feedback")
    return told


class ForeignGym:
    """Tasks of which each is an object that ``build(task)`` makes, with `ForeignEnvironment`'s options."""

    def __init__(
        self,
        name: str,
        build: Callable[[str], Any],
        tasks: Sequence[str],
        max_turns: int = 16,
        user_verbs: Collection[str] = VERBS,
        prompt: Prompt | None = None,
        sync: bool = False,
        score: Score | None = None,
    ) -> None:
        self.name, self.max_turns = name, max_turns
        self._build, self._tasks = build, list(tasks)
        self._options: dict[str, Any] = {
            "user_verbs": user_verbs,
            "prompt": prompt,
            "sync": sync,
            "score": score,
        }

    def tasks(self, split: str) -> Sequence[str]:
        """All of them, whatever the split: who names the tasks has chosen it."""
        return self._tasks

    def make(self, task: str) -> ForeignEnvironment:
        """A new object of a task."""
        return ForeignEnvironment(self._build(task), **self._options)
