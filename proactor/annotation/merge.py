"""Marks of single turns become references with windows, and back (methods 1.3, [INFERRED]).

- *Linking*: a mark continues an action of its name that was listed not longer ago than `max_gap` decision
  turns before and has no other value for a parameter; among several, the one that shares most values, then
  the latest. A longer gap begins a new action.
- *Values* add up until the action is ready; one that comes only later is left out and counted
  (`value_after_ready`): at the start of the window the agent could not have known it.
- *Coverage* runs from the first to the last turn at which the action is listed, *ready* from the first to the
  last READY turn.
- *Assent*: for a tool that asks first, READY before the turn of the user's assent is PENDING
  (`ready_before_assent`). Where no mark names that turn the annotator is believed (the prompt asks for
  PENDING until then), and counted (`assent_unknown`).
- *Monotone*: PENDING, READY, TRIGGERED never go back. A track that does is reported (`broken`) so that its
  turns can be asked again, and left out.
- An action never READY has no window: withdrawn when a mark says so, else masked as `never_ready`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from proactor.annotation.marks import NO_ASSENT, Mark, MarkStatus
from proactor.dialogue import Dialogue, Reference, Status, normalise
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.windows import mentions, params_at, status_at

MAX_GAP = 1
"""Decision turns at which an action may be missing from the lists and still be the same one."""


@dataclass(frozen=True, slots=True)
class Merged:
    """`references` and `withdrawn` as in a `Dialogue`, in the order of their coverage. `broken`: turns of
    tracks that go back. `counters`: not_monotone, reopened, gap_filled, ready_before_assent, assent_unknown,
    value_after_ready, never_ready, withdrawn_only.
    """

    references: tuple[Reference, ...] = ()
    withdrawn: tuple[Reference, ...] = ()
    broken: tuple[int, ...] = ()
    counters: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Track:
    """One action as listed so far; ``places``: positions among the decision turns."""

    name: str
    places: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)

    def add(self, place: int, turn: int, mark: Mark) -> None:
        self.places.append(place)
        self.turns.append(turn)
        self.marks.append(mark)
        for name, value in mark.params.items():
            self.params.setdefault(name, value)

    def shared(self, mark: Mark) -> int | None:
        """Values in common, None where one conflicts."""
        both = self.params.keys() & mark.params.keys()
        return (
            len(both) if all(normalise(self.params[k]) == normalise(mark.params[k]) for k in both) else None
        )

    @property
    def withdrawn(self) -> bool:
        return self.marks[-1].status is MarkStatus.WITHDRAWN


def merge(
    dialogue: Dialogue, marks: Mapping[int, Sequence[Mark]], tools: Catalog, *, max_gap: int = MAX_GAP
) -> Merged:
    """References from the marks of the decision turns (``marks``: turn -> what was listed there; turns
    without are empty).
    """
    counters: Counter[str] = Counter()
    references: list[Reference] = []
    withdrawn: list[Reference] = []
    broken: set[int] = set()
    for track in _linked(dialogue.decision_turns, marks, max_gap, counters):
        statuses = _statuses(track, tools[track.name].confirm, counters)
        if any(a.rank > b.rank for a, b in pairwise(statuses)):
            counters["not_monotone"] += 1
            broken.update(track.turns)
            continue
        reference = _reference(
            dialogue, track, statuses, f"a{len(references) + len(withdrawn) + 1}", counters
        )
        if reference is not None:
            (withdrawn if reference.null_reason == "withdrawn" else references).append(reference)
    return Merged(tuple(references), tuple(withdrawn), tuple(sorted(broken)), counters)


def _linked(
    decisions: Sequence[int], marks: Mapping[int, Sequence[Mark]], max_gap: int, counters: Counter[str]
) -> list[_Track]:
    tracks: list[_Track] = []
    for place, turn in enumerate(decisions):
        taken: set[int] = set()
        # a mark with many values chooses first: one with few fits more tracks
        for mark in sorted(marks.get(turn, ()), key=lambda m: -len(m.params)):
            best, rank, ended = None, (-1, -1), False
            for i, track in enumerate(tracks):
                common = track.shared(mark)
                if i in taken or track.name != mark.name or common is None or track.withdrawn:
                    continue
                if place - track.places[-1] > max_gap + 1:
                    ended = True
                elif (common, track.places[-1]) > rank:
                    best, rank = i, (common, track.places[-1])
            if best is None:
                counters["reopened"] += ended
                best = len(tracks)
                tracks.append(_Track(mark.name))
            elif place - tracks[best].places[-1] > 1:
                counters["gap_filled"] += 1
            tracks[best].add(place, turn, mark)
            taken.add(best)
    return tracks


def _statuses(track: _Track, confirm: bool, counters: Counter[str]) -> list[MarkStatus]:
    """The statuses of a track, READY before the assent turned into PENDING."""
    found = [mark.status for mark in track.marks]
    if not confirm or MarkStatus.READY not in found:
        return found
    told = {mark.assent for mark in track.marks if mark.assent is not None}
    turns = told - {NO_ASSENT}
    if not told:
        counters["assent_unknown"] += 1
        return found
    agreed = min(turns) if turns else max(track.turns) + 1
    for i, (turn, status) in enumerate(zip(track.turns, found, strict=True)):
        if status is MarkStatus.READY and turn < agreed:
            found[i] = MarkStatus.PENDING
            counters["ready_before_assent"] += 1
    return found


def _reference(
    dialogue: Dialogue, track: _Track, statuses: Sequence[MarkStatus], name: str, counters: Counter[str]
) -> Reference | None:
    listed = [
        turn for turn, status in zip(track.turns, statuses, strict=True) if status is not MarkStatus.WITHDRAWN
    ]
    if not listed:
        counters["withdrawn_only"] += 1
        return None
    fires = [turn for turn, status in zip(track.turns, statuses, strict=True) if status is MarkStatus.READY]
    params: dict[str, str] = {}
    for turn, mark in zip(track.turns, track.marks, strict=True):
        if not fires or turn <= fires[0]:
            params |= {key: value for key, value in mark.params.items() if key not in params}
    counters["value_after_ready"] += len(track.params.keys() - params.keys())
    reason = "" if fires else "withdrawn" if track.withdrawn else "never_ready"
    counters["never_ready"] += reason == "never_ready"
    said, seen = mentions(dialogue.turns, params)
    return Reference(
        id=name,
        name=track.name,
        params=params,
        coverage=(listed[0], listed[-1]),
        ready=(fires[0], fires[-1]) if fires else None,
        value_turns=said,
        values_seen=seen,
        null_reason=reason,
    )


def marks_of(dialogue: Dialogue) -> dict[int, tuple[Mark, ...]]:
    """The marks that would give the dialogue's own windows, by decision turn: what an annotator that knew
    them would say.

    PENDING with the values said so far before the window, READY in it, TRIGGERED after it; PENDING all along
    where the window is unknown; WITHDRAWN at the first decision turn after the coverage of what was taken
    back. A reference without coverage leaves no mark.
    """
    found: dict[int, list[Mark]] = {turn: [] for turn in dialogue.decision_turns}
    for reference in (*dialogue.references, *dialogue.withdrawn):
        if reference.coverage is None:
            continue
        for turn in dialogue.decision_turns:
            if reference.coverage[0] <= turn <= reference.coverage[1]:
                found[turn].append(_mark(reference, turn))
        if reference in dialogue.withdrawn:
            after = next((turn for turn in dialogue.decision_turns if turn > reference.coverage[1]), None)
            if after is not None:
                params = params_at(reference, after)
                found[after].append(Mark(name=reference.name, status=MarkStatus.WITHDRAWN, params=params))
    return {turn: tuple(listed) for turn, listed in found.items()}


def _mark(reference: Reference, turn: int) -> Mark:
    status = status_at(reference, turn)
    if status is None:
        status = Status.PENDING if reference.ready is None else Status.TRIGGERED
    params = params_at(reference, turn)
    evidence = sorted(
        {said for name, said in reference.value_turns.items() if name in params and said <= turn} | {turn}
    )
    return Mark(name=reference.name, status=MarkStatus(status.value), params=params, evidence=tuple(evidence))
