"""Quality gates for annotated windows (methods 1.3, [INFERRED])."""

from __future__ import annotations

from proactor.dialogue import Dialogue


def acausal_values(dialogue: Dialogue) -> list[tuple[str, str, int]]:
    """Gate G4, causality: (reference id, parameter, turn) of each value first said after its ready window starts.

    An annotator has hindsight, the agent has not: such a value must be absent at the window's start. Values never said
    literally are not judged.
    """
    return [
        (reference.id, parameter, turn)
        for reference in dialogue.references
        if reference.ready is not None
        for parameter, turn in reference.value_turns.items()
        if turn > reference.ready[0]
    ]
