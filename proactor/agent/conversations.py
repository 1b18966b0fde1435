"""`Conversations`: those that are open, what is heard in them, and what could not be used."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Any

from proactor.agent.conversation import Conversation, Fate
from proactor.agent.errors import AgentError
from proactor.agent.log import DecisionLog
from proactor.agent.said import SaidTurn, read_said
from proactor.dialogue import Turn
from proactor.dialogue.agent_log import Act, Closed, LeftOut, Opened, Refused, Said
from proactor.dialogue.catalog import Catalog
from proactor.files import valid_utf8


@dataclass
class Conversations:
    """Of one agent, which holds its lock while it changes them. ``clock``: seconds."""

    catalog: Catalog
    log: DecisionLog
    counters: Counter[str]
    clock: Callable[[], float] = time.monotonic
    _open: dict[str, Conversation] = field(default_factory=dict)
    """By id, the one that was used last at the end."""

    def __len__(self) -> int:
        return len(self._open)

    def __contains__(self, conversation_id: str) -> bool:
        return conversation_id in self._open

    def __getitem__(self, conversation_id: str) -> Conversation:
        return self._open[conversation_id]

    def open(self, conversation_id: str, tools: tuple[str, ...]) -> Conversation:
        """A new one. Raises AgentError for a tool that the run does not have, for one that is open, and for
        an id that is no text, or none in UTF-8.
        """
        if not isinstance(conversation_id, str) or not conversation_id:
            raise AgentError(f"a conversation's id is text, not {conversation_id!r}")
        if valid_utf8(conversation_id) != conversation_id:
            raise self.refuse(conversation_id, "its id is no UTF-8: it holds half of a character", None)
        if conversation_id in self._open:
            raise self.refuse(conversation_id, "is open already", list(tools))
        if unknown := [name for name in tools if name not in self.catalog]:
            known = ", ".join(self.catalog.names)
            why = f"offers {unknown[0]!r}, which is none of the run's tools ({known})"
            raise self.refuse(conversation_id, why, list(tools))
        self.log.write(Opened(conversation=conversation_id, tools=tools))
        self.counters["conversations"] += 1
        return self._use(Conversation(conversation_id, tools))

    def hear(
        self,
        conversation_id: str,
        turn: Mapping[str, Any] | Turn | str,
        tools: tuple[str, ...],
        number: int | None,
    ) -> tuple[Conversation, Turn | None, bool]:
        """(the conversation, opened if need be; the turn, None for what is none; whether it was heard
        before). Arguments and errors as `Agent.observe`.
        """
        try:
            said = read_said(turn)
        except AgentError as error:
            raise self.refuse(conversation_id, str(error), turn) from None
        conversation = self._open.get(conversation_id)
        earlier = None
        if said.speaker is not None and number is not None:
            earlier = self._earlier(conversation_id, said, number)
        if conversation is None:
            conversation = self.open(conversation_id, tools)
        elif tools and tools != conversation.tools:
            raise self.refuse(conversation_id, "is open already, with other tools", list(tools))
        self._use(conversation)
        if earlier is not None:
            return conversation, earlier, True
        if said.speaker is None:
            self.log.write(LeftOut(conversation=conversation_id, speaker=said.name, text=said.text))
            self.counters["left_out"] += 1
            return conversation, None, False
        upto = len(conversation.turns) + 1
        self.log.write(Said(conversation=conversation_id, turn=upto, speaker=said.speaker, text=said.text))
        self.counters["turns"] += 1
        return conversation, conversation.say(said.speaker, said.text), False

    def _earlier(self, conversation_id: str, said: SaidTurn, number: int) -> Turn | None:
        """The turn ``number``, if it was heard; None for the next one."""
        conversation = self._open.get(conversation_id)
        turns = [] if conversation is None else conversation.turns
        given = {"turn": number, "speaker": said.speaker, "text": said.text}
        if not 1 <= number <= len(turns) + 1:
            raise self.refuse(conversation_id, f"turn {number}: the next one is {len(turns) + 1}", given)
        if number > len(turns):
            return None
        earlier = turns[number - 1]
        if (earlier.speaker, earlier.text) != (said.speaker, said.text):
            raise self.refuse(conversation_id, f"turn {number} was heard with another text", given)
        return earlier

    def find(self, conversation_id: str, call: str) -> Conversation:
        """An open one. Raises AgentError, naming the ``call``."""
        if (found := self._open.get(conversation_id)) is None:
            raise self.refuse(conversation_id, f"{call}: is not open", {"call": call})
        return self._use(found)

    def find_act(
        self,
        conversation_id: str,
        act: str | None,
        call: str,
        fates: tuple[Fate, ...],
        content: Any = None,
    ) -> tuple[Conversation, Act]:
        """As `Conversation.find`, in an open one."""
        conversation = self.find(conversation_id, call)
        try:
            return conversation, conversation.find(act, call, fates)
        except AgentError as error:
            given = {"call": call, "act": act, "content": content}
            raise self.note(conversation_id, error, given) from None

    def check_open(self, conversation: Conversation, upto: int) -> None:
        """Raise AgentError where the turn ``upto`` is to be decided in one that was closed meanwhile."""
        if self._open.get(conversation.id) is not conversation:
            why = f"was closed before turn {upto} was decided"
            raise self.refuse(conversation.id, why, {"turn": upto})

    def close(self, conversation: Conversation, *, idle: bool = False) -> None:
        """Let go of one."""
        self.log.write(Closed(conversation=conversation.id, idle=idle))
        del self._open[conversation.id]

    def idle(self, seconds: float) -> list[Conversation]:
        """Those that were last used longer ago, and have no decision under way."""
        since = self.clock() - seconds
        old = takewhile(lambda conversation: conversation.used < since, self._open.values())
        return [conversation for conversation in old if not conversation.deciding]

    def refuse(self, conversation_id: str, why: str, given: Any) -> AgentError:
        """The error for what cannot be used; it is counted and logged."""
        return self.note(conversation_id, AgentError(f"conversation {conversation_id!r}: {why}"), given)

    def note(self, conversation_id: str, error: AgentError, given: Any) -> AgentError:
        """Count and log an error."""
        self.counters["refused"] += 1
        name = valid_utf8(str(conversation_id))
        self.log.write(Refused(conversation=name, error=str(error), given=given))
        return error

    def _use(self, conversation: Conversation) -> Conversation:
        conversation.used = self.clock()
        self._open.pop(conversation.id, None)
        self._open[conversation.id] = conversation
        return conversation
