"""SMCalFlow: calendar dialogues, a program per user turn (compact, or *.dataflow_dialogues.jsonl).

`smcalflow_programs` reads what a program asks for. Request and assent decide the windows:

- A look-up (events, weather, places, people) runs on the user turn that asks for it: a point there [DERIVED].
- A change is first proposed by the agent ("Is this good?") and made after the user's assent: coverage begins
  at the turn that asks for it; the turn that assents is the ready window and the logged trigger. Revisions in
  between change its parameters [DERIVED from the programs; INFERRED from its questions: assent].
- A change made at once has coverage, but no window, since nobody assented (``no_assent``) [INFERRED].
- A change that is refused, replaced or never answered is `withdrawn`.
- A choice among offers is the assent when the agent then says that it has acted, else a revision [INFERRED].
- Parameters are the values in plain words; a mere reference ("that meeting") is no parameter. A value counts
  as said when all its parts have been said (`value_turns`).

Release: one dialogue per line, ``{dialogue_id, turns: [{user_utterance: {original_text}, agent_utterance:
{original_text}, lispress}]}`` [CODE: the release's own classes].
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from proactor.dialogue import Dialogue, Interval, Reference, Turn, windows
from proactor.files import find_files
from proactor.sources import base, lispress, records, smcalflow_records
from proactor.sources.base import Malformed, NoOptions, Record, Subset
from proactor.sources.corpus import Corpus, ToolRow, catalog_of
from proactor.sources.smcalflow_programs import Parts, Step, revise_time, spellings, steps

_EVENT = ("subject", "start", "end", "duration", "location", "attendees", "show_as")
_WHICH = tuple(f"event_{slot}" for slot in (*_EVENT[:-1], "number"))
_TOOLS: dict[str, ToolRow] = {
    "create_event": ("put an event on the calendar", "write", _EVENT),
    "update_event": (
        "change an event (event_…: which one; the rest: what it becomes)",
        "write",
        (*_EVENT, *_WHICH),
    ),
    "delete_event": ("delete an event", "irreversible", (*_EVENT, "number")),
    "respond_to_event": ("accept or decline an event", "write", (*_EVENT, *_WHICH, "response", "organizer")),
    "forward_event": ("forward an event", "write", (*_EVENT, *_WHICH)),
    "find_events": ("look up events", "read", (*_EVENT, "number", "organizer")),
    "get_weather": ("look up the weather", "read", ("place", "time")),
    "find_place": ("look up a place", "read", ("place",)),
    "find_person": ("look up a person", "read", ("person",)),
}
_DONE = re.compile(
    r"\bi(?:'ve| have) (?:put|added|changed|updated|deleted|cancel|removed|moved|scheduled|accepted|declined"
    r"|made)"
    r"|has been updated|^i forwarded|i'll update that",
    re.IGNORECASE,
)


OPTIONS = NoOptions


def load(path: Path, subset: Subset, _options: NoOptions) -> Corpus:
    """Reads a folder or file of either format; see `sources.load`."""
    counters: Counter[str] = Counter()
    files = find_files(path, "*.jsonl.gz", "*.jsonl", "*/*.dataflow_dialogues.jsonl")
    entries = (
        Record(line.where, line.id, line.parse() | {"dialogue_id": line.id})
        for line in subset.choose_lines(files, name=_dialogue_id)
    )
    return base.convert_all(entries, _dialogue, catalog_of(_TOOLS, asks=("write", "irreversible")), counters)


def _dialogue_id(file: Path, name: str) -> str:
    """The release names the part (train, valid) in its files, not in its ids."""
    return name if "/" in name else f"smcalflow2/{file.name.split('.')[0]}/{name}"


def _dialogue(record: dict[str, Any], counters: Counter[str]) -> Dialogue:
    records.check(smcalflow_records.SmcalflowRecord, record)
    raw = record["turns"]
    if raw and "user_utterance" in raw[0]:
        raw = [side for turn in raw for side in _sides(turn)]
    turns = base.turns_of({"turns": raw})
    story = _Story(turns, counters)
    for turn, entry in zip(turns, raw, strict=True):
        if turn.speaker == "user":
            try:
                asked = steps(lispress.read(entry["program"]))
            except lispress.LispressError as error:
                raise Malformed(f"turn {turn.index}: a program that cannot be read, {error}") from None
            answer = turns[turn.index].text if turn.index < len(turns) else ""
            story.hear(turn.index, asked, _DONE.search(answer) is not None)
    story.end()
    tools = {r.name for r in (*story.references, *story.withdrawn)}
    return Dialogue(
        id=record["dialogue_id"],
        turns=turns,
        references=tuple(story.references),
        withdrawn=tuple(story.withdrawn),
        tools=tuple(_TOOLS),
        domain="+".join(sorted({_domain(name) for name in tools})),
        source="smcalflow",
    )


def _sides(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """A turn of the release as two turns of the compact form."""
    user = {"speaker": "USER", "text": turn["user_utterance"]["original_text"], "program": turn["lispress"]}
    return [user, {"speaker": "AGENT", "text": turn["agent_utterance"]["original_text"]}]


def _domain(tool: str) -> str:
    return {"get_weather": "weather", "find_place": "places", "find_person": "people"}.get(tool, "calendar")


@dataclass(slots=True)
class _Pending:
    """A change asked for at turn ``begin`` and not agreed to yet, or a look-up that a revision may repeat."""

    tool: str
    params: dict[str, Parts]
    begin: int
    look: bool = False


@dataclass(slots=True)
class _Story:
    """The references that the programs of one dialogue make, turn by turn."""

    turns: tuple[Turn, ...]
    counters: Counter[str]
    references: list[Reference] = field(default_factory=list)
    withdrawn: list[Reference] = field(default_factory=list)
    pending: _Pending | None = None
    last_look: _Pending | None = None

    def hear(self, turn: int, asked: list[Step], done: bool) -> None:
        """Take in what the program of a user turn asks for. ``done``: the agent then says that it acted."""
        kinds = {step.kind for step in asked}
        for step in asked:
            if step.kind == "look":
                self.last_look = _Pending(step.tool, step.params, turn, look=True)
                self._close(self.last_look, turn, (turn, turn))
            elif step.kind == "change":
                self._drop(turn, "replaced")
                self.pending = _Pending(step.tool, step.params, turn)
                self.last_look = None
            elif step.kind == "revise" or (step.kind == "choose" and not done and "change" not in kinds):
                self._revise(step, turn)
            elif step.kind in ("assent", "choose"):
                if self.pending is None:
                    self.counters["assent_to_nothing"] += 1
                    continue
                self.pending.params = self._revised_params(self.pending, step)
                self._close(self.pending, turn, (turn, turn))
                self.pending = None
            else:
                self._drop(turn, "refused")
        if done and self.pending is not None and kinds.isdisjoint({"assent", "choose", "withdraw"}):
            self._close(self.pending, turn, None)
            self.pending = None

    def _revise(self, step: Step, turn: int) -> None:
        if self.last_look is not None:
            again = _Pending(self.last_look.tool, self._revised_params(self.last_look, step), turn, look=True)
            self.last_look = again
            self._close(again, turn, (turn, turn))
        elif self.pending is not None:
            self.pending.params = self._revised_params(self.pending, step)
        else:
            self.counters["revision_of_nothing"] += 1

    def _revised_params(self, target: _Pending, step: Step) -> dict[str, Parts]:
        """The target's values, updated by the revision; values that its tool does not take are counted."""
        slots = _TOOLS[target.tool][2]
        known = {k: v for k, v in step.params.items() if k in slots}
        foreign = [v for k, v in step.params.items() if k not in known]
        if foreign and target.tool in ("get_weather", "find_place", "find_person"):
            known[slots[0]] = foreign[0]
        else:
            self.counters["revised_value_unknown"] += len(foreign)
        for slot in known.keys() & target.params.keys() & {"start", "end"}:
            known[slot] = revise_time(target.params[slot], known[slot])
        return target.params | known

    def _close(self, call: _Pending, turn: int, ready: Interval | None) -> None:
        self.references.append(self._reference(call, f"a{len(self.references) + 1}", turn, ready))

    def _drop(self, turn: int, why: str) -> None:
        """The pending change ends before user turn ``turn``."""
        if self.pending is None:
            return
        last = max((t.index for t in self.turns if t.speaker == "user" and t.index < turn), default=0)
        self.counters[f"change_{why}"] += 1
        if last >= self.pending.begin:
            name = f"w{len(self.withdrawn) + 1}"
            self.withdrawn.append(self._reference(self.pending, name, last, None, logged=False))
        self.pending = None

    def end(self) -> None:
        """The dialogue is over: a change that is still pending was never agreed to."""
        self._drop(len(self.turns) + 1, "unanswered")

    def _reference(
        self, call: _Pending, name: str, turn: int, ready: Interval | None, logged: bool = True
    ) -> Reference:
        worded = {slot: parts for slot, parts in call.params.items() if parts}
        params = {slot: " ".join(parts) for slot, parts in worded.items() if slot in _TOOLS[call.tool][2]}
        self.counters["values_without_words"] += len(call.params) - len(worded)
        self.counters["values_of_no_parameter"] += len(worded) - len(params)
        value_turns: dict[str, int] = {}
        for slot in params:
            mentions = [windows.first_mention(self.turns[:turn], spellings(p)) for p in call.params[slot]]
            known = [t for t in mentions if t is not None]
            if len(known) == len(mentions):
                value_turns[slot] = max(known)
            self.counters["values"] += 1
            self.counters["values_not_literal"] += slot not in value_turns
        reason = ""
        if ready is None:
            reason = "no_assent" if logged else "withdrawn"
        return Reference(
            id=name,
            name=call.tool,
            params=params,
            coverage=(call.begin, turn),
            ready=ready,
            observed_trigger=turn if logged else None,
            value_turns=value_turns,
            values_seen=max(value_turns.values(), default=call.begin)
            if len(value_turns) == len(params)
            else None,
            variants={
                slot: forms
                for slot, parts in call.params.items()
                if slot in params and (forms := _variants(parts))
            },
            null_reason=reason,
        )


def _variants(parts: Parts) -> tuple[str, ...]:
    """Other spellings of a value of one part; a value of several parts has none."""
    return tuple(form for form in spellings(parts[0]) if form != parts[0]) if len(parts) == 1 else ()
