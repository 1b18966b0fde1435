"""What happened in a dialogue, turn by turn, ready to be drawn: each reference's window, and where an agent
fired.

Fires are classed as for first-fire F1 (`matching.judge` with what was already fired), so that what a reader
counts in a timeline is what the table says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from proactor.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.matching import Judged, Timing, judge
from proactor.dialogue.parse import parse

if TYPE_CHECKING:
    from proactor.evaluation.play import Replay

MISSED = "missed"
MASKED = "masked"
PENDING = "pending"
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True, slots=True)
class Played:
    """A replay, judged. `judged`: turn -> actions with their classes. `first`: reference id -> (turn, class)
    of its first fire.
    """

    judged: Mapping[int, list[Judged]]
    first: Mapping[str, tuple[int, Timing]]

    def counts(self, dialogue: Dialogue) -> Counter[str]:
        """References by the class of their first fire or `missed`, and the fires that are false, repeated or
        masked.
        """
        found: Counter[str] = Counter()
        for reference in dialogue.references:
            if reference.ready is not None:
                found[self.first[reference.id][1].value if reference.id in self.first else MISSED] += 1
        for actions in self.judged.values():
            for j in actions:
                if j.masked:
                    found[MASKED] += 1
                elif j.timing in (Timing.FALSE, Timing.REPEAT):
                    found[j.timing.value] += 1
        return found


def play(dialogue: Dialogue, outputs: Mapping[int, Sequence[Action]]) -> Played:
    """Class the actions of a replay in order; a reference is used up by its first fire."""
    judged: dict[int, list[Judged]] = {}
    used: dict[str, Timing] = {}
    first: dict[str, tuple[int, Timing]] = {}
    for turn in sorted(outputs):
        judged[turn] = judge(dialogue, turn, outputs[turn], fired=used)
        for j in judged[turn]:
            if j.masked or j.reference is None or j.timing in (None, Timing.REPEAT):
                continue
            assert j.timing is not None
            used[j.reference.id] = j.timing
            first[j.reference.id] = (turn, j.timing)
    return Played(judged, first)


@dataclass(frozen=True, slots=True)
class Mark:
    """One symbol: `kind` is a class of fire, `pending` or `masked`; `said` describes it in words."""

    kind: str
    said: str


@dataclass(frozen=True, slots=True)
class Value:
    """One parameter as proposed; `right` is None where nothing tells."""

    name: str
    text: str
    right: bool | None


@dataclass(frozen=True, slots=True)
class Said:
    """One proposed action as text: `mark` for its class, `letter` of the reference it was matched to."""

    mark: Mark
    letter: str
    name: str
    values: tuple[Value, ...]


@dataclass(slots=True)
class Cell:
    """A lane at a turn. `band`: "", cover, ready or withdrawn; `letter` where a window begins."""

    band: str = ""
    letter: str = ""
    opens: bool = False
    closes: bool = False
    marks: dict[str, list[Mark]] = field(default_factory=dict)


@dataclass(slots=True)
class Row:
    """A turn: its text, a cell a lane (the last one for fires that belong to no window), what each system
    proposed.
    """

    index: int
    speaker: str
    text: str
    cells: list[Cell]
    said: dict[str, list[Said]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    rewards: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Entry:
    """A reference in the key of a timeline: what was called for, when, and what became of it by system."""

    letter: str
    name: str
    params: Mapping[str, str]
    window: str
    kind: str
    outcome: Mapping[str, Mark]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A dialogue drawn from top to bottom; `lanes` counts the window lanes, without the last one."""

    dialogue: Dialogue
    entries: list[Entry]
    rows: list[Row]
    lanes: int


def timeline(dialogue: Dialogue, replays: Mapping[str, Replay]) -> Timeline:
    """The timeline of `dialogue` with the replay of each system in `replays` (name -> replay) on it."""
    withdrawn = {r.id for r in dialogue.withdrawn}
    # An unknown window is not counted, so it gets no lane either; the key lists it.
    known = [r for r in dialogue.references if r.ready is not None]
    drawn = [r for r in (*known, *dialogue.withdrawn) if r.coverage is not None]
    drawn.sort(key=lambda r: (r.coverage or (0, 0), r.id))
    unplaced = [r for r in dialogue.references if r.ready is None]
    letters = {r.id: _letter(i) for i, r in enumerate([*drawn, *unplaced])}
    lane = _lanes(drawn)
    lanes = max(lane.values(), default=-1) + 1
    rows = [Row(t.index, t.speaker, t.text, [Cell() for _ in range(lanes + 1)]) for t in dialogue.turns]
    for reference in drawn:
        _band(reference, rows, lane[reference.id], letters[reference.id], reference.id in withdrawn)
    played = {system: play(dialogue, replay.actions) for system, replay in replays.items()}
    for system, replay in replays.items():
        _marks(system, played[system], rows, lane, letters)
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
            _outcomes(r, played, r.id in withdrawn),
        )
        for r in (*drawn, *unplaced)
    ]
    return Timeline(dialogue, entries, rows, lanes)


def _letter(i: int) -> str:
    return LETTERS[i % 26] * (i // 26 + 1)


def _lanes(references: Iterable[Reference]) -> dict[str, int]:
    """A lane for each reference, in order of coverage, such that no two of a lane overlap."""
    ends: list[int] = []
    lane: dict[str, int] = {}
    for reference in references:
        assert reference.coverage is not None
        start, end = reference.coverage
        i = next((i for i, last in enumerate(ends) if last < start), len(ends))
        ends[i : i + 1] = [end]
        lane[reference.id] = i
    return lane


def _band(reference: Reference, rows: list[Row], lane: int, letter: str, withdrawn: bool) -> None:
    assert reference.coverage is not None
    first, last = reference.coverage
    for turn in range(first, last + 1):
        cell = rows[turn - 1].cells[lane]
        if withdrawn:
            cell.band = "withdrawn"
        elif reference.ready is not None:
            cell.band = "ready" if reference.ready[0] <= turn <= reference.ready[1] else "cover"
        cell.opens, cell.closes, cell.letter = turn == first, turn == last, letter if turn == first else ""


def _marks(
    system: str, played: Played, rows: list[Row], lane: Mapping[str, int], letters: Mapping[str, str]
) -> None:
    for turn, judged in played.judged.items():
        row = rows[turn - 1]
        for j in judged:
            mark = _mark(j)
            letter = letters[j.reference.id] if j.reference is not None else ""
            values = tuple(
                Value(name, text, None if j.reference is None else j.reference.accepts(name, text))
                for name, text in j.action.params.items()
            )
            row.said.setdefault(system, []).append(Said(mark, letter, j.action.name, values))
            if mark.kind == PENDING and not letter:
                continue  # announced, belongs to nothing: the text says it, the lanes stay readable
            # A late or masked action may stand outside its own window, where the lane can belong to another.
            inside = j.reference is not None and j.reference.id in lane and j.reference.coverage is not None
            inside = inside and j.reference.coverage[0] <= turn <= j.reference.coverage[1]  # type: ignore[union-attr,index]
            cell = row.cells[lane[j.reference.id] if inside and j.reference is not None else -1]
            cell.marks.setdefault(system, []).append(mark)


def _mark(j: Judged) -> Mark:
    reasons = {
        None: "announced, does not fire" if j.action.status is Status.PENDING else "does not fire",
        Timing.EARLY: "early: before the window opened",
        Timing.ON_TIME: "on time: inside the window",
        Timing.LATE: "late: the window had closed",
        Timing.FALSE: "false: it fits nothing that was open",
        Timing.REPEAT: "repeat: it had been done",
        Timing.UNKNOWN: "not counted: its window is unknown",
        Timing.AFTER_EARLY: "not counted: it had fired early, and the log goes on as if it had not",
    }
    kind = PENDING if j.timing is None else MASKED if j.masked else j.timing.value
    return Mark(kind, reasons[j.timing])


def _window(reference: Reference, withdrawn: bool) -> tuple[str, str]:
    """(words, kind) of a reference's window."""
    if withdrawn:
        return "begun, then withdrawn by the user: nothing to do", "withdrawn"
    if reference.ready is None:
        return (
            f"window unknown{f' ({reference.null_reason})' if reference.null_reason else ''}: not counted",
            "unknown",
        )
    start, end = reference.ready
    return (f"at turn {start}" if start == end else f"at turns {start} to {end}"), "known"


def _outcomes(reference: Reference, played: Mapping[str, Played], withdrawn: bool) -> dict[str, Mark]:
    if withdrawn or reference.ready is None:
        return {}
    found = {}
    for system, run in played.items():
        turn, timing = run.first.get(reference.id, (0, None))
        found[system] = (
            Mark(MISSED, "missed")
            if timing is None
            else Mark(timing.value, f"{_words(timing)} at turn {turn}")
        )
    return found


def _words(timing: Timing) -> str:
    return timing.value.replace("_", " ")
