"""The log-derived annotator, without a model: what was logged (actions, their triggers, where each value was
said) and the words around it.

It reads turns, catalog and log, never a window. A log says which actions were raised with which values, and
when an action was run; an action without a trigger was taken back or never run, which only the conversation
tells. Rules, all [INFERRED]:

- *open* from the user turn that asks for the tool (`CueBook.openers`), else from the first user turn by which
  one of its values was said;
- *ready* at the first user turn by which every value was said (all required ones, for an action never run; by
  the user, where the agent had only offered it), nothing is on hold, and, for a tool that asks first, the
  user has agreed since;
- the window *closes* at the logged trigger; where the user has to ask for the action again, or takes it back,
  before that turn;
- an action run before the rules call it ready has no window that they can explain: it is PENDING and stays
  masked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from proactor.annotation.cues import ENGLISH, CueBook, synthetic_book
from proactor.annotation.marks import Mark, MarkStatus, render
from proactor.annotation.merge import marks_of
from proactor.annotation.oracle import OracleAnswer, OracleRequest
from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.catalog import Catalog, Tool
from proactor.dialogue.windows import first_mention, mentions


@dataclass(frozen=True, slots=True)
class LoggedAction:
    """An action as a log holds it. ``trigger``: the last turn the agent had seen when it ran it, None when it
    never did. ``said``: for each value the turn at which it was first said.
    """

    name: str
    params: dict[str, str]
    trigger: int | None
    said: dict[str, int]
    variants: dict[str, tuple[str, ...]]


def log_of(dialogue: Dialogue) -> tuple[LoggedAction, ...]:
    """The log of a dialogue: its actions without their windows. Those run and those taken back are not told
    apart but by the trigger.
    """
    actions = [
        LoggedAction(r.name, _spoken(dialogue, r), r.observed_trigger, _said(dialogue, r), dict(r.variants))
        for r in (*dialogue.references, *dialogue.withdrawn)
    ]
    return tuple(
        sorted(actions, key=lambda a: (min(a.said.values(), default=a.trigger or 0), a.name, a.trigger or 0))
    )


def _said(dialogue: Dialogue, reference: Reference) -> dict[str, int]:
    """Where each value was said, as the log has it; one's own transcripts say it of none, and then they are
    looked for.
    """
    return dict(reference.value_turns) or mentions(dialogue.turns, reference.params, reference.variants)[0]


def _spoken(dialogue: Dialogue, reference: Reference) -> dict[str, str]:
    """Each value in the spelling that is said first: a log may hold another one."""
    found: dict[str, str] = {}
    for name, value in reference.params.items():
        spellings = (value, *reference.variants.get(name, ()))
        found[name] = min(
            spellings, key=lambda s: first_mention(dialogue.turns, (s,)) or len(dialogue.turns) + 1
        )
    return found


class LogOracle:
    """Answers from the log. ``book``: how people talk; by default the generator's phrases for synthetic
    dialogues, general English for others.
    """

    batch = 64
    workers = 1
    steady = True

    def __init__(self, book: CueBook | None = None) -> None:
        self.book = book
        self.identity = (
            "log" if book is None else f"log {hashlib.sha256(repr(book).encode()).hexdigest()[:16]}"
        )
        self._known: tuple[Dialogue | None, Derived] = None, Derived({}, 0)

    async def answer(self, requests: Sequence[OracleRequest]) -> list[OracleAnswer]:
        return [self._answer(q.turn, self._derived(q.dialogue, q.tools)) for q in requests]

    @staticmethod
    def _answer(turn: int, found: Derived) -> OracleAnswer:
        """The marks of a turn; the first turn tells what could not be placed at any."""
        dropped = {"not_placed": found.not_placed} if found.not_placed and turn == min(found.marks) else {}
        return OracleAnswer(render(found.marks[turn]), dropped=dropped)

    def _derived(self, dialogue: Dialogue, tools: Catalog) -> Derived:
        if self._known[0] is not dialogue:
            book = self.book or (synthetic_book() if dialogue.source == "synthetic" else ENGLISH)
            self._known = dialogue, derive(dialogue.turns, log_of(dialogue), tools, book)
        return self._known[1]

    def tokens(self, text: str) -> int:
        return 0

    def cost(self) -> Mapping[str, int]:
        return {}

    async def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True, slots=True)
class Derived:
    """``marks`` of every user turn; ``not_placed``: logged actions that nothing in the conversation or the
    log gives a turn.
    """

    marks: dict[int, tuple[Mark, ...]]
    not_placed: int


def derive(turns: Sequence[Turn], log: Sequence[LoggedAction], tools: Catalog, book: CueBook) -> Derived:
    """What a log and the words around it say of a dialogue."""
    references: list[Reference] = []
    withdrawn: list[Reference] = []
    agreed: dict[str, list[int]] = {}
    run: dict[str, int] = {}
    # calls of one tool in the order in which they were run: a later one is raised after the one before
    for i, action in enumerate(sorted(log, key=lambda a: a.trigger or len(turns) + 1)):
        found = _Reader(turns, book, action, tools[action.name], run.get(action.name, 0)).reference(
            f"a{i + 1}"
        )
        run[action.name] = action.trigger or run.get(action.name, 0)
        if found is not None:
            (withdrawn if found.null_reason == "withdrawn" else references).append(found)
            if found.ready is not None and tools[action.name].confirm:
                agreed.setdefault(action.name, []).append(found.ready[0])
    spoken = Dialogue(id="log", turns=tuple(turns), references=tuple(references), withdrawn=tuple(withdrawn))
    marks = {
        turn: tuple(_assented(mark, turn, agreed.get(mark.name, ())) for mark in of)
        for turn, of in marks_of(spoken).items()
    }
    return Derived(marks, not_placed=len(log) - len(references) - len(withdrawn))


def _assented(mark: Mark, turn: int, agreed: Sequence[int]) -> Mark:
    """A READY mark names the turn of the assent that made it so."""
    past = [t for t in agreed if t <= turn]
    return mark.model_copy(update={"assent": past[-1]}) if past and mark.status is MarkStatus.READY else mark


class _Reader:
    """Finds one logged action in the conversation."""

    def __init__(
        self, turns: Sequence[Turn], book: CueBook, action: LoggedAction, tool: Tool, after: int = 0
    ) -> None:
        self.turns, self.book, self.action, self.confirm, self.required = (
            turns,
            book,
            action,
            tool.confirm,
            tool.required,
        )
        self.after = after if action.trigger is None or after < action.trigger else 0
        self.users = [t.index for t in turns if t.speaker == "user"]
        self.telling = [t for t in self.users if not book.says("asides", turns[t - 1].text)]
        """User turns that may say something about an action."""

    def reference(self, name: str) -> Reference | None:
        """The action with the windows that the conversation shows; None when it cannot be placed in it at
        all.
        """
        opened = self._opened()
        if opened is None:
            return None
        taken_back = None
        if self.action.trigger is None:
            taken_back = self._first("take_back", opened + 1)
        closed, due = self._closed(opened, taken_back)
        start = self._ready(opened)
        ready = (start, due) if start is not None and start <= due else None
        said = {name: turn for name, turn in self.action.said.items() if turn <= closed}
        reason = "" if ready else "withdrawn" if taken_back is not None else "acted_before_ready"
        return Reference(
            id=name,
            name=self.action.name,
            params=self.action.params,
            coverage=(opened, closed),
            ready=ready,
            value_turns=said,
            variants=self.action.variants,
            null_reason=reason,
        )

    def _opened(self) -> int | None:
        known = [*self.action.said.values(), *([self.action.trigger] if self.action.trigger else [])]
        latest = next((u for u in self.users if u >= min(known) and u > self.after), None) if known else None
        return next(
            (u for u in self.telling if self.after < u <= (latest or len(self.turns)) and self._asked(u)),
            latest,
        )

    def _asked(self, turn: int) -> bool:
        return self.book.opens(self._text(turn), self.action.name, self.action.params)

    def _closed(self, opened: int, taken_back: int | None) -> tuple[int, int]:
        """(last turn of the coverage, last turn of the window)."""
        trigger = self.action.trigger
        if trigger is not None:
            again = trigger > opened and self.book.says("ask_again", self._text(trigger), self.action.name)
            return trigger, self._before(trigger) if again else trigger
        last = self.users[-1] if taken_back is None else self._before(taken_back)
        return max(opened, last), max(opened, last)

    def _ready(self, opened: int) -> int | None:
        """The first turn at which nothing is missing any more."""
        needed = self.action.params.keys() if self.action.trigger else {*self.action.params, *self.required}
        if not needed <= self.action.said.keys():
            return None
        settled = max([opened, *(self._chosen(name, turn) for name, turn in self.action.said.items())])
        if self.confirm:
            return self._first("assent", settled)
        held = [u for u in self.telling if opened <= u <= settled and self.book.says("hold", self._text(u))]
        released = self._first("release", held[-1] + 1) if held else settled
        return None if released is None else max(settled, released)

    def _chosen(self, name: str, said: int) -> int:
        """The user turn by which a value stands: an agent's offer counts once the user takes it up."""
        if self.turns[said - 1].speaker == "user":
            return said
        later = [self.turns[u - 1] for u in self.telling if u > said]
        taken = first_mention(later, (self.action.params[name], *self.action.variants.get(name, ())))
        return taken or next((u for u in self.telling if u > said), len(self.turns) + 1)

    def _first(self, cue: str, start: int) -> int | None:
        """The first telling user turn from ``start`` on with this cue."""
        return next(
            (u for u in self.telling if u >= start and self.book.says(cue, self._text(u), self.action.name)),
            None,
        )

    def _before(self, turn: int) -> int:
        return max((u for u in self.users if u < turn), default=turn)

    def _text(self, turn: int) -> str:
        return self.turns[turn - 1].text
