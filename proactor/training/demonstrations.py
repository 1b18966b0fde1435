"""Examples for pre-training and stage A: a teacher's episodes of a gym, token by token as the agent would
play them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from proactor.config import ConfigError
from proactor.engine import Group, Sample, ToolChat
from proactor.environments.calls import INTERACT
from proactor.environments.episode import Episode
from proactor.environments.gyms.players import players
from proactor.environments.protocol import Gym
from proactor.environments.scripted import Move, play
from proactor.episode_config import Teacher
from proactor.methods.bao import SECTIONS, DemonstrationFilter, kept_demonstrations

TOOL = INTERACT["function"]["name"]


@dataclass(slots=True)
class Demonstrations:
    """The teacher's episodes, each made when it is first asked for.

    ``thoughts``: whether a call follows the four sections of `bao.SECTIONS`.
    """

    gym: Gym
    chat: ToolChat
    thoughts: bool
    teacher: Teacher = "expert"
    _made: dict[str, Sample | str] = field(default_factory=dict)

    @classmethod
    def of(cls, gym: Gym, chat: ToolChat, thoughts: bool, teacher: Teacher = "expert") -> Demonstrations:
        """Those of a gym. Raises as `check`."""
        return cls(cls.check(gym), chat, thoughts, teacher)

    @staticmethod
    def check(gym: Gym) -> Gym:
        """Raise ConfigError for a gym that has no expert."""
        if not players(gym):
            raise ConfigError(
                f"environment.gym: {gym.name} has no symbolic expert; leave sft and pretrain out"
            )
        return gym

    def groups(self, tasks: Sequence[str]) -> tuple[list[Group], Counter[str]]:
        """A group of one for each task's episode; ``demonstrations`` that were kept, and those left out by
        reason: ``left_out_failed``, ``_sections``, ``_repeated`` (`bao.fault`).
        """
        counts, groups = Counter[str](), []
        for task in tasks:
            made = self.sample(task)
            if isinstance(made, Sample):
                groups.append(Group(made.prompt_ids, [made]))
                counts["demonstrations"] += 1
            else:
                counts[f"left_out_{made}"] += 1
        return groups, counts

    def sample(self, task: str) -> Sample | str:
        """The task's episode, trained on the teacher's turns, or why it is left out."""
        if task not in self._made:
            episode, replies = self._played(task)
            wanted = DemonstrationFilter(sections=SECTIONS if self.thoughts else ())
            kept, reasons = kept_demonstrations([(episode, replies)], wanted)
            self._made[task] = kept[0].sample if kept else next(iter(reasons))
        return self._made[task]

    def _played(self, task: str) -> tuple[Episode, list[str]]:
        played = play(self.gym, task, players(self.gym)[self.teacher](task))
        opening = self.gym.make(task).reset(0)
        messages: list[dict[str, Any]] = [dict(message) for message in opening.messages]
        replies = [_reply(move, self.thoughts) for move in played.moves]
        for number, (turn, reply) in enumerate(zip(played.episode.turns, replies, strict=True), 1):
            messages.append(reply)
            if number < len(replies):
                messages.append(_result(turn.feedback))
        sample = self.chat.sample(messages, opening.tools)
        spans = sample.turns()
        ends = [*(start for start, _ in spans[1:]), spans[-1][1]]
        turns = [
            replace(turn, action=span, observation=(span[1], end))
            for turn, span, end in zip(played.episode.turns, spans, ends, strict=True)
        ]
        return replace(played.episode, sample=sample, turns=turns), [reply["content"] for reply in replies]


def _reply(move: Move, thoughts: bool) -> dict[str, Any]:
    call = {"choice": move.call.verb, "content": move.call.content}
    said = (move.memory, move.hypotheses, move.plan, f"{move.call.verb} {move.call.content}")
    sections = (f"<{name}>{text}</{name}>" for name, text in zip(SECTIONS, said, strict=True))
    return {
        "role": "assistant",
        "content": "\n".join(sections) if thoughts else "",
        "tool_calls": [
            {"id": "call_0", "type": "function", "function": {"name": TOOL, "arguments": json.dumps(call)}}
        ],
    }


def _result(observation: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_0", "name": TOOL, "content": observation}
