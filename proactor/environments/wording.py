"""How an episode is put to the agent, and how a teacher's move is written as the agent would write it.

Methods with a format of their own (`proactor.methods.agent_omit`) override parts of `Wording`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from proactor.environments.protocol import Message, Opening
from proactor.environments.scripted import Move

SECTIONS = ("memory", "hypotheses", "plan", "query")
"""What a teacher writes before its call, as ``<memory>…</memory>``: our names of BAO's four behaviours."""

_TAGS = re.compile("</?(?:think|tool_call)>")


class Wording:
    """The environment's words as they are; a teacher thinks in `SECTIONS`.

    ``sections``: tags that a demonstration is expected to hold in most of its turns.
    """

    sections: tuple[str, ...] = SECTIONS

    def opening(self, opening: Opening) -> Opening:
        """What the agent sees before its first turn."""
        return opening

    def results(self, number: int, names: Sequence[str], observations: Sequence[str]) -> list[Message]:
        """The messages that answer turn ``number`` (from 1): one for each call that ran, with its name."""
        return [
            {"role": "tool", "tool_call_id": f"call_{i}", "name": name, "content": self.result(number, text)}
            for i, (name, text) in enumerate(zip(names, observations, strict=False))
        ]

    def result(self, number: int, observation: str) -> str:
        """The content of one of these messages."""
        return observation

    def thought(self, move: Move) -> str:
        """What a teacher says before its call."""
        said = (move.memory, move.hypotheses, move.plan, f"{move.call.verb} {move.call.content}")
        return "\n".join(f"<{name}>{text}</{name}>" for name, text in zip(SECTIONS, said, strict=True))


class Thinking(Wording):
    """A teacher's thought stands in think tags."""

    sections = ()

    def thought(self, move: Move) -> str:
        """See `Wording`."""
        return thinking(move.thought)


def thinking(text: str) -> str:
    """A thought as it stands before a call, without tags of its own; an empty one is an omitted one."""
    return f"<think>{_TAGS.sub('', text)}</think>"
