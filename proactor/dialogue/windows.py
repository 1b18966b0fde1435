"""Opportunity windows: what is open, ready, due or masked at a turn, and how much of a corpus is unknown.

Turns are 1-based; an agent decides after every user turn. A reference is *masked* when its ready window is
unknown: it is then neither right nor wrong to act on it, and it is counted under the reason.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from statistics import mean

from proactor.dialogue.dialogue import Dialogue, Interval, Reference, Status, Turn

_LETTER = re.compile(r"\w")


def open_at(dialogue: Dialogue, turn: int) -> tuple[Reference, ...]:
    """`R_u`: the references whose coverage contains `turn` [INFERRED, methods 1.5]. Masked ones are
    included.
    """
    return tuple(r for r in dialogue.references if r.coverage and r.coverage[0] <= turn <= r.coverage[1])


def ready_at(dialogue: Dialogue, turn: int) -> tuple[Reference, ...]:
    """References whose ready window contains `turn`."""
    return tuple(r for r in dialogue.references if r.ready and r.ready[0] <= turn <= r.ready[1])


def due_at(dialogue: Dialogue, turn: int) -> tuple[Reference, ...]:
    """References for which `turn` is the last decision point inside the ready window (`e_j = u` on user
    turns).
    """
    following = min((u for u in dialogue.decision_turns if u > turn), default=len(dialogue.turns) + 1)
    return tuple(r for r in ready_at(dialogue, turn) if r.ready and following > r.ready[1])


def masked_references(dialogue: Dialogue) -> tuple[Reference, ...]:
    """References whose window is unknown."""
    return tuple(r for r in dialogue.references if r.ready is None)


def width(reference: Reference) -> int | None:
    """Turns between the first and the last ready turn (0: a point), or None when the window is unknown."""
    return None if reference.ready is None else reference.ready[1] - reference.ready[0]


def status_at(reference: Reference, turn: int) -> Status | None:
    """PENDING before the ready window, READY inside it, None outside coverage, after the window, and when
    unknown.
    """
    if reference.coverage is None or reference.ready is None or not reference.coverage[0] <= turn:
        return None
    if turn < reference.ready[0]:
        return Status.PENDING
    return Status.READY if turn <= reference.ready[1] else None


def params_at(reference: Reference, turn: int) -> dict[str, str]:
    """The parameters whose values had been said by `turn`; from the ready window's start on also those never
    said literally.

    Never a value that is first said later: some corpora open a window before an optional value comes.
    """
    begun = reference.ready is not None and turn >= reference.ready[0]
    never = turn if begun else turn + 1
    return {
        name: value
        for name, value in reference.params.items()
        if reference.value_turns.get(name, never) <= turn
    }


def first_mention(turns: Sequence[Turn], spellings: Iterable[str]) -> int | None:
    """The first turn whose text holds one of `spellings` literally: any case, on word boundaries.

    Literal matching is optimistic: a value can be said by chance, or offered before it is chosen.
    """
    wanted = [(s.casefold().split()[0], _word_pattern(s)) for s in spellings if _LETTER.search(s)]
    for turn in turns:
        text = turn.text.casefold()
        if any(word in text and pattern.search(text) for word, pattern in wanted):
            return turn.index
    return None


@lru_cache(maxsize=65536)
def _word_pattern(spelling: str) -> re.Pattern[str]:
    words = r"\s+".join(re.escape(word) for word in spelling.casefold().split())
    return re.compile(rf"(?<!\w){words}(?!\w)")


def mentions(
    turns: Sequence[Turn], params: Mapping[str, str], variants: Mapping[str, Sequence[str]] | None = None
) -> tuple[dict[str, int], int | None]:
    """(first turn of each value said literally, first turn by which all had been said or None when one never
    was).
    """
    found: dict[str, int] = {}
    for name, value in params.items():
        turn = first_mention(turns, (value, *(variants or {}).get(name, ())))
        if turn is not None:
            found[name] = turn
    complete = len(found) == len(params)
    return found, (max(found.values(), default=1) if complete else None)


def snap(turns: Sequence[Turn], window: Interval) -> Interval | None:
    """`window` shrunk to decision points: from its first to its last user turn, None when it holds none.

    A window may start or end on an agent turn in the data; the agent can only decide after user turns.
    """
    inside = [t.index for t in turns if t.speaker == "user" and window[0] <= t.index <= window[1]]
    return (inside[0], inside[-1]) if inside else None


def as_points(dialogue: Dialogue) -> Dialogue:
    """`dialogue` with point labels, for comparison with windows [INFERRED: how the paper's SFT on points was
    labelled is not known].

    Each reference with a known window is labelled at one turn: the decision point at which the logged agent
    had its last chance before it acted (`observed_trigger`), where that lies inside coverage, else the end of
    the window. Coverage and ready window become that turn: nothing is pending before it and nothing late
    after it. Actions that the user began and withdrew go, since a log of triggers does not hold them. Unknown
    windows stay unknown.
    """
    known = tuple(
        r if r.ready is None else r.model_copy(update={"coverage": (u, u), "ready": (u, u)})
        for r in dialogue.references
        for u, _ in (point_of(dialogue, r),)
    )
    return dialogue.model_copy(update={"references": known, "withdrawn": ()})


def point_of(dialogue: Dialogue, reference: Reference) -> tuple[int, bool]:
    """The turn that `as_points` labels, and whether it is the logged trigger's; (0, False) where the window
    is unknown.
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
    """The last decision point at or before `turn`, None when there is none."""
    return max((u for u in dialogue.decision_turns if u <= turn), default=None)


def count(dialogues: Iterable[Dialogue]) -> dict[str, int]:
    """Counters of a corpus: dialogues, turns, decision turns, references, null (and why), width_0, wider,
    withdrawn.
    """
    counters: Counter[str] = Counter(
        dialogues=0, turns=0, decision_turns=0, references=0, null=0, width_0=0, wider=0
    )
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
    """Is `name` one of the counters of `count`?"""
    return name in (
        "dialogues",
        "turns",
        "decision_turns",
        "references",
        "width_0",
        "wider",
        "withdrawn",
        "null",
    ) or name.startswith("null_")


def mean_width(dialogues: Iterable[Dialogue]) -> float | None:
    """Mean width in turns over the known windows, None when there are none."""
    widths = [w for d in dialogues for r in d.references if (w := width(r)) is not None]
    return mean(widths) if widths else None
