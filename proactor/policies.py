"""Trivial policies, reported beside every result: a metric that they do well on says little.

All but `never` know what the dialogue's references ask for (names and values, never the ready window), so they are harder to
beat than anything that has to read: `always` fires every tool on offer at every decision point with the values said so far;
`values_seen` fires each action once, as soon as the user has raised it and all its values were said, without waiting for an
assent, and also where the user will withdraw it. That a need was raised is taken from the coverage.
"""

from __future__ import annotations

from collections.abc import Callable

from proactor.dialogue import Action, Dialogue, Reference, Status

Outputs = dict[int, tuple[Action, ...]]
Policy = Callable[[Dialogue], Outputs]


def never(dialogue: Dialogue) -> Outputs:
    """Wait at every decision point."""
    return dict.fromkeys(dialogue.decision_turns, ())


def always(dialogue: Dialogue) -> Outputs:
    """READY for every tool on offer, at every decision point, each parameter with the value said last so far."""
    wanted = (*dialogue.references, *dialogue.withdrawn)
    tools = dialogue.tools or tuple(dict.fromkeys(r.name for r in wanted))
    return {
        turn: tuple(
            Action(name=tool, params=_said(tuple(r for r in wanted if r.name == tool), turn), status=Status.READY)
            for tool in tools
        )
        for turn in dialogue.decision_turns
    }


def _said(references: tuple[Reference, ...], turn: int) -> dict[str, str]:
    latest: dict[str, tuple[int, str]] = {}
    for reference in references:
        for name, said in reference.value_turns.items():
            if said <= turn and name in reference.params and said >= latest.get(name, (0, ""))[0]:
                latest[name] = (said, reference.params[name])
    return {name: value for name, (_, value) in latest.items()}


def values_seen(dialogue: Dialogue) -> Outputs:
    """READY once for each action, at the first decision point at which it is raised and all its values were said."""
    outputs: dict[int, list[Action]] = {turn: [] for turn in dialogue.decision_turns}
    for reference in (*dialogue.references, *dialogue.withdrawn):
        if reference.values_seen is None:
            continue
        start = max(reference.values_seen, reference.coverage[0] if reference.coverage else 1)
        turn = next((u for u in dialogue.decision_turns if u >= start), None)
        if turn is not None:
            outputs[turn].append(Action(name=reference.name, params=reference.params, status=Status.READY))
    return {turn: tuple(actions) for turn, actions in outputs.items()}


POLICIES: dict[str, Policy] = {"never": never, "always": always, "values_seen": values_seen}
