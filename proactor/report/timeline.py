"""`Timeline`: a dialogue turn by turn, with each reference's window and each system's fires, ready to draw.

Fires are classed as for first-fire F1 (`matching.classify` with earlier fires), so that counting the marks
of a timeline gives the numbers of the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from proactor.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.matching import EXACT, ClassifiedAction, MatchRule, Timing, classify
from proactor.dialogue.parse import parse
from proactor.evaluation.play import Replay

MISSED = "missed"
MASKED = "masked"
PENDING = "pending"
WRONG_VALUE = "wrong_value"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class ClassifiedReplay:
    """A replay with the class of each action.

    ``actions``: by turn. ``first``: (turn, class) of the first fire, by reference id.
    """

    actions: Mapping[int, list[ClassifiedAction]]
    first: Mapping[str, tuple[int, Timing]]

    def outcomes(self, dialogue: Dialogue) -> Iterator[tuple[str, str]]:
        """(tool, outcome) of each counted reference: the class of its first fire, or ``missed``; then of each
        fire that used up none: ``wrong_value``, ``false``, ``repeat`` or ``masked``.
        """
        for reference in dialogue.references:
            if reference.ready is not None:
                first = self.first.get(reference.id)
                yield reference.name, MISSED if first is None else first[1].value
        for actions in self.actions.values():
            for j in actions:
                if j.masked:
                    yield j.action.name, MASKED
                elif j.timing is Timing.FALSE and j.meant is not None:
                    yield j.action.name, WRONG_VALUE
                elif j.timing in (Timing.FALSE, Timing.REPEAT):
                    yield j.action.name, j.timing.value

    def counts(self, dialogue: Dialogue) -> Counter[str]:
        """Counts of `outcomes`; a wrong value is a false fire."""
        kinds = (kind for _, kind in self.outcomes(dialogue))
        return Counter(Timing.FALSE.value if kind == WRONG_VALUE else kind for kind in kinds)


def classify_replay(
    dialogue: Dialogue, outputs: Mapping[int, Sequence[Action]], rule: MatchRule = EXACT
) -> ClassifiedReplay:
    """Classify the actions of a replay in order; the first fire uses up its reference."""
    classified: dict[int, list[ClassifiedAction]] = {}
    used: dict[str, Timing] = {}
    first: dict[str, tuple[int, Timing]] = {}
    for turn in sorted(outputs):
        classified[turn] = classify(dialogue, turn, outputs[turn], fired=used, rule=rule)
        for j in classified[turn]:
            if j.masked or j.reference is None or j.timing in (None, Timing.REPEAT):
                continue
            assert j.timing is not None
            used[j.reference.id] = j.timing
            first[j.reference.id] = (turn, j.timing)
    return ClassifiedReplay(classified, first)


@dataclass(frozen=True, slots=True)
class Symbol:
    """One symbol. ``kind``: a class of fire, `pending` or `masked`; ``words`` describe it."""

    kind: str
    words: str


@dataclass(frozen=True, slots=True)
class Value:
    """One parameter as proposed; ``right``: None without a reference to compare with."""

    name: str
    text: str
    right: bool | None


@dataclass(frozen=True, slots=True)
class ProposedAction:
    """One proposed action as text: the mark of its class, and the letter of the reference it matched."""

    mark: Symbol
    letter: str
    name: str
    values: tuple[Value, ...]


@dataclass(slots=True)
class Cell:
    """A lane at a turn. ``band``: "", cover, ready or withdrawn; ``letter``: where a window begins."""

    band: str = ""
    letter: str = ""
    opens: bool = False
    closes: bool = False
    marks: dict[str, list[Symbol]] = field(default_factory=dict)


@dataclass(slots=True)
class TurnRow:
    """A turn, with a cell for each lane; the last lane is for fires without a window.

    By system: ``proposals``, ``unread`` (an output that could not be parsed in full) and ``rewards``.
    """

    index: int
    speaker: str
    text: str
    cells: list[Cell]
    proposals: dict[str, list[ProposedAction]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A reference in the key of a timeline: the action, its window in words, and its outcome by system."""

    letter: str
    name: str
    params: Mapping[str, str]
    window: str
    kind: str
    outcome: Mapping[str, Symbol]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A dialogue, drawn from top to bottom; ``lanes`` counts the window lanes, without the last one."""

    dialogue: Dialogue
    entries: list[Entry]
    rows: list[TurnRow]
    lanes: int


def timeline(dialogue: Dialogue, replays: Mapping[str, Replay], rule: MatchRule = EXACT) -> Timeline:
    """The timeline of ``dialogue`` with the replays of the named systems; ``rule``: what counts as right."""
    withdrawn = {r.id for r in dialogue.withdrawn}
    # An unknown window is not counted, so it gets no lane either; the key lists it.
    known = [r for r in dialogue.references if r.ready is not None]
    drawn = [r for r in (*known, *dialogue.withdrawn) if r.coverage is not None]
    drawn.sort(key=lambda r: (r.coverage or (0, 0), r.id))
    unplaced = [r for r in dialogue.references if r.ready is None]
    letters = {r.id: _letter(i) for i, r in enumerate([*drawn, *unplaced])}
    lane = _lanes(drawn)
    lanes = max(lane.values(), default=-1) + 1
    rows = [TurnRow(t.index, t.speaker, t.text, [Cell() for _ in range(lanes + 1)]) for t in dialogue.turns]
    for reference in drawn:
        _draw_window(reference, rows, lane[reference.id], letters[reference.id], reference.id in withdrawn)
    classified = {name: classify_replay(dialogue, replay.actions, rule) for name, replay in replays.items()}
    for system, replay in replays.items():
        _draw_fires(system, classified[system], rows, lane, letters)
        for row in rows:
            if row.index in replay.rewards:
                row.rewards[system] = replay.rewards[row.index]
            text = replay.outputs.get(row.index)
            if text is not None and not parse(text).ok:
                row.unread[system] = text
    entries = [
        Entry(
            letters[r.id],
            r.name,
            r.params,
            *_window(r, r.id in withdrawn),
            _outcomes(r, classified, r.id in withdrawn),
        )
        for r in (*drawn, *unplaced)
    ]
    return Timeline(dialogue, entries, rows, lanes)


def _letter(i: int) -> str:
    """A to Z, AA to ZZ, ..."""
    return LETTERS[i % 26] * (i // 26 + 1)


def _lanes(references: Iterable[Reference]) -> dict[str, int]:
    """A lane for each reference, in order of coverage, without overlaps in a lane."""
    ends: list[int] = []
    lane: dict[str, int] = {}
    for reference in references:
        assert reference.coverage is not None
        start, end = reference.coverage
        i = next((i for i, last in enumerate(ends) if last < start), len(ends))
        ends[i : i + 1] = [end]
        lane[reference.id] = i
    return lane


def _draw_window(reference: Reference, rows: list[TurnRow], lane: int, letter: str, withdrawn: bool) -> None:
    assert reference.coverage is not None
    first, last = reference.coverage
    for turn in range(first, last + 1):
        cell = rows[turn - 1].cells[lane]
        if withdrawn:
            cell.band = "withdrawn"
        elif reference.ready is not None:
            cell.band = "ready" if reference.ready[0] <= turn <= reference.ready[1] else "cover"
        cell.opens, cell.closes, cell.letter = turn == first, turn == last, letter if turn == first else ""


def _draw_fires(
    system: str,
    replay: ClassifiedReplay,
    rows: list[TurnRow],
    lane: Mapping[str, int],
    letters: Mapping[str, str],
) -> None:
    for turn, actions in replay.actions.items():
        row = rows[turn - 1]
        for j in actions:
            mark = _mark(j)
            reference = j.reference or j.meant
            letter = letters[reference.id] if reference is not None else ""
            values = tuple(
                Value(name, text, None if reference is None else reference.accepts(name, text))
                for name, text in j.action.params.items()
            )
            row.proposals.setdefault(system, []).append(ProposedAction(mark, letter, j.action.name, values))
            if mark.kind == PENDING and not letter:
                continue  # announced without a reference: shown in the text only, to keep the lanes readable
            row.cells[_lane_at(reference, turn, lane)].marks.setdefault(system, []).append(mark)


def _lane_at(reference: Reference | None, turn: int, lane: Mapping[str, int]) -> int:
    """The lane for a fire on ``reference``; the last one (-1) outside of its coverage.

    A late or masked fire may come after its own window, where the lane can belong to another reference.
    """
    if reference is None or reference.id not in lane or reference.coverage is None:
        return -1
    first, last = reference.coverage
    return lane[reference.id] if first <= turn <= last else -1


def _mark(j: ClassifiedAction) -> Symbol:
    reasons = {
        None: "announced, does not fire" if j.action.status is Status.PENDING else "does not fire",
        Timing.EARLY: "early: before the window opened",
        Timing.ON_TIME: "on time: inside the window",
        Timing.LATE: "late: the window had closed",
        Timing.FALSE: "false: it fits nothing that was open"
        if j.meant is None
        else "false: a value that the action needs is wrong",
        Timing.REPEAT: "repeat: it had been done",
        Timing.UNKNOWN: "not counted: its window is unknown",
        Timing.AFTER_EARLY: "not counted: it had fired early, and the log goes on as if it had not",
    }
    if j.timing is None:
        kind = PENDING
    elif j.masked:
        kind = MASKED
    else:
        kind = j.timing.value
    return Symbol(kind, reasons[j.timing])


def _window(reference: Reference, withdrawn: bool) -> tuple[str, str]:
    """(words, kind) of a reference's window."""
    if withdrawn:
        return "begun, then withdrawn by the user: nothing to do", "withdrawn"
    if reference.ready is None:
        reason = f" ({reference.null_reason})" if reference.null_reason else ""
        return f"window unknown{reason}: not counted", "unknown"
    start, end = reference.ready
    return (f"at turn {start}" if start == end else f"at turns {start} to {end}"), "known"


def _outcomes(
    reference: Reference, replays: Mapping[str, ClassifiedReplay], withdrawn: bool
) -> dict[str, Symbol]:
    """What became of a reference with each system; nothing where it is not counted."""
    if withdrawn or reference.ready is None:
        return {}
    outcomes = {}
    for system, replay in replays.items():
        outcomes[system] = Symbol(MISSED, "missed")
        if reference.id in replay.first:
            turn, timing = replay.first[reference.id]
            outcomes[system] = Symbol(timing.value, f"{timing.value.replace('_', ' ')} at turn {turn}")
    return outcomes
