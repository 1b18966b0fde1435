"""Stage A's examples: the episodes of FunctionGym's symbolic expert, token by token as the agent would play
them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from proactor.config import ConfigError
from proactor.engine import Group, Sample, ToolChat
from proactor.environments.calls import INTERACT
from proactor.environments.episode import Ending, Episode, Turn
from proactor.environments.gyms.function import FunctionGym
from proactor.environments.gyms.function_expert import FunctionExpert, Move
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.environments.protocol import Gym, Outcome
from proactor.methods.bao import SECTIONS, DemonstrationFilter, kept_demonstrations

TOOL = INTERACT["function"]["name"]


@dataclass(slots=True)
class Demonstrations:
    """The expert's episodes, each made when it is first asked for.

    ``thoughts``: whether a call follows the four sections of `bao.SECTIONS`.
    """

    gym: FunctionGym | FunctionFamily
    chat: ToolChat
    thoughts: bool
    _made: dict[str, Sample | str] = field(default_factory=dict)

    @classmethod
    def of(cls, gym: Gym, chat: ToolChat, thoughts: bool) -> Demonstrations:
        """Those of a gym. Raises as `check`."""
        return cls(cls.check(gym), chat, thoughts)

    @staticmethod
    def check(gym: Gym) -> FunctionGym | FunctionFamily:
        """Raise ConfigError for a gym that has no expert."""
        if not isinstance(gym, FunctionGym | FunctionFamily):
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
        """The task's episode, trained on the expert's turns, or why it is left out."""
        if task not in self._made:
            episode, replies = self._played(task)
            wanted = DemonstrationFilter(sections=SECTIONS if self.thoughts else ())
            kept, reasons = kept_demonstrations([(episode, replies)], wanted)
            self._made[task] = kept[0].sample if kept else next(iter(reasons))
        return self._made[task]

    def _played(self, task: str) -> tuple[Episode, list[str]]:
        world, expert = self.gym.make(task), FunctionExpert()
        opening = world.reset(0)
        messages: list[dict[str, Any]] = [dict(message) for message in opening.messages]
        moves: list[Move] = []
        outcomes: list[Outcome] = []
        while not world.over and (move := expert.move()) is not None:
            outcome = world.step(move.call)
            expert.see(move.call, outcome.observation)
            if moves:
                messages.append(_result(outcomes[-1].observation))
            moves.append(move)
            outcomes.append(outcome)
            messages.append(_reply(move, self.thoughts))
        sample = self.chat.sample(messages, opening.tools)
        spans = sample.turns()
        ends = [*(start for start, _ in spans[1:]), spans[-1][1]]
        turns = [
            Turn(
                (move.call,),
                span,
                (span[1], end),
                outcome.observation,
                outcome.reward,
                move.call.verb in world.user_verbs,
            )
            for move, outcome, span, end in zip(moves, outcomes, spans, ends, strict=True)
        ]
        ending: Ending = "terminated" if outcomes[-1].terminated else "turns"
        episode = Episode(self.gym.name, task, 0, sample, turns, ending, self.gym.max_turns)
        return episode, [message["content"] for message in messages if message["role"] == "assistant"]


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
