"""What a dialogue's log says about the marks and references of an annotation.

The log has each value in the spelling that the tool was called with; `Reference.variants` has what was said
for it. A windowed reference takes the log's spelling, since the agent learns to call the tool with it.
"""

from __future__ import annotations

from collections.abc import Mapping

from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.windows import decision_of, mentions


def actions_of(source: Dialogue, tool: str) -> list[Reference]:
    """The actions of ``tool`` in the log, those that were taken back included."""
    return [a for a in (*source.references, *source.withdrawn) if a.name == tool]


def spellings(source: Dialogue, tool: str, parameter: str, value: str) -> tuple[str, ...]:
    """``value``, and what the log lists beside it for one value of ``parameter``."""
    listed = [
        spelling
        for action in actions_of(source, tool)
        if action.accepts(parameter, value)
        for spelling in (action.params[parameter], *action.variants.get(parameter, ()))
    ]
    return tuple(dict.fromkeys((value, *listed)))


def common_values(action: Reference, params: Mapping[str, str]) -> int | None:
    """The number of values of ``params`` that the logged ``action`` has too; None where one conflicts."""
    both = action.params.keys() & params.keys()
    return len(both) if all(action.accepts(name, params[name]) for name in both) else None


def logged_action(reference: Reference, source: Dialogue) -> Reference | None:
    """The action of the log that ``reference`` stands for: of its tool, in its coverage, most alike."""
    first, last = reference.coverage or (1, len(source.turns))

    def distance(action: Reference) -> tuple[bool, int]:
        trigger = decision_of(source, action)
        shared = sum(action.accepts(name, value) for name, value in reference.params.items())
        return trigger is None or not first <= trigger <= last, -shared

    return min(actions_of(source, reference.name), key=distance, default=None)


def spelled_as_logged(reference: Reference, source: Dialogue) -> Reference:
    """``reference`` with the log's spelling and variants of each value that the log accepts, and with the
    turns at which its values were said.
    """
    action = logged_action(reference, source)
    params, variants = dict(reference.params), dict(reference.variants)
    if action is not None:
        same = [name for name, value in params.items() if action.accepts(name, value)]
        params |= {name: action.params[name] for name in same}
        variants |= {name: action.variants[name] for name in same if name in action.variants}
    said, seen = mentions(source.turns, params, variants)
    return reference.model_copy(
        update={"params": params, "variants": variants, "value_turns": said, "values_seen": seen}
    )
