"""The page of an agent's log: its conversations, what it decided in them and how near it was to acting."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2

from proactor.dialogue.agent_log import (
    Act,
    Answered,
    Decided,
    Decision,
    Event,
    LeftOut,
    Near,
    Refused,
    Said,
    Started,
)
from proactor.report.comparison import Sides
from proactor.report.folders import write_page
from proactor.report.templating import environment, pack, script
from proactor.sources.agent_log import AgentLog, LoggedConversation, read_log

FIRST_PAGE = 10
"""Conversations in the HTML itself, for a page without scripts."""
LONGEST = 2000
"""Characters shown of a turn or a result."""


@dataclass(slots=True)
class Row:
    """A turn, or what was given and is none (``speaker`` "refused" or "left out"). ``after``: what became of
    actions, in words, in the order of the log.
    """

    index: int | None
    speaker: str
    text: str
    decision: Decision | None = None
    after: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class LoggedTalk:
    """A conversation, row by row."""

    id: str
    began: str
    rows: tuple[Row, ...]

    @property
    def decisions(self) -> list[Decision]:
        """Its decisions, in order."""
        return [row.decision for row in self.rows if row.decision is not None]

    @property
    def counts(self) -> dict[str, int]:
        """Fires, asks, near misses, and what could not be used."""
        return {
            "fire": sum(len(d.fires) for d in self.decisions),
            "ask": sum(len(d.asks) for d in self.decisions),
            "near": sum(len(d.near) for d in self.decisions),
            "refused": sum(row.speaker == "refused" for row in self.rows),
        }

    @property
    def row(self) -> dict[str, Any]:
        """What the page's script searches and sorts by."""
        of_tool = [(part.name, kind) for d in self.decisions for kind, part in parts(d)]
        texts = (self.id, *(row.text for row in self.rows), *(name for name, _ in of_tool))
        return {
            "text": "\n".join(texts).lower(),
            "began": self.began,
            "tools": sorted({f"{kind} {name}" for name, kind in of_tool}),
            **self.counts,
        }


def parts(decision: Decision) -> Iterator[tuple[str, Act | Near]]:
    """(fire, ask or near; the action) of a decision."""
    for act in decision.actions:
        yield act.kind, act
    for near in decision.near:
        yield "near", near


@dataclass(frozen=True, slots=True)
class ToolLine:
    """What an agent did with a tool. ``threshold``: the last agent's, None without thresholds. ``nearest``:
    the highest probability at which it did not act.
    """

    name: str
    threshold: float | None
    fire: int
    ask: int
    near: int
    nearest: float | None


def build_agent_report(title: str, log: AgentLog) -> str:
    """The page of a log as HTML text."""
    talks = [logged_talk(conversation) for conversation in reversed(log.conversations)]
    talks = [talk for talk in talks if talk.rows]
    decisions = [decision for talk in talks for decision in talk.decisions]
    templates = environment(Sides())
    templates.globals |= {"parts": parts, "longest": LONGEST}
    last = log.started[-1] if log.started else None
    seconds = [d.seconds for d in decisions]
    values: dict[str, Any] = {
        "title": title,
        "started": last,
        "agents": len(log.started),
        "totals": {kind: sum(t.counts[kind] for t in talks) for kind in ("fire", "ask", "near", "refused")},
        "decisions": len(decisions),
        "median": statistics.median(seconds) * 1000 if seconds else None,
        "dropped": sum(max((d.dropped for d in t.decisions), default=0) for t in talks),
        "lines": tool_lines(decisions, last),
        **_talks(talks, templates),
        "facts": [],
        "notes": [],
        "configs": [],
        **script("entries.js", "agent.js"),
    }
    return templates.get_template("agent.html.j2").render(values)


def _talks(talks: Sequence[LoggedTalk], templates: jinja2.Environment) -> dict[str, Any]:
    template = templates.get_template("agent_talk.html.j2")
    return {
        "first_page": talks[:FIRST_PAGE],
        "talk_count": len(talks),
        "packed": pack([{**talk.row, "html": template.render(talk=talk, open=False)} for talk in talks]),
    }


def logged_talk(conversation: LoggedConversation) -> LoggedTalk:
    """A conversation of a log as rows. What is not a turn stands where it came."""
    rows: list[Row] = []
    by_turn: dict[int, Row] = {}
    acts: dict[str, Row] = {}
    for _, event in conversation.events:
        if isinstance(event, Said):
            rows.append(Row(event.turn, event.speaker, event.text))
            by_turn[event.turn] = rows[-1]
        elif isinstance(event, Decided) and (row := by_turn.get(event.decision.turn)) is not None:
            row.decision = event.decision
            acts |= {act.id: row for act in event.decision.actions}
        elif isinstance(event, Answered) and (row := acts.get(event.act)) is not None:
            row.after.append(_answered(event, row))
        elif isinstance(event, Refused):
            given = "" if event.given is None else f" {json.dumps(event.given, ensure_ascii=False)}"
            rows.append(Row(None, "refused", f"{event.error}{given}"))
        elif isinstance(event, LeftOut):
            rows.append(Row(None, "left out", f"{event.speaker}: {event.text}"))
    return LoggedTalk(conversation.id, _began(conversation.events), tuple(rows))


def _began(events: Sequence[tuple[int, Event]]) -> str:
    return events[0][1].at if events else ""


def _answered(event: Answered, row: Row) -> str:
    assert row.decision is not None, "only actions of decisions are answered"
    name = next(act.name for act in row.decision.actions if act.id == event.act)
    if event.event == "confirm":
        return f"{name}: the user agreed, fired"
    if event.event == "reject":
        return f"{name}: rejected"
    content = event.content
    told = content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)
    return f"{name}: {'done' if event.ok else 'failed'}" + ("" if content is None else f", {told}")


def tool_lines(decisions: Sequence[Decision], started: Started | None) -> list[ToolLine]:
    """A line for each tool with a threshold of its own, or that a decision names; the busiest first."""
    found: dict[str, dict[str, list[float | None]]] = {}
    own = dict(started.thresholds or {}) if started is not None else {}
    for name in own:
        found[name] = {}
    for decision in decisions:
        for kind, part in parts(decision):
            found.setdefault(part.name, {}).setdefault(kind, []).append(part.probability)
    lines = []
    for name, of in found.items():
        near = [p for p in of.get("near", ()) if p is not None]
        counts = {kind: len(of.get(kind, ())) for kind in ("fire", "ask", "near")}
        default = None if started is None else started.default
        lines.append(ToolLine(name, own.get(name, default), **counts, nearest=max(near, default=None)))
    return sorted(lines, key=lambda line: (-line.fire, -line.ask, -line.near, line.name))


def write_agent_report(file: Path) -> Path:
    """Write the page of the log ``file`` beside it; returns its path. Raises SourceError for another file."""
    return write_page(file.with_suffix(".html"), build_agent_report(file.name, read_log(file)))
