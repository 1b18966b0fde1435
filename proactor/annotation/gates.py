"""Quality gates that annotated windows must pass (methods 1.3, [INFERRED]).

G1: validity of the annotator's entries, by dialogue. G2: recall of logged triggers, by dialogue, where there
are logs. G3: agreement of the annotator with itself on a sample, by corpus. G4: causality, by reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from proactor.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.matching import similarity
from proactor.dialogue.windows import decision_of

VALIDITY = 0.98
TRIGGER_RECALL = 0.9
SELF_AGREEMENT = 0.7
SECOND_READING = 0.05
"""Share of the dialogues that are annotated twice, for G3."""


@dataclass(frozen=True, slots=True)
class Trigger:
    """An action that the logged agent ran; ``turn`` is its decision point, 0 before the user spoke."""

    name: str
    params: dict[str, str]
    turn: int


def logged_triggers(dialogue: Dialogue) -> tuple[Trigger, ...]:
    """The actions that the log says were run, whatever the dialogue's windows."""
    return tuple(
        Trigger(r.name, r.params, turn)
        for r in dialogue.references
        if (turn := decision_of(dialogue, r)) is not None
    )


def is_valid(entries: int, well_formed: int, least: float = VALIDITY) -> bool:
    """Gate G1: at least ``least`` of the entries follow the schema; a dialogue without entries passes."""
    return entries == 0 or well_formed / entries >= least


def match_triggers(
    references: Sequence[Reference], logged: Sequence[Trigger]
) -> tuple[tuple[Reference, ...], float | None]:
    """Gate G2: (the references with their triggers, the recall of ``logged`` or None without logs).

    A trigger is recalled if it lies in the coverage of a reference of its name. It is stored with the
    reference of most similar parameters that has no trigger yet.
    """
    stored: dict[int, int] = {}
    hits = 0
    for trigger in logged:
        action = Action(name=trigger.name, params=trigger.params, status=Status.TRIGGERED)
        inside = [(similarity(action, r), -i) for i, r in enumerate(references) if _covers(r, trigger)]
        hits += bool(inside)
        free = [pair for pair in inside if -pair[1] not in stored]
        if free:
            stored[-max(free)[1]] = trigger.turn
    kept = tuple(
        r.model_copy(update={"observed_trigger": stored[i]}) if i in stored else r
        for i, r in enumerate(references)
    )
    return kept, hits / len(logged) if logged else None


def uncovered_triggers(references: Sequence[Reference], logged: Sequence[Trigger]) -> tuple[Trigger, ...]:
    """The triggers that lie in the coverage of no reference of their name: those that gate G2 counts."""
    return tuple(t for t in logged if not any(_covers(r, t) for r in references))


def repeated_triggers(references: Sequence[Reference], logged: Sequence[Trigger]) -> tuple[Trigger, ...]:
    """The triggers that are covered but stored with no reference of `match_triggers`: calls made again, whose
    window is that of a call before.
    """
    stored = Counter((r.name, r.observed_trigger) for r in references)
    left: list[Trigger] = []
    for trigger in logged:
        place = trigger.name, trigger.turn
        if stored[place]:
            stored[place] -= 1
        elif any(_covers(r, trigger) for r in references):
            left.append(trigger)
    return tuple(left)


def _covers(reference: Reference, trigger: Trigger) -> bool:
    if reference.name != trigger.name or reference.coverage is None:
        return False
    return reference.coverage[0] <= trigger.turn <= reference.coverage[1]


def acausal_values(dialogue: Dialogue) -> list[tuple[str, str, int]]:
    """Gate G4: (reference id, parameter, turn) of each value first said after its ready window starts.

    The annotator has hindsight, the agent has not: it could not know such a value at the window's start.
    Values that are never said literally pass.
    """
    return [
        (reference.id, parameter, turn)
        for reference in dialogue.references
        if reference.ready is not None
        for parameter, turn in reference.value_turns.items()
        if turn > reference.ready[0]
    ]


def drop_acausal(dialogue: Dialogue) -> tuple[tuple[Reference, ...], int]:
    """(the references that pass G4, the number of those that do not)."""
    failed = {name for name, _, _ in acausal_values(dialogue)}
    return tuple(r for r in dialogue.references if r.id not in failed), len(failed)
