"""How one proposed action stands to what the dialogue calls for: similarity, and a timing class for a fire.

Methods 1.5: classes and directions [NOTES], bodies [INFERRED]. Choices where the methods leave room, all
[INFERRED]:
- A READY action is matched to the most similar reference of its name among those whose coverage contains the
  turn and whose similarity reaches `theta`; ties go to one not yet fired, then to the better timing class.
- An action that belongs to a reference with an unknown window is masked: neither right nor wrong, and
  counted.
- A PENDING action may also be similar to one that the user later withdrew: at that turn nothing told them
  apart. A READY one may not, so firing on it is false.
- A reference is used up by its first fire. A repeat is false, except after an early fire: the logged
  conversation then goes on as if nothing had happened, so the action is masked from there on, and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from proactor.dialogue.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.parse import collapse
from proactor.dialogue.windows import open_at

THETA = 0.5
"""Least similarity at which a READY action counts as the reference's action [INFERRED]."""


class Timing(StrEnum):
    """A READY action at turn u against its reference: o <= u < s, s <= u <= e, e < u <= c, none, one already
    used up; then the masks.
    """

    EARLY = "early"
    ON_TIME = "on_time"
    LATE = "late"
    FALSE = "false"
    REPEAT = "repeat"
    UNKNOWN = "unknown"
    AFTER_EARLY = "after_early"


HITS = (Timing.EARLY, Timing.ON_TIME)
"""Ready no later than the ready window [NOTES]: what PT, precision, recall and first-fire F1 count as
right.
"""

MASKS = (Timing.UNKNOWN, Timing.AFTER_EARLY)
"""Classes that leave every numerator and denominator."""

_PREFERENCE = {Timing.ON_TIME: 3, Timing.EARLY: 2, Timing.LATE: 1}


@dataclass(frozen=True, slots=True)
class Judged:
    """One proposed action. `similarity`: to the nearest open reference. `timing`: None for an action that
    does not fire and is not masked. `reference`: what it was matched to at `theta`, for a PENDING action
    possibly one later withdrawn.
    """

    action: Action
    similarity: float
    timing: Timing | None
    reference: Reference | None = None

    @property
    def masked(self) -> bool:
        return self.timing in MASKS


def similarity(action: Action, reference: Reference) -> float:
    """0 for different names, else the share of equal values over the union of keys; 1 when neither has any
    [INFERRED].
    """
    if action.name != reference.name:
        return 0.0
    keys = action.params.keys() | reference.params.keys()
    if not keys:
        return 1.0
    return sum(reference.accepts(k, v) for k, v in action.params.items()) / len(keys)


def timing_at(reference: Reference, turn: int) -> Timing:
    """The class of a first fire at `turn`."""
    if reference.ready is None or reference.coverage is None:
        return Timing.UNKNOWN
    if not reference.coverage[0] <= turn <= reference.coverage[1]:
        return Timing.FALSE
    if turn < reference.ready[0]:
        return Timing.EARLY
    return Timing.ON_TIME if turn <= reference.ready[1] else Timing.LATE


def judge(
    dialogue: Dialogue,
    turn: int,
    actions: Iterable[Action],
    *,
    fired: Mapping[str, Timing] | None = None,
    theta: float = THETA,
) -> list[Judged]:
    """Class each action proposed at `turn`; duplicates are collapsed, the order is kept.

    `fired`: reference id -> class of its first fire, for what was already triggered. Those are no longer
    open; a further fire on one, or the second fire on one in the same turn, is a REPEAT (AFTER_EARLY when the
    first was early). None: the form that counts repeats, in which nothing is ever used up.
    """
    used = dict(fired or {})
    covering = [r for r in open_at(dialogue, turn) if r.ready is not None]
    live = [r for r in covering if r.id not in used]
    begun = [r for r in dialogue.withdrawn if r.coverage and r.coverage[0] <= turn <= r.coverage[1]]
    order = list(enumerate(collapse(actions)))
    # The best match of a turn takes its reference first, whatever the order in which the agent wrote.
    order.sort(key=lambda item: -_nearest(item[1], live))
    judged: dict[int, Judged] = {}
    for position, action in order:
        fires = action.status is Status.READY
        match = _match(action, turn, covering, used, theta)
        nearest = _nearest(action, live if fires else [*live, *begun])
        if _belongs_to_unknown(action, dialogue, theta):
            judged[position] = Judged(action, nearest, Timing.UNKNOWN)
        elif match is not None and used.get(match.id) is Timing.EARLY:
            judged[position] = Judged(action, nearest, Timing.AFTER_EARLY, match)
        elif not fires:
            judged[position] = Judged(
                action, nearest, None, match or _match(action, turn, begun, used, theta)
            )
        elif match is None:
            judged[position] = Judged(action, nearest, _unmatched(action, dialogue, used, theta))
        else:
            timing = Timing.REPEAT if match.id in used else timing_at(match, turn)
            judged[position] = Judged(action, nearest, timing, match)
            if fired is not None:
                used.setdefault(match.id, timing)
    return [judged[position] for position in sorted(judged)]


def first_fires(
    dialogue: Dialogue, outputs: Mapping[int, Iterable[Action]], theta: float = THETA
) -> Iterator[tuple[int, Judged]]:
    """(turn, fire) for each READY action of a dialogue played through, in order, masked ones left out: the
    form in which a repeat is false.
    """
    fired: dict[str, Timing] = {}
    for turn, actions in sorted(outputs.items()):
        for judged in judge(dialogue, turn, actions, fired=fired, theta=theta):
            if judged.timing is None or judged.masked:
                continue
            if judged.reference is not None:
                fired.setdefault(judged.reference.id, judged.timing)
            yield turn, judged


def _nearest(action: Action, references: Sequence[Reference]) -> float:
    return max((similarity(action, r) for r in references), default=0.0)


def _match(
    action: Action, turn: int, references: Sequence[Reference], used: Mapping[str, Timing], theta: float
) -> Reference | None:
    best: Reference | None = None
    best_rank = (theta, False, -1)
    for reference in references:
        rank = (
            similarity(action, reference),
            reference.id not in used,
            _PREFERENCE.get(timing_at(reference, turn), 0),
        )
        if rank > best_rank and rank[0] > 0.0:
            best, best_rank = reference, rank
    return best


def _belongs_to_unknown(action: Action, dialogue: Dialogue, theta: float) -> bool:
    """Is the action nearer to a reference with an unknown window than to any with a known one?"""
    unknown = [r for r in dialogue.references if r.ready is None and r.name == action.name]
    if not unknown:
        return False
    known = _nearest(action, [r for r in dialogue.references if r.ready is not None])
    return known < theta or _nearest(action, unknown) > known


def _unmatched(action: Action, dialogue: Dialogue, used: Mapping[str, Timing], theta: float) -> Timing:
    """False, unless it is an action that had fired early and whose coverage has since ended."""
    early = [r for r in dialogue.references if used.get(r.id) is Timing.EARLY]
    return Timing.AFTER_EARLY if early and _nearest(action, early) >= theta else Timing.FALSE
