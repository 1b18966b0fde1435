"""Opportunity windows: references that are open, ready, due or masked at a turn, and counts over a corpus.

Turns are 1-based; an agent decides after every user turn. A reference is *masked* when its ready window is
unknown: acting on it is neither right nor wrong, and it is counted by reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean

from proactor.dialogue.dialogue import Dialogue, Interval, Reference, Status, Turn
from proactor.dialogue.literal import says

COUNTERS = (
    "dialogues",
    "turns",
    "decision_turns",
    "references",
    "null",
    "width_0",
    "wider",
    "withdrawn",
)
"""Counts of `count`; width_0 and wider: known windows of one turn, and of more."""


def open_at(dialogue: Dialogue, turn: int) -> tuple[Reference, ...]:
    """`R_u`: the references whose coverage contains ``turn``, masked ones included
    [INFERRED, methods 1.5]."""
    return tuple(r for r in dialogue.references if covers(r, turn))


def covers(reference: Reference, turn: int) -> bool:
    """Whether ``turn`` is in the coverage of ``reference``."""
    return reference.coverage is not None and reference.coverage[0] <= turn <= reference.coverage[1]


def unknown_at(dialogue: Dialogue, reference: Reference, turn: int) -> bool:
    """Whether the window of ``reference`` is unknown and a fire on it after ``turn`` may be right."""
    if reference.ready is not None:
        return False
    return covers(reference, turn) or decision_of(dialogue, reference) == turn


def ready_at(dialogue: Dialogue, turn: int) -> tuple[Reference, ...]:
    """References whose ready window contains ``turn``."""
    return tuple(r for r in dialogue.references if r.ready and r.ready[0] <= turn <= r.ready[1])


def due_at(dialogue: Dialogue, turn: int) -> tuple[Reference, ...]:
    """References whose last decision point in the ready window is ``turn`` (``e_j = u`` on user turns)."""
    following = min((u for u in dialogue.decision_turns if u > turn), default=len(dialogue.turns) + 1)
    return tuple(r for r in ready_at(dialogue, turn) if r.ready and following > r.ready[1])


def width(reference: Reference) -> int | None:
    """Turns between the first and the last ready turn (0: a point), or None when the window is unknown."""
    return None if reference.ready is None else reference.ready[1] - reference.ready[0]


def status_at(reference: Reference, turn: int) -> Status | None:
    """PENDING in coverage before the ready window, READY inside it, else None (also for unknown windows)."""
    if reference.coverage is None or reference.ready is None or not reference.coverage[0] <= turn:
        return None
    if turn < reference.ready[0]:
        return Status.PENDING
    return Status.READY if turn <= reference.ready[1] else None


def params_at(reference: Reference, turn: int) -> dict[str, str]:
    """The parameters whose values had been said by ``turn``; once the ready window has begun, also those
    never said literally.

    A value first said later is left out: some corpora open a window before an optional value comes.
    """
    begun = reference.ready is not None and turn >= reference.ready[0]
    return {
        name: value
        for name, value in reference.params.items()
        if (reference.value_turns[name] <= turn if name in reference.value_turns else begun)
    }


def first_mention(turns: Sequence[Turn], spellings: Iterable[str]) -> int | None:
    """The first turn whose text says one of ``spellings`` (`literal.says`).

    Literal matching is optimistic: a value may be said by chance, or offered before it is chosen.
    """
    wanted = tuple(spellings)
    return next((turn.index for turn in turns if any(says(turn.text, s) for s in wanted)), None)


def mentions(
    turns: Sequence[Turn], params: Mapping[str, str], variants: Mapping[str, Sequence[str]] | None = None
) -> tuple[dict[str, int], int | None]:
    """(first turn of each value said literally, first turn by which all had been said, else None)."""
    value_turns: dict[str, int] = {}
    for name, value in params.items():
        turn = first_mention(turns, (value, *(variants or {}).get(name, ())))
        if turn is not None:
            value_turns[name] = turn
    complete = len(value_turns) == len(params)
    return value_turns, (max(value_turns.values(), default=1) if complete else None)


def snap(turns: Sequence[Turn], window: Interval) -> Interval | None:
    """``window`` from its first to its last user turn, None when it has none.

    In the data a window may start or end on an agent turn; the agent decides only after user turns.
    """
    inside = [t.index for t in turns if t.speaker == "user" and window[0] <= t.index <= window[1]]
    return (inside[0], inside[-1]) if inside else None


def as_points(dialogue: Dialogue) -> Dialogue:
    """``dialogue`` with point labels, for comparison with windows [INFERRED: the paper does not say how its
    SFT on points was labelled].

    Coverage and ready window of each reference with a known window become one turn, that of `point_of`:
    nothing is pending before it and nothing late after it. Withdrawn actions are dropped, since a log of
    triggers does not hold them. Unknown windows stay unknown.
    """
    references = []
    for reference in dialogue.references:
        if reference.ready is not None:
            turn, _ = point_of(dialogue, reference)
            reference = reference.model_copy(update={"coverage": (turn, turn), "ready": (turn, turn)})
        references.append(reference)
    return dialogue.model_copy(update={"references": tuple(references), "withdrawn": ()})


def point_of(dialogue: Dialogue, reference: Reference) -> tuple[int, bool]:
    """(turn of the point label, whether it is the logged trigger's); (0, False) for an unknown window.

    The turn is the last decision point before the logged agent acted (`observed_trigger`), where that lies
    inside coverage, else the last decision point of the window.
    """
    if reference.ready is None or reference.coverage is None:
        return 0, False
    first, last = reference.coverage
    if reference.observed_trigger is not None and reference.observed_trigger <= last:
        logged = last_decision(dialogue, reference.observed_trigger)
        if logged is not None and logged >= first:
            return logged, True
    end = last_decision(dialogue, reference.ready[1])
    return (reference.ready[1] if end is None or end < first else end), False


def last_decision(dialogue: Dialogue, turn: int) -> int | None:
    """The last decision point at or before ``turn``, None when there is none."""
    return max((u for u in dialogue.decision_turns if u <= turn), default=None)


def decision_of(dialogue: Dialogue, reference: Reference) -> int | None:
    """The decision point at which the logged agent acted: the last one up to `observed_trigger`, which may be
    a turn of the agent's. 0 when it acted before any, None when it did not act.
    """
    if reference.observed_trigger is None:
        return None
    return last_decision(dialogue, reference.observed_trigger) or 0


def turns_won(dialogue: Dialogue, reference: Reference, turn: int) -> int | None:
    """Turns by which a fire at ``turn`` comes before the logged agent's decision (`decision_of`); None where
    that agent did not act, or acted earlier.
    """
    logged = decision_of(dialogue, reference)
    return None if logged is None or logged < turn else logged - turn


def count(dialogues: Iterable[Dialogue]) -> dict[str, int]:
    """Counters of a corpus: `COUNTERS`, and null_<reason> of the references with an unknown window."""
    counters: Counter[str] = Counter(dict.fromkeys(COUNTERS, 0))
    for dialogue in dialogues:
        counters["dialogues"] += 1
        counters["turns"] += len(dialogue.turns)
        counters["decision_turns"] += len(dialogue.decision_turns)
        counters["references"] += len(dialogue.references)
        counters["withdrawn"] += len(dialogue.withdrawn)
        for reference in dialogue.references:
            span = width(reference)
            if span is None:
                counters["null"] += 1
                counters[f"null_{reference.null_reason or 'unknown'}"] += 1
            else:
                counters["width_0" if span == 0 else "wider"] += 1
    return dict(counters)


def is_counter(name: str) -> bool:
    """Whether ``name`` is one of the counters of `count`."""
    return name in COUNTERS or name.startswith("null_")


def mean_width(dialogues: Iterable[Dialogue]) -> float | None:
    """Mean width in turns over the known windows, None when there are none."""
    widths = [w for d in dialogues for r in d.references if (w := width(r)) is not None]
    return mean(widths) if widths else None
