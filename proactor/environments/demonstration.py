"""`Demonstration`: a teacher's episode as the agent would have said it, in messages and in tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from proactor.environments.calls import INTERACT
from proactor.environments.episode import Episode
from proactor.environments.protocol import Message, Opening
from proactor.environments.scripted import Played
from proactor.environments.wording import Wording

if TYPE_CHECKING:
    from proactor.engine import Sample, ToolChat  # import torch

TOOL = INTERACT["function"]["name"]


@dataclass(frozen=True)
class Demonstration:
    """``opening``: as the environment says it; ``said``: what comes before the call of each turn."""

    played: Played
    opening: Opening
    said: tuple[str, ...]
    wording: Wording

    @property
    def task(self) -> str:
        """The task's name."""
        return self.played.episode.task

    def saying(self, said: Mapping[int, str]) -> Demonstration:
        """With other words before the calls of these turns (from 1); the calls are the teacher's."""
        return replace(self, said=tuple(said.get(n, text) for n, text in enumerate(self.said, start=1)))

    def reply(self, number: int) -> dict[str, Any]:
        """The message of turn ``number`` (from 1)."""
        call = self.played.moves[number - 1].call
        function = {
            "name": TOOL,
            "arguments": json.dumps({"choice": call.verb, "content": call.content}),
        }
        return {
            "role": "assistant",
            "content": self.said[number - 1],
            "tool_calls": [{"id": "call_0", "type": "function", "function": function}],
        }

    def results(self, number: int) -> list[Message]:
        """The messages that answer turn ``number`` (from 1)."""
        return self.wording.results(number, [TOOL], [self.played.episode.turns[number - 1].feedback])

    def episode(self, chat: ToolChat) -> Episode:
        """With tokens, trained on the teacher's turns. Raises ChatError for what the template refuses."""
        opening, count = self.wording.opening(self.opening), len(self.said)
        messages: list[Message] = list(opening.messages)
        for number in range(1, count + 1):
            messages.append(self.reply(number))
            messages += self.results(number) if number < count else []
        sample = chat.sample(messages, opening.tools)
        spans = sample.turns()
        ends = [*(start for start, _ in spans[1:]), spans[-1][1]]
        turns = [
            replace(turn, action=span, observation=(span[1], end))
            for turn, span, end in zip(self.played.episode.turns, spans, ends, strict=True)
        ]
        return replace(self.played.episode, sample=sample, turns=turns)

    def samples(self, chat: ToolChat) -> list[Sample]:
        """What is learned from it."""
        return [self.episode(chat).sample]

    def refused_by(self, replayed: Episode) -> bool:
        """Whether the environment answered the teacher's turns otherwise when they were played again."""
        recorded = [turn.feedback for turn in self.played.episode.turns]
        seen = [turn.feedback for turn in replayed.turns]
        if len(seen) != len(recorded):
            return True
        return not all(map(str.startswith, seen, recorded))  # a line with the reward may follow


def turn_ids(episode: Episode) -> list[list[int]]:
    """The ids of each turn of an episode."""
    return [episode.sample.token_ids[slice(*turn.action)] for turn in episode.turns]


def leads(turns: Sequence[Sequence[int]], number: int, said: Sequence[int]) -> list[list[int]]:
    """The ids of the turns before turn ``number`` (from 1), and then ``said``."""
    return [*map(list, turns[: number - 1]), list(said)]
