"""The format of Agent-Omit: thoughts and results that an agent leaves out, and the history it reads then.

A turn thinks in ``<think>…</think>``; empty tags omit the thought. What turn N brought stands in
``<tool_response_N>`` tags; ``<omit_tool_response_N></omit_tool_response_N>`` in a later turn replaces it by
``<omitted_tool_response_N></omitted_tool_response_N>`` in all that the agent reads afterwards. So the history
is edited, and each turn is trained after exactly the ids that it was drawn after (`Episode.pieces`).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from proactor.engine import Sample
from proactor.environments.episode import Episode, Turn
from proactor.environments.player import Played, Player
from proactor.environments.protocol import Message, Opening
from proactor.environments.wording import Thinking

if TYPE_CHECKING:
    from proactor.engine import ToolChat  # imports torch

INSTRUCTION = (
    "Think in <think></think> before you call; leave the tags empty where there is nothing to think about. "
    "Results stand in <tool_response_N></tool_response_N>. One that you need no more you take out of the "
    "history, before a call, by <omit_tool_response_N></omit_tool_response_N> with its number."
)
OMISSION = re.compile(r"<omit_tool_response_(\d{1,6})>")
"""The number comes from the opening tag, as in the authors' code."""
THOUGHT_END = "</think>"
_EMPTY = re.compile(r"\s*<think>\s*</think>")


class OmitWording(Thinking):
    """Results with their numbers, and the instruction in the system message."""

    def __init__(self, instruct: bool = True) -> None:
        self.instruct = instruct

    def opening(self, opening: Opening) -> Opening:
        """See `Wording`."""
        if not self.instruct:
            return opening
        first, *later = opening.messages
        if first.get("role") == "system":
            told: list[Message] = [{**first, "content": f"{first['content']}\n{INSTRUCTION}"}, *later]
        else:
            told = [{"role": "system", "content": INSTRUCTION}, first, *later]
        return replace(opening, messages=told)

    def result(self, number: int, observation: str) -> str:
        """See `Wording`."""
        return f"<tool_response_{number}>{observation}</tool_response_{number}>"


def marker(number: int) -> str:
    """What stands in place of an omitted result."""
    return f"<omitted_tool_response_{number}></omitted_tool_response_{number}>"


def omission(number: int) -> str:
    """What an agent writes to omit a result."""
    return f"<omit_tool_response_{number}></omit_tool_response_{number}>"


@dataclass(frozen=True, slots=True)
class OmitTurn(Turn):
    """A turn, with what it left out. ``context`` is always set.

    ``omits``: numbers of the results that it took out; ``unknown``, ``repeated``: numbers without effect.
    ``thought``: tokens of its thought, tags included; ``no_thought``: it omitted the thought. ``marker``: the
    observation's ids once it is omitted.
    """

    omits: tuple[int, ...] = ()
    unknown: int = 0
    repeated: int = 0
    thought: int = 0
    no_thought: bool = False
    marker: tuple[int, ...] = ()

    @property
    def omitting(self) -> bool:
        """Whether it left anything out."""
        return self.no_thought or bool(self.omits)


def read_omissions(text: str, before: Sequence[OmitTurn]) -> tuple[tuple[int, ...], int, int]:
    """(numbers taken out, unknown ones, repeated ones) of a turn's text after the turns ``before``."""
    gone = {number for turn in before for number in turn.omits}
    omits, unknown, repeated = list[int](), 0, 0
    for number in map(int, OMISSION.findall(text)):
        if not 1 <= number <= len(before):
            unknown += 1
        elif number in gone:
            repeated += 1
        else:
            gone.add(number)
            omits.append(number)
    return tuple(omits), unknown, repeated


def edited(prompt: Sequence[int], log: Sequence[int], turns: Sequence[OmitTurn]) -> list[int]:
    """The ids that are read after ``turns``: the log's (``log``: its ids after the prompt), with the marker
    in place of each omitted observation.
    """
    gone = {number for turn in turns for number in turn.omits}
    ids = list(prompt)
    for number, turn in enumerate(turns, start=1):
        ids += log[slice(*turn.action)]
        ids += turn.marker if number in gone else log[slice(*turn.observation)]
    return ids


class OmittingPlayer(Player):
    """Plays with an edited history; turns are `OmitTurn`."""

    def _reads(self, log: Sample, turns: Sequence[Turn], shown: Sequence[int]) -> list[int]:
        """See `Player`."""
        known = [turn for turn in turns if isinstance(turn, OmitTurn)]
        if known:
            after = known[-1].action[1]
            known[-1] = replace(known[-1], observation=(after, after + len(shown)))
        return edited(log.prompt_ids, [*log.token_ids, *shown], known)

    def _recorded(self, played: Played) -> Turn:
        """See `Player`."""
        return recorded(self.chat, played)


def recorded(chat: ToolChat, played: Played) -> OmitTurn:
    """The record of a turn, with what its text leaves out."""
    text = chat.template.chat.tokenizer.decode(played.ids)
    before = [turn for turn in played.before if isinstance(turn, OmitTurn)]
    omits, unknown, repeated = read_omissions(text, before)
    hidden = [{**message, "content": marker(len(before) + 1)} for message in played.messages]
    plain = {field.name: getattr(played.turn, field.name) for field in fields(played.turn)}
    empty = bool(_EMPTY.match(text))
    return OmitTurn(
        **plain | {"context": tuple(played.reads)},
        omits=omits,
        unknown=unknown,
        repeated=repeated,
        thought=0 if empty else _thought(chat, played.ids),
        no_thought=empty,
        marker=tuple(chat.observation(played.ids, hidden)) if hidden else (),
    )


def _thought(chat: ToolChat, ids: Sequence[int]) -> int:
    """How many tokens the thought at the beginning of a turn has; 0 without one."""
    decode = chat.template.chat.tokenizer.decode
    found = bisect_left(range(len(ids)), True, key=lambda n: THOUGHT_END in decode(ids[: n + 1]))
    return found + 1 if found < len(ids) else 0


def omit_turns(episode: Episode) -> list[OmitTurn]:
    """The episode's turns; those of another player omit nothing."""
    return [turn for turn in episode.turns if isinstance(turn, OmitTurn)]
