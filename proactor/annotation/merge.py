"""Merges the marks of single turns into references with windows, and back (methods 1.3, [INFERRED]).

- *Linking*: a mark continues an action of its name whose values do not conflict with its own, and which is
  missing from at most `max_gap` decision turns since it was last listed. Among several it takes the one that
  shares most values, then the latest. A longer gap begins a new action. So does PENDING or READY after the
  turn at which the log has the action run, where it has another call to come that the values fit.
- *Values* accumulate until the action is ready. A later one is left out and counted (``value_after_ready``):
  the agent could not know it at the start of the window. A value of the log's is spelled as there.
- *Coverage* runs from the first to the last turn at which the action is listed, *ready* from the first to the
  last READY turn.
- *Assent*: for a tool that asks first, READY before the turn of the user's assent becomes PENDING
  (``ready_before_assent``). Where no mark names that turn, the annotator is trusted (the prompt demands
  PENDING until then) and the action counted (``assent_unknown``).
- *Monotone*: PENDING, READY, TRIGGERED never go back. A track that does is left out, and its turns are in
  `broken`, so that they can be asked again.
- An action that is never READY has no window: withdrawn if a mark says so, else masked as ``never_ready``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from proactor.annotation.logged import common_values, spelled_as_logged
from proactor.annotation.marks import NO_ASSENT, Mark, MarkStatus
from proactor.dialogue import Dialogue, Reference, Status, normalise
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.windows import decision_of, params_at, status_at

MAX_GAP = 1
"""Decision turns in a row from which an action may be missing and still be the same one."""


@dataclass(frozen=True, slots=True)
class MergedMarks:
    """``references`` and ``withdrawn`` as in a `Dialogue`, in the order of their coverage.

    ``broken``: turns of tracks whose status goes back. ``counters``: not_monotone, reopened, gap_filled,
    ready_before_assent, assent_unknown, value_after_ready, never_ready, withdrawn_only.
    """

    references: tuple[Reference, ...] = ()
    withdrawn: tuple[Reference, ...] = ()
    broken: tuple[int, ...] = ()
    counters: Counter[str] = field(default_factory=Counter)


@dataclass(slots=True)
class _Track:
    """One action as listed so far.

    ``places``: the indices of its turns among the decision turns. ``run``: the log has run it.
    """

    name: str
    places: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    marks: list[Mark] = field(default_factory=list)
    params: dict[str, str] = field(default_factory=dict)
    run: bool = False

    def add(self, place: int, turn: int, mark: Mark) -> None:
        self.places.append(place)
        self.turns.append(turn)
        self.marks.append(mark)
        for name, value in mark.params.items():
            self.params.setdefault(name, value)

    def shared(self, mark: Mark) -> int | None:
        """The number of common values; None where one conflicts."""
        both = self.params.keys() & mark.params.keys()
        if any(normalise(self.params[k]) != normalise(mark.params[k]) for k in both):
            return None
        return len(both)

    @property
    def withdrawn(self) -> bool:
        return self.marks[-1].status is MarkStatus.WITHDRAWN


def merge(
    dialogue: Dialogue, marks: Mapping[int, Sequence[Mark]], tools: Catalog, *, max_gap: int = MAX_GAP
) -> MergedMarks:
    """The references of a dialogue from its ``marks`` by decision turn; turns without any may be absent."""
    counters: Counter[str] = Counter()
    references: list[Reference] = []
    withdrawn: list[Reference] = []
    broken: set[int] = set()
    for track in _link_marks(dialogue, marks, max_gap, counters):
        statuses = _statuses(track, tools[track.name].confirm, counters)
        if any(a.rank > b.rank for a, b in pairwise(statuses)):
            counters["not_monotone"] += 1
            broken.update(track.turns)
            continue
        name = f"a{len(references) + len(withdrawn) + 1}"
        reference = _reference(dialogue, track, statuses, name, counters)
        if reference is not None:
            (withdrawn if reference.null_reason == "withdrawn" else references).append(reference)
    return MergedMarks(tuple(references), tuple(withdrawn), tuple(sorted(broken)), counters)


def _link_marks(
    dialogue: Dialogue, marks: Mapping[int, Sequence[Mark]], max_gap: int, counters: Counter[str]
) -> list[_Track]:
    """The tracks that the marks form (see *linking* above)."""
    tracks: list[_Track] = []
    log = [(a, decision_of(dialogue, a)) for a in (*dialogue.references, *dialogue.withdrawn)]
    for place, turn in enumerate(dialogue.decision_turns):
        taken: set[int] = set()
        # marks with many values first: one with few values fits more tracks
        for mark in sorted(marks.get(turn, ()), key=lambda m: -len(m.params)):
            best, rank, ended = None, (-1, -1), False
            for i, track in enumerate(tracks):
                if i in taken or track.name != mark.name or track.withdrawn:
                    continue
                if (common := track.shared(mark)) is None:
                    continue
                if track.run and _is_next_call(mark, turn, log):
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
        _note_run(tracks, turn, (action for action, decision in log if decision == turn))
    return tracks


def _is_next_call(mark: Mark, turn: int, log: Iterable[tuple[Reference, int | None]]) -> bool:
    """Whether ``mark``, which fits an action run before ``turn``, is of another one, run at it or after."""
    return mark.status in (MarkStatus.PENDING, MarkStatus.READY) and any(
        action.name == mark.name
        and (decision is None or decision >= turn)
        and common_values(action, mark.params) is not None
        for action, decision in log
    )


def _note_run(tracks: Sequence[_Track], turn: int, calls: Iterable[Reference]) -> None:
    """Note which of the actions listed at ``turn`` was run by each of the ``calls`` there: the most alike."""
    for call in calls:
        found, most = None, -1
        for track in tracks:
            if track.name == call.name and track.turns[-1] == turn and not track.run:
                common = common_values(call, track.params)
                if common is not None and common > most:
                    found, most = track, common
        if found is not None:
            found.run = True


def _statuses(track: _Track, confirm: bool, counters: Counter[str]) -> list[MarkStatus]:
    """The statuses of a track, with READY before the assent replaced by PENDING."""
    statuses = [mark.status for mark in track.marks]
    if not confirm or MarkStatus.READY not in statuses:
        return statuses
    assents = {mark.assent for mark in track.marks if mark.assent is not None}
    if not assents:
        counters["assent_unknown"] += 1
        return statuses
    agreed = min(assents - {NO_ASSENT}, default=max(track.turns) + 1)
    for i, (turn, status) in enumerate(zip(track.turns, statuses, strict=True)):
        if status is MarkStatus.READY and turn < agreed:
            statuses[i] = MarkStatus.PENDING
            counters["ready_before_assent"] += 1
    return statuses


def _reference(
    dialogue: Dialogue, track: _Track, statuses: Sequence[MarkStatus], name: str, counters: Counter[str]
) -> Reference | None:
    """The reference of a track; None where it is only ever withdrawn."""
    by_turn = list(zip(track.turns, statuses, strict=True))
    listed = [turn for turn, status in by_turn if status is not MarkStatus.WITHDRAWN]
    if not listed:
        counters["withdrawn_only"] += 1
        return None
    fires = [turn for turn, status in by_turn if status is MarkStatus.READY]
    params: dict[str, str] = {}
    for turn, mark in zip(track.turns, track.marks, strict=True):
        if not fires or turn <= fires[0]:
            params |= {key: value for key, value in mark.params.items() if key not in params}
    counters["value_after_ready"] += len(track.params.keys() - params.keys())
    reason = ""
    if not fires:
        reason = "withdrawn" if track.withdrawn else "never_ready"
    counters["never_ready"] += reason == "never_ready"
    reference = Reference(
        id=name,
        name=track.name,
        params=params,
        coverage=(listed[0], listed[-1]),
        ready=(fires[0], fires[-1]) if fires else None,
        null_reason=reason,
    )
    return spelled_as_logged(reference, dialogue)


def marks_of(dialogue: Dialogue) -> dict[int, tuple[Mark, ...]]:
    """The marks, by decision turn, of an annotator that knew the dialogue's own windows.

    PENDING with the values said so far before the window, READY in it, TRIGGERED after it; PENDING throughout
    where the window is unknown; WITHDRAWN at the first decision turn after the coverage of what was taken
    back. A reference without coverage gives no mark.
    """
    marks: dict[int, list[Mark]] = {turn: [] for turn in dialogue.decision_turns}
    for reference in (*dialogue.references, *dialogue.withdrawn):
        if reference.coverage is None:
            continue
        for turn in dialogue.decision_turns:
            if reference.coverage[0] <= turn <= reference.coverage[1]:
                marks[turn].append(_mark(reference, turn))
        if reference in dialogue.withdrawn:
            after = next((turn for turn in dialogue.decision_turns if turn > reference.coverage[1]), None)
            if after is not None:
                params = params_at(reference, after)
                marks[after].append(Mark(name=reference.name, status=MarkStatus.WITHDRAWN, params=params))
    return {turn: tuple(listed) for turn, listed in marks.items()}


def _mark(reference: Reference, turn: int) -> Mark:
    status = status_at(reference, turn)
    if status is None:
        status = Status.PENDING if reference.ready is None else Status.TRIGGERED
    params = params_at(reference, turn)
    evidence = sorted(
        {said for name, said in reference.value_turns.items() if name in params and said <= turn} | {turn}
    )
    return Mark(name=reference.name, status=MarkStatus(status.value), params=params, evidence=tuple(evidence))
