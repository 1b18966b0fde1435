"""When an enum's value was known that nobody said literally, in transcripts without windows [INFERRED].

A tool call may hold ``reason="double_charge"`` where the customer said "charged twice". The value counts as
known from

1. the first user turn that says it in another form: case, hyphens, underscores and a plural s aside;
2. else, the first user turn by which every other required value is known, unless a user turn up to the action
   says another value of the enum in such a form.

Only values of a parameter with the type enum are inferred, only up to the logged action, and only where the
dialogue came without turns or windows of its own. Without another required value, rule 2 says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict

from proactor.dialogue import Dialogue, Reference, Turn, normalise
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.literal import says
from proactor.dialogue.windows import mentions

_JOINERS = re.compile(r"[-_/\s]+")


class InferredValue(BaseModel):
    """A value of the action ``reference`` of a log that counts as known from ``turn``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reference: str
    tool: str
    parameter: str
    value: str
    turn: int

    def __str__(self) -> str:
        return f"{self.tool}: {self.parameter}={self.value} from turn {self.turn}"


def inferred_values(dialogue: Dialogue, tools: Catalog) -> tuple[InferredValue, ...]:
    """The values of a dialogue's logged actions that the rules above infer."""
    logged = (*dialogue.references, *dialogue.withdrawn)
    if any(reference.ready is not None or reference.value_turns for reference in logged):
        return ()
    return tuple(value for r in logged for value in _of_action(dialogue, r, tools[r.name]))


def _of_action(dialogue: Dialogue, reference: Reference, tool: Tool) -> list[InferredValue]:
    said, _ = mentions(dialogue.turns, reference.params, reference.variants)
    trigger = reference.observed_trigger
    end = len(dialogue.turns) if trigger is None else trigger
    users = [turn for turn in dialogue.turns if turn.speaker == "user" and turn.index <= end]
    enums = {p.name: p for p in tool.parameters if p.type == "enum"}
    unsaid = [name for name in reference.params if name in enums and name not in said]
    in_other_form = {
        name: turn for name in unsaid if (turn := _first_turn(users, reference.params[name])) is not None
    }
    found = dict(in_other_form)
    for name in unsaid:
        if name not in found and not _says_another(users, enums[name], reference.params[name]):
            others = [other for other in tool.required if other != name]
            turn = _turn_of_all(others, said | in_other_form, users)
            if turn is not None:
                found[name] = turn
    return [
        InferredValue(
            reference=reference.id, tool=tool.name, parameter=name, value=reference.params[name], turn=turn
        )
        for name, turn in found.items()
    ]


def _turn_of_all(names: Sequence[str], known: Mapping[str, int], users: Sequence[Turn]) -> int | None:
    """The first user turn by which all values are known; None without values."""
    if not names or not all(name in known for name in names):
        return None
    last = max(known[name] for name in names)
    return next((turn.index for turn in users if turn.index >= last), None)


def _first_turn(turns: Sequence[Turn], value: str) -> int | None:
    form = _plain(value)
    return next((turn.index for turn in turns if says(_plain(turn.text), form)), None)


def _says_another(turns: Sequence[Turn], parameter: Parameter, value: str) -> bool:
    others = [v for v in parameter.values if normalise(v) != normalise(value)]
    return any(_first_turn(turns, other) is not None for other in others)


def _plain(text: str) -> str:
    """``text`` in lower case, with spaces for joiners, and words without a plural s."""
    return " ".join(_singular(word) for word in normalise(_JOINERS.sub(" ", text)).split())


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
