"""An annotator without a model: windows from the log and the phrases around the logged actions.

It reads turns, catalog and log, never a window. The log has each action with its values, the turn at which
each was said, and the trigger at which it was run. An action without a trigger was taken back or never run;
only the conversation tells which. Rules, all [INFERRED]:

- *open* from the user turn that asks for the tool (`CueBook.openers`), else from the first user turn by which
  one of its values was said;
- *ready* at the first user turn by which every value was said (for an action never run: every required one),
  nothing is on hold, and, for a tool that asks first, the user has agreed since. A value that the agent
  offered counts from where the user takes it up;
- the window *closes* at the logged trigger, but before a turn at which the user asks again or withdraws. A
  trigger on an agent's turn counts at the last user turn before it, where the agent decided; an action that
  was run before the user spoke is not placed;
- an action that was run before it is ready by these rules has no window: it is PENDING and stays masked.

A value of an enum that nobody said literally counts from the turn that `annotation.inferred` gives.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from proactor.annotation.cues import ENGLISH, CueBook, synthetic_book
from proactor.annotation.inferred import InferredValue, inferred_values
from proactor.annotation.marks import Mark, MarkStatus, render
from proactor.annotation.merge import marks_of
from proactor.annotation.oracle import OracleAnswer, OracleRequest
from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.catalog import Catalog, Tool
from proactor.dialogue.windows import decision_of, first_mention, mentions


@dataclass(frozen=True, slots=True)
class LoggedAction:
    """An action of a log.

    ``trigger``: the last user turn before the agent ran the action, 0 if there was none yet, None if it never
    ran it. ``said``: the turn at which each value was first said, by parameter.
    """

    name: str
    params: dict[str, str]
    trigger: int | None
    said: dict[str, int]
    variants: dict[str, tuple[str, ...]]

    def spellings(self, parameter: str) -> tuple[str, ...]:
        """A value, and what may have been said for it."""
        return self.params[parameter], *self.variants.get(parameter, ())


def log_of(dialogue: Dialogue, inferred: Sequence[InferredValue] = ()) -> tuple[LoggedAction, ...]:
    """The logged actions of a dialogue, without windows; those with a trigger were run.

    ``inferred``: values that count as said from the turns given there.
    """
    actions = [
        LoggedAction(
            r.name,
            dict(r.params),
            decision_of(dialogue, r),
            _value_turns(dialogue, r) | {i.parameter: i.turn for i in inferred if i.reference == r.id},
            dict(r.variants),
        )
        for r in (*dialogue.references, *dialogue.withdrawn)
    ]
    return tuple(
        sorted(actions, key=lambda a: (min(a.said.values(), default=a.trigger or 0), a.name, a.trigger or 0))
    )


def _value_turns(dialogue: Dialogue, reference: Reference) -> dict[str, int]:
    """The turn of each value by the log, or by a search of the text where the log has none."""
    return dict(reference.value_turns) or mentions(dialogue.turns, reference.params, reference.variants)[0]


class LogOracle:
    """Answers from the log.

    ``book``: the phrases; by default `synthetic_book` for synthetic dialogues, `ENGLISH` for others.
    ``infer``: infer the turns of enum values that nobody said literally.
    """

    batch = 64
    workers = 1
    steady = True

    def __init__(self, book: CueBook | None = None, infer: bool = True) -> None:
        self.book, self.infer = book, infer
        self.identity = (
            "log" if book is None else f"log {hashlib.sha256(repr(book).encode()).hexdigest()[:16]}"
        )
        self.identity += "" if infer else ", nothing inferred"
        self._last: tuple[Dialogue | None, DerivedMarks] = None, DerivedMarks({}, 0)

    async def answer(self, requests: Sequence[OracleRequest]) -> list[OracleAnswer]:
        """One answer per request."""
        return [_answer_at(r.turn, self._derive(r.dialogue, r.tools)) for r in requests]

    def _derive(self, dialogue: Dialogue, tools: Catalog) -> DerivedMarks:
        """The marks of a dialogue; those of the last one are kept."""
        if self._last[0] is not dialogue:
            book = self.book or (synthetic_book() if dialogue.source == "synthetic" else ENGLISH)
            inferred = inferred_values(dialogue, tools) if self.infer else ()
            derived = derive_marks(dialogue.turns, log_of(dialogue, inferred), tools, book)
            self._last = dialogue, replace(derived, inferred=inferred)
        return self._last[1]

    def tokens(self, text: str) -> int:
        """0: no model is asked."""
        return 0

    def cost(self) -> Mapping[str, int]:
        """Nothing."""
        return {}

    async def close(self) -> None:
        """Nothing to close."""


@dataclass(frozen=True, slots=True)
class DerivedMarks:
    """``marks``: by user turn. ``not_placed``: the number of logged actions without any turn. ``inferred``:
    the values whose turn was inferred.
    """

    marks: dict[int, tuple[Mark, ...]]
    not_placed: int
    inferred: tuple[InferredValue, ...] = ()


def _answer_at(turn: int, derived: DerivedMarks) -> OracleAnswer:
    """The answer about one turn; that about the first turn also has what concerns the whole dialogue."""
    if turn != min(derived.marks):
        return OracleAnswer(render(derived.marks[turn]))
    dropped = {"not_placed": derived.not_placed} if derived.not_placed else {}
    return OracleAnswer(render(derived.marks[turn]), dropped=dropped, inferred=derived.inferred)


def derive_marks(
    turns: Sequence[Turn], log: Sequence[LoggedAction], tools: Catalog, book: CueBook
) -> DerivedMarks:
    """The marks that the rules above give for a dialogue."""
    references: list[Reference] = []
    withdrawn: list[Reference] = []
    agreed: dict[str, list[int]] = {}
    run: dict[str, int] = {}
    # Calls of one tool in the order in which they were run: each is raised after the one before.
    in_order = sorted(log, key=lambda a: len(turns) + 1 if a.trigger is None else a.trigger)
    for i, action in enumerate(in_order):
        tool, after = tools[action.name], run.get(action.name, 0)
        reference = _ActionFinder(turns, book, action, tool, after).reference(f"a{i + 1}")
        run[action.name] = after if action.trigger is None else action.trigger
        if reference is not None:
            (withdrawn if reference.null_reason == "withdrawn" else references).append(reference)
            if reference.ready is not None and tool.confirm:
                agreed.setdefault(action.name, []).append(reference.ready[0])
    derived = Dialogue(id="log", turns=tuple(turns), references=tuple(references), withdrawn=tuple(withdrawn))
    marks = {
        turn: tuple(_with_assent(mark, turn, agreed.get(mark.name, ())) for mark in listed)
        for turn, listed in marks_of(derived).items()
    }
    return DerivedMarks(marks, not_placed=len(log) - len(references) - len(withdrawn))


def _with_assent(mark: Mark, turn: int, agreed: Sequence[int]) -> Mark:
    """A READY mark with the turn of the last assent up to ``turn``."""
    past = [t for t in agreed if t <= turn]
    return mark.model_copy(update={"assent": past[-1]}) if past and mark.status is MarkStatus.READY else mark


class _ActionFinder:
    """Finds one logged action in the conversation. ``after``: the turn at which its tool was run before."""

    def __init__(
        self, turns: Sequence[Turn], book: CueBook, action: LoggedAction, tool: Tool, after: int = 0
    ) -> None:
        self.turns, self.book, self.action = turns, book, action
        self.confirm, self.required = tool.confirm, tool.required
        self.after = after if action.trigger is None or after < action.trigger else 0
        self.users = [t.index for t in turns if t.speaker == "user"]
        self.telling = [t for t in self.users if not book.says("asides", turns[t - 1].text)]
        """User turns that may say something about an action: all but asides."""

    def reference(self, name: str) -> Reference | None:
        """The action with its windows; None where no turn can be found for it."""
        opened = self._opening_turn()
        if opened is None or self.action.trigger == 0:
            return None
        taken_back = None
        if self.action.trigger is None:
            taken_back = self._first_cue("take_back", opened + 1)
        closed, due = self._closing_turns(opened, taken_back)
        start = self._ready_turn(opened)
        ready = (start, due) if start is not None and start <= due else None
        said = {name: turn for name, turn in self.action.said.items() if turn <= closed}
        reason = ""
        if ready is None:
            reason = "withdrawn" if taken_back is not None else "acted_before_ready"
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

    def _opening_turn(self) -> int | None:
        """The first turn of the coverage."""
        trigger = self.action.trigger
        known = [*self.action.said.values(), *([] if trigger is None else [trigger])]
        latest = next((u for u in self.users if u >= min(known) and u > self.after), None) if known else None
        return next(
            (u for u in self.telling if self.after < u <= (latest or len(self.turns)) and self._asks(u)),
            latest,
        )

    def _asks(self, turn: int) -> bool:
        said = {name: self.action.spellings(name) for name in self.action.params}
        return self.book.opens(self._text(turn), self.action.name, said)

    def _closing_turns(self, opened: int, taken_back: int | None) -> tuple[int, int]:
        """(last turn of the coverage, last turn of the window)."""
        trigger = self.action.trigger
        if trigger is not None:
            again = trigger > opened and self.book.says("ask_again", self._text(trigger), self.action.name)
            return trigger, self._before(trigger) if again else trigger
        last = self.users[-1] if taken_back is None else self._before(taken_back)
        return max(opened, last), max(opened, last)

    def _ready_turn(self, opened: int) -> int | None:
        """The first turn at which nothing is missing."""
        given = self.action.params.keys()
        needed = given if self.action.trigger is not None else {*given, *self.required}
        if not needed <= self.action.said.keys():
            return None
        settled = max([opened, *(self._accepted_turn(name, turn) for name, turn in self.action.said.items())])
        if self.confirm:
            return self._first_cue("assent", settled)
        held = [u for u in self.telling if opened <= u <= settled and self.book.says("hold", self._text(u))]
        released = self._first_cue("release", held[-1] + 1) if held else settled
        return None if released is None else max(settled, released)

    def _accepted_turn(self, name: str, said: int) -> int:
        """The turn at which a value counts: an agent's offer counts once the user takes it up."""
        if self.turns[said - 1].speaker == "user":
            return said
        later = [self.turns[u - 1] for u in self.telling if u > said]
        taken = first_mention(later, self.action.spellings(name))
        return taken or next((u for u in self.telling if u > said), len(self.turns) + 1)

    def _first_cue(self, cue: str, start: int) -> int | None:
        """The first turn of `telling` from ``start`` on with this cue."""
        return next(
            (u for u in self.telling if u >= start and self.book.says(cue, self._text(u), self.action.name)),
            None,
        )

    def _before(self, turn: int) -> int:
        """The last user turn before ``turn``; ``turn`` itself where there is none."""
        return max((u for u in self.users if u < turn), default=turn)

    def _text(self, turn: int) -> str:
        return self.turns[turn - 1].text
