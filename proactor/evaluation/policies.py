"""Policies without a model, reported beside every result: a metric on which they do well says little.

`always` and `values_seen` know the names and values of the dialogue's actions, but not the ready windows.
`always` fires every tool on offer at every decision point, with the values said so far. `values_seen` fires
each action once, as soon as the user has raised it (its coverage) and all its values were said. It does not
wait for an assent, and also fires what the user will withdraw. Its early fires all count as hits, so where
nothing is withdrawn its first-fire F1 is near 1 by construction: compare its timing by on-time F1.
`values_in_text` follows the same rule but reads: it searches the text for the values that each parameter took
in training dialogues. `human` is the logged agent, the reference where a corpus logs when it acted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence

from proactor.dialogue import Action, Dialogue, Reference, Status
from proactor.dialogue.catalog import Catalog, Tool
from proactor.dialogue.literal import find
from proactor.dialogue.windows import last_decision

Outputs = dict[int, tuple[Action, ...]]
Policy = Callable[[Dialogue], Outputs]


def never(dialogue: Dialogue) -> Outputs:
    """Wait at every decision point."""
    return dict.fromkeys(dialogue.decision_turns, ())


def always(dialogue: Dialogue) -> Outputs:
    """READY for every tool on offer at every decision point, with the latest values said so far."""
    wanted = (*dialogue.references, *dialogue.withdrawn)
    tools = dialogue.tools or tuple(dict.fromkeys(r.name for r in wanted))
    return {
        turn: tuple(
            Action(
                name=tool,
                params=_latest_values(tuple(r for r in wanted if r.name == tool), turn),
                status=Status.READY,
            )
            for tool in tools
        )
        for turn in dialogue.decision_turns
    }


def _latest_values(references: tuple[Reference, ...], turn: int) -> dict[str, str]:
    """The value of each parameter that was said last, up to ``turn``."""
    latest: dict[str, tuple[int, str]] = {}
    for reference in references:
        for name, said in reference.value_turns.items():
            if said <= turn and name in reference.params and said >= latest.get(name, (0, ""))[0]:
                latest[name] = (said, reference.params[name])
    return {name: value for name, (_, value) in latest.items()}


def values_seen(dialogue: Dialogue) -> Outputs:
    """READY once for each action, at the first decision point after it is raised and its values are said."""
    outputs: dict[int, list[Action]] = {turn: [] for turn in dialogue.decision_turns}
    for reference in (*dialogue.references, *dialogue.withdrawn):
        if reference.values_seen is None:
            continue
        start = max(reference.values_seen, reference.coverage[0] if reference.coverage else 1)
        turn = next((u for u in dialogue.decision_turns if u >= start), None)
        if turn is not None:
            outputs[turn].append(Action(name=reference.name, params=reference.params, status=Status.READY))
    return {turn: tuple(actions) for turn, actions in outputs.items()}


def human(dialogue: Dialogue) -> Outputs:
    """READY once for each action that the logged agent ran, at its last decision point before it did."""
    outputs: dict[int, list[Action]] = {turn: [] for turn in dialogue.decision_turns}
    for reference in dialogue.references:
        if reference.observed_trigger is None:
            continue
        turn = last_decision(dialogue, reference.observed_trigger)
        if turn is not None:
            outputs[turn].append(Action(name=reference.name, params=reference.params, status=Status.READY))
    return {turn: tuple(actions) for turn, actions in outputs.items()}


def logs_triggers(dialogues: Iterable[Dialogue]) -> bool:
    """Whether any dialogue says when the logged agent acted. Without that, `human` always waits."""
    return any(r.observed_trigger is not None for d in dialogues for r in d.references)


POLICIES: dict[str, Policy] = {"never": never, "always": always, "values_seen": values_seen, "human": human}
HUMAN = "human"
"""The entry of `POLICIES` that is the logged agent."""


def values_in_text(training: Iterable[Dialogue], catalog: Catalog) -> Policy:
    """The rule of `values_seen` on the text alone.

    READY once for each tool on offer, at the first decision point by which every required parameter has a
    value in the text, with the values mentioned last. A value is a literal mention of one that the parameter
    took in ``training``, or that the catalog lists. Tools without a required parameter never fire.
    """
    values: dict[tuple[str, str], set[str]] = defaultdict(set)
    for tool in catalog.tools:
        for parameter in tool.parameters:
            values[tool.name, parameter.name].update(parameter.values)
    for dialogue in training:
        for reference in dialogue.references:
            for name, value in reference.params.items():
                values[reference.name, name].update((value, *reference.variants.get(name, ())))
    spellings = {key: sorted(known) for key, known in values.items()}

    def policy(dialogue: Dialogue) -> Outputs:
        outputs: dict[int, list[Action]] = {turn: [] for turn in dialogue.decision_turns}
        for tool in catalog.offered_in(dialogue).tools:
            mentioned: dict[str, str] = {}
            for turn in dialogue.turns:
                mentioned |= _find_values(tool, spellings, turn.text)
                complete = tool.required and all(name in mentioned for name in tool.required)
                if complete and turn.index in outputs:
                    action = Action(name=tool.name, params=dict(mentioned), status=Status.READY)
                    outputs[turn.index].append(action)
                    break
        return {turn: tuple(actions) for turn, actions in outputs.items()}

    return policy


def _find_values(tool: Tool, spellings: Mapping[tuple[str, str], Sequence[str]], text: str) -> dict[str, str]:
    """The last value that ``text`` says for each parameter of the tool; of those that overlap, the first and
    longest. As ``text`` writes it, where folding keeps the places of its characters.
    """
    values: dict[str, str] = {}
    for parameter in tool.parameters:
        said = [
            (start, -end, v) for v in spellings[tool.name, parameter.name] for start, end in find(text, v)
        ]
        reached = 0
        for start, end, value in sorted(said):
            if start >= reached:
                values[parameter.name], reached = text[start:-end] if text.isascii() else value, -end
    return values
