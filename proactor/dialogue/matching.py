"""Matching of a proposed action to the references: its similarity, and a timing class for a fire.

Methods 1.5: classes and directions [NOTES], bodies [INFERRED]. The rest is our choice [INFERRED]:

- A READY action matches the most similar reference of its name whose coverage contains the turn and that
  accepts it by the `MatchRule`. Ties go to a reference not yet fired, then to the better timing class.
- Two rules are in use. By similarity: at least half of the values are right (AC, PT, FTR, RAR, PRI, rewards,
  boards). Exact: every required value is right (the headline metrics, calibration).
- An action that belongs to a reference with an unknown window is masked and counted: neither right nor wrong.
  Which actions these are is decided by similarity under both rules, so that both count the same fires: those
  nearer to such a reference than to any with a known window, and of those as near to both, the ones at a turn
  at which the unknown window may lie and no known one is open.
- A PENDING action may also match an action that the user later withdrew: at that turn nothing tells the two
  apart. A READY one may not, so firing on it is false.
- A reference is used up by its first fire. A repeat is false, except after an early fire: the logged
  conversation then goes on as if nothing had happened, so from there on the action is masked and counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from proactor.dialogue.catalog import Catalog
from proactor.dialogue.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.parse import collapse
from proactor.dialogue.windows import covers, open_at, unknown_at

THETA = 0.5
"""Least similarity at which a READY action counts as the reference's action [INFERRED]."""


@dataclass(frozen=True, slots=True)
class MatchRule:
    """Which action counts as a reference's action [INFERRED]; the tool is the same in any case.

    ``required`` None: by similarity, which must reach ``theta`` and exceed 0. Otherwise exact: every required
    value is right, as `Reference.accepts` compares. ``required`` holds the required parameters by tool. Where
    the reference knows none of them (the tool is unknown or requires nothing, or the labels lack them), all
    values that it knows are required, so that the tool's name alone is not enough. Other values count only
    with ``optional``: then all values of the action and of the reference must agree. ``tolerant``: tools
    matched by similarity all the same.

    A required value that the reference does not know need not be given. A given one is wrong if the reference
    knows another required value of the tool: its labels have values, so this one is invented. If it knows
    none, there is nothing to compare with, and any value passes.
    """

    theta: float = THETA
    required: Mapping[str, frozenset[str]] | None = None
    optional: bool = False
    tolerant: frozenset[str] = frozenset()

    def accepts(self, action: Action, reference: Reference) -> bool:
        """Whether ``action`` counts as the action of ``reference``."""
        if action.name != reference.name:
            return False
        if self.required is None or action.name in self.tolerant:
            value = similarity(action, reference)
            return value > 0.0 and value >= self.theta
        if self.optional:
            return similarity(action, reference) == 1.0
        required = self.required.get(reference.name, frozenset())
        known = required & reference.params.keys()
        needed = known or reference.params.keys()
        if not all(name in action.params and reference.accepts(name, action.params[name]) for name in needed):
            return False
        return not known or action.params.keys().isdisjoint(required - known)

    @property
    def by_similarity(self) -> MatchRule:
        """The similarity rule with the same ``theta``."""
        return MatchRule(self.theta)


SIMILAR = MatchRule()
"""At least half of the values are right."""

EXACT = MatchRule(required={})
"""Every value of the reference is right: the exact rule without a catalog."""


def exact_rule(catalog: Catalog, *, optional: bool = False) -> MatchRule:
    """The exact rule with the required parameters of ``catalog``; ``optional``: optional values count too."""
    return MatchRule(required={t.name: frozenset(t.required) for t in catalog.tools}, optional=optional)


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
class ClassifiedAction:
    """One proposed action. ``similarity``: to the nearest open reference. ``timing``: None for an action that
    does not fire and is not masked. ``reference``: its match by the rule; a PENDING action may match one
    withdrawn later. ``meant``: for a FALSE fire, the reference that it matches by similarity, where the rule
    refuses its values.
    """

    action: Action
    similarity: float
    timing: Timing | None
    reference: Reference | None = None
    meant: Reference | None = None

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


def classify(
    dialogue: Dialogue,
    turn: int,
    actions: Iterable[Action],
    *,
    fired: Mapping[str, Timing] | None = None,
    rule: MatchRule = SIMILAR,
) -> list[ClassifiedAction]:
    """Classify the actions proposed at ``turn``. Duplicates are collapsed, the order is kept.

    ``fired``: reference id -> class of its first fire. These references are no longer open: a further fire on
    one, or a second fire on one in the same turn, is a REPEAT (AFTER_EARLY when the first was early). None:
    the form that counts repeats, in which no reference is used up.
    """
    used = dict(fired or {})
    covering = [r for r in open_at(dialogue, turn) if r.ready is not None]
    live = [r for r in covering if r.id not in used]
    begun = [r for r in dialogue.withdrawn if covers(r, turn)]
    order = list(enumerate(collapse(actions)))
    # The best match of a turn takes its reference first, in whatever order the agent wrote.
    order.sort(key=lambda item: -_nearest(item[1], live))
    classified: dict[int, ClassifiedAction] = {}
    for position, action in order:
        fires = action.status is Status.READY
        match = _match(action, turn, covering, used, rule)
        nearest = _nearest(action, live if fires else [*live, *begun])
        if _belongs_to_unknown(action, dialogue, turn, rule.theta):
            classified[position] = ClassifiedAction(action, nearest, Timing.UNKNOWN)
        elif match is not None and used.get(match.id) is Timing.EARLY:
            classified[position] = ClassifiedAction(action, nearest, Timing.AFTER_EARLY, match)
        elif not fires:
            classified[position] = ClassifiedAction(
                action, nearest, None, match or _match(action, turn, begun, used, rule)
            )
        elif match is None:
            timing = _timing_unmatched(action, dialogue, used, rule)
            meant = _match(action, turn, covering, used, rule.by_similarity)
            classified[position] = ClassifiedAction(action, nearest, timing, meant=meant)
        else:
            timing = Timing.REPEAT if match.id in used else timing_at(match, turn)
            classified[position] = ClassifiedAction(action, nearest, timing, match)
            if fired is not None:
                used.setdefault(match.id, timing)
    return [classified[position] for position in sorted(classified)]


def first_fires(
    dialogue: Dialogue, outputs: Mapping[int, Iterable[Action]], rule: MatchRule = EXACT
) -> Iterator[tuple[int, ClassifiedAction]]:
    """(turn, fire) of each READY action of a dialogue played through, in order. Repeats are false, masked
    fires are left out.
    """
    fired: dict[str, Timing] = {}
    for turn, actions in sorted(outputs.items()):
        for fire in classify(dialogue, turn, actions, fired=fired, rule=rule):
            if fire.timing is None or fire.masked:
                continue
            if fire.reference is not None:
                fired.setdefault(fire.reference.id, fire.timing)
            yield turn, fire


def _nearest(action: Action, references: Sequence[Reference]) -> float:
    return max((similarity(action, r) for r in references), default=0.0)


def _match(
    action: Action, turn: int, references: Sequence[Reference], used: Mapping[str, Timing], rule: MatchRule
) -> Reference | None:
    best: Reference | None = None
    best_rank = (0.0, False, -1)
    for reference in references:
        if not rule.accepts(action, reference):
            continue
        rank = (
            similarity(action, reference),
            reference.id not in used,
            _PREFERENCE.get(timing_at(reference, turn), 0),
        )
        if rank > best_rank:
            best, best_rank = reference, rank
    return best


def _belongs_to_unknown(action: Action, dialogue: Dialogue, turn: int, theta: float) -> bool:
    """Whether the action is nearer to a reference with an unknown window than to any with a known one, or as
    near and at a turn of the unknown one alone.
    """
    near = [(similarity(action, r), r) for r in dialogue.references if r.name == action.name]
    unknown = max((value for value, r in near if r.ready is None), default=None)
    if unknown is None:
        return False
    known = max((value for value, r in near if r.ready is not None), default=0.0)
    if known < theta or unknown != known:
        return known < theta or unknown > known
    tied = [r for value, r in near if value == known]
    here = [r for r in tied if covers(r, turn) or unknown_at(dialogue, r, turn)]
    return bool(here) and all(r.ready is None for r in here)


def _timing_unmatched(
    action: Action, dialogue: Dialogue, used: Mapping[str, Timing], rule: MatchRule
) -> Timing:
    """FALSE, or AFTER_EARLY where the action fired early and its coverage has since ended."""
    early = [r for r in dialogue.references if used.get(r.id) is Timing.EARLY]
    return Timing.AFTER_EARLY if any(rule.accepts(action, r) for r in early) else Timing.FALSE
