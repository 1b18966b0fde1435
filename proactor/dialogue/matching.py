"""Matching of a proposed action to the references: its similarity, and a timing class for a fire.

Methods 1.5: classes and directions [NOTES], bodies [INFERRED]. The rest is our choice [INFERRED]:

- A READY action matches the most similar reference of its name whose coverage contains the turn and whose
  similarity reaches `theta`. Ties go to a reference not yet fired, then to the better timing class.
- An action that belongs to a reference with an unknown window is masked and counted: neither right nor wrong.
- A PENDING action may also match an action that the user later withdrew: at that turn nothing tells the two
  apart. A READY one may not, so firing on it is false.
- A reference is used up by its first fire. A repeat is false, except after an early fire: the logged
  conversation then goes on as if nothing had happened, so from there on the action is masked and counted.
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
    """Class of a READY action at turn u, with coverage (o, c) and ready window (s, e); then the masks."""

    EARLY = "early"  # o <= u < s
    ON_TIME = "on_time"  # s <= u <= e
    LATE = "late"  # e < u <= c
    FALSE = "false"  # no reference
    REPEAT = "repeat"  # a reference already fired
    UNKNOWN = "unknown"
    AFTER_EARLY = "after_early"


HITS = (Timing.EARLY, Timing.ON_TIME)
"""Fires before or in the ready window [NOTES], right for PT, precision, recall and first-fire F1."""

MASKS = (Timing.UNKNOWN, Timing.AFTER_EARLY)
"""Classes that leave every numerator and denominator."""

_PREFERENCE = {Timing.ON_TIME: 3, Timing.EARLY: 2, Timing.LATE: 1}


@dataclass(frozen=True, slots=True)
class Judged:
    """One proposed action. ``similarity``: to the nearest open reference. ``timing``: None if it neither
    fires nor is masked. ``reference``: its match at `theta`; for PENDING also an action withdrawn later.
    """

    action: Action
    similarity: float
    timing: Timing | None
    reference: Reference | None = None

    @property
    def masked(self) -> bool:
        """Whether the action leaves every numerator and denominator."""
        return self.timing in MASKS


def similarity(action: Action, reference: Reference) -> float:
    """0 for different names, else equal values / union of keys; 1 when neither has parameters [INFERRED]."""
    if action.name != reference.name:
        return 0.0
    keys = action.params.keys() | reference.params.keys()
    if not keys:
        return 1.0
    return sum(reference.accepts(k, v) for k, v in action.params.items()) / len(keys)


def timing_at(reference: Reference, turn: int) -> Timing:
    """The class of a first fire on ``reference`` at ``turn``."""
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
    """Classify the actions proposed at ``turn``. Duplicates are collapsed, the order is kept.

    ``fired``: reference id -> class of its first fire. These references are no longer open: a further fire on
    one, or a second fire on one in the same turn, is a REPEAT (AFTER_EARLY when the first was early). None:
    the form that counts repeats, in which no reference is used up.
    """
    used = dict(fired or {})
    covering = [r for r in open_at(dialogue, turn) if r.ready is not None]
    live = [r for r in covering if r.id not in used]
    begun = [r for r in dialogue.withdrawn if r.coverage and r.coverage[0] <= turn <= r.coverage[1]]
    order = list(enumerate(collapse(actions)))
    # The best match of a turn takes its reference first, in whatever order the agent wrote.
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
            judged[position] = Judged(action, nearest, _timing_unmatched(action, dialogue, used, theta))
        else:
            timing = Timing.REPEAT if match.id in used else timing_at(match, turn)
            judged[position] = Judged(action, nearest, timing, match)
            if fired is not None:
                used.setdefault(match.id, timing)
    return [judged[position] for position in sorted(judged)]


def first_fires(
    dialogue: Dialogue, outputs: Mapping[int, Iterable[Action]], theta: float = THETA
) -> Iterator[tuple[int, Judged]]:
    """(turn, fire) of each READY action of a dialogue played through, in order. Repeats are false, masked
    fires are left out.
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
    """Whether the action is nearer to a reference with an unknown window than to any with a known one."""
    unknown = [r for r in dialogue.references if r.ready is None and r.name == action.name]
    if not unknown:
        return False
    known = _nearest(action, [r for r in dialogue.references if r.ready is not None])
    return known < theta or _nearest(action, unknown) > known


def _timing_unmatched(action: Action, dialogue: Dialogue, used: Mapping[str, Timing], theta: float) -> Timing:
    """FALSE, or AFTER_EARLY where the action fired early and its coverage has since ended."""
    early = [r for r in dialogue.references if used.get(r.id) is Timing.EARLY]
    return Timing.AFTER_EARLY if early and _nearest(action, early) >= theta else Timing.FALSE
