"""Conversations of an agent at work (`dialogue.agent_log`), read as transcripts with their actions.

An action that was fired, or confirmed after it was asked about, is a reference; its trigger is the last user
turn that had been said. One that was rejected, and one whose run failed, is none: rejected ones are counted
(`fires_rejected`), failed ones too (`fires_failed`). A conversation that was closed and opened again under
its id goes on as ``id#2``, and so does one in the log of an agent that was started anew, or of another one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proactor.dialogue.agent_log import (
    Act,
    Answered,
    Closed,
    Decided,
    Event,
    Opened,
    Said,
    Started,
    is_log,
    read_events,
)
from proactor.engine import open_regular
from proactor.files import SourceError
from proactor.sources.base import Record


@dataclass(slots=True)
class LoggedConversation:
    """What a log says of one conversation. ``events``: all of them, with their lines."""

    id: str
    line: int
    tools: tuple[str, ...] = ()
    events: list[tuple[int, Event]] = field(default_factory=list)

    def of(self, kind: type[Any]) -> Iterator[Any]:
        """Its events of one kind."""
        return (event for _, event in self.events if isinstance(event, kind))


@dataclass(slots=True)
class AgentLog:
    """``started``: each agent that wrote to the log."""

    started: list[Started]
    conversations: list[LoggedConversation]


def is_agent_log(file: Path) -> bool:
    """Whether a file is read by `records`."""
    if file.suffix == ".gz" or not file.is_file():
        return False
    with open_regular(file) as stream:
        return is_log(stream.readline(4096))


def read_log(file: Path) -> AgentLog:
    """The conversations of a log, in the order in which they begin. Raises SourceError naming the line."""
    log = AgentLog([], [])
    open_now: dict[tuple[str, str], LoggedConversation] = {}  # by agent and id
    times: Counter[str] = Counter()
    for number, event in read_events(file):
        if isinstance(event, Started):
            log.started.append(event)
            open_now = {key: of for key, of in open_now.items() if key[0] != event.agent}
            continue
        name = event.conversation
        key = event.agent, name
        if isinstance(event, Opened) or key not in open_now:
            times[name] += 1
            again = f"{name}#{times[name]}" if times[name] > 1 else name
            tools = event.tools if isinstance(event, Opened) else ()
            open_now[key] = LoggedConversation(again, number, tools)
            log.conversations.append(open_now[key])
        open_now[key].events.append((number, event))
        if isinstance(event, Closed):
            del open_now[key]
    return log


def records(file: Path, counters: Counter[str]) -> Iterator[Record]:
    """The conversations with a turn as transcripts. Raises SourceError naming the faulty line."""
    for conversation in read_log(file).conversations:
        turns = [{"speaker": said.speaker, "text": said.text} for said in conversation.of(Said)]
        if turns:
            value: dict[str, Any] = {
                "turns": turns,
                "references": _references(file, conversation, counters),
                "source": "agent",
            }
            if conversation.tools:
                value["tools"] = list(conversation.tools)
            yield Record(f"{file}:{conversation.line}", conversation.id, value)
        else:
            counters["empty_conversations"] += 1


def _references(file: Path, of: LoggedConversation, counters: Counter[str]) -> list[dict[str, Any]]:
    acts: dict[str, Act] = {}
    fired: dict[str, int] = {}
    heard = 0
    for number, event in of.events:
        if isinstance(event, Said) and event.speaker == "user":
            heard = event.turn
        elif isinstance(event, Decided):
            acts |= {act.id: act for act in event.decision.actions}
            fired |= {act.id: event.decision.turn for act in event.decision.fires}
        elif isinstance(event, Answered):
            if event.act not in acts:
                raise SourceError(f"{file}:{number}: no action {event.act!r} in {of.id!r}")
            if event.event == "confirm":
                fired[event.act] = heard
            elif event.event == "reject":
                counters["fires_rejected"] += fired.pop(event.act, None) is not None
            elif not event.ok:
                counters["fires_failed"] += fired.pop(event.act, None) is not None
    return [
        {"id": f"a{act}", "name": acts[act].name, "params": acts[act].params, "observed_trigger": turn}
        for act, turn in fired.items()
    ]
