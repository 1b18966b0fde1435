"""What an environment is: a world that answers an agent's calls, turn by turn.

Any object with `reset` and `step` (or a coroutine `step_async`) of these forms is one; no base class is
needed. Names follow gymnasium where they can: an episode that *terminated* reached its end, one that was
*truncated* was cut by the environment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

Message = Mapping[str, Any]
"""A chat message in OpenAI's form: ``role``, ``content``, where needed ``tool_calls`` or ``tool_call_id``."""
ToolDefinition = Mapping[str, Any]
"""A tool in OpenAI's form: ``type`` and ``function`` with ``name``, ``description``, ``parameters``."""


@dataclass(frozen=True, slots=True)
class Call:
    """What the agent does in a turn: a verb (``action``, ``search``, ``answer``, or a tool's name) with its
    content; ``arguments``: what a tool call held, by name.
    """

    verb: str
    content: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opening:
    """What the agent sees before its first turn."""

    messages: Sequence[Message]
    tools: Sequence[ToolDefinition] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an environment answers to a call.

    ``info`` is its own and reaches the episode's record. A number under ``score`` is what the episode has
    reached until now, where that is not the largest reward of a turn; a bool under ``solved`` is whether that
    solves the task, where it is not a score that says so.
    """

    observation: str
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ended(self) -> bool:
        """Whether the episode is over."""
        return self.terminated or self.truncated


class Environment(Protocol):
    """One episode's world. An object serves one rollout at a time."""

    user_verbs: frozenset[str]
    """Verbs that need the user; the others are answered by the world alone."""

    def reset(self, seed: int) -> Opening:
        """Begin. Equal seeds give equal episodes for equal calls, as far as no model answers in it."""
        ...

    def step(self, call: Call) -> Outcome:
        """Answer one call. One that makes no sense is answered by an observation that says so."""
        ...


class Gym(Protocol):
    """Tasks of one kind."""

    name: str
    max_turns: int

    def tasks(self, split: str) -> Sequence[str]:
        """Names of the tasks of a split. Raises ProactorError for a split that there is not."""
        ...

    def make(self, task: str) -> Environment:
        """A new environment of a task. Raises ProactorError for a task that there is not."""
        ...
