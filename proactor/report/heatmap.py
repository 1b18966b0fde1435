"""The heat map: each tool's probability at each decision of a dialogue, and the windows it should fire in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proactor.calibration.probabilities import DialogueProbabilities
from proactor.dialogue import Dialogue, Status
from proactor.dialogue.windows import status_at

COLUMNS = 10
"""Tools shown at most: those the dialogue calls for, then the most probable ones."""


@dataclass(frozen=True, slots=True)
class HeatCell:
    """Probability that the answer fires the tool; its window: "ready", "pending", "unknown" or ""."""

    probability: float
    window: str


@dataclass(frozen=True, slots=True)
class HeatRow:
    """The decision after the user's ``turn``; ``wait``: the probability of the empty answer."""

    turn: int
    text: str
    wait: float
    cells: tuple[HeatCell, ...]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """A dialogue's map. ``hidden``: tools without a column; ``highest``: the highest probability of those."""

    dialogue: Dialogue
    tools: tuple[str, ...]
    rows: tuple[HeatRow, ...]
    hidden: int
    highest: float


def heat_maps(dialogues: Iterable[Dialogue], scored: Sequence[DialogueProbabilities]) -> list[HeatMap]:
    """One map for each scored dialogue that is among ``dialogues``, in the order scored."""
    known = {d.id: d for d in dialogues}
    return [heat_map(known[s.dialogue_id], s) for s in scored if s.dialogue_id in known]


def heat_map(dialogue: Dialogue, scored: DialogueProbabilities) -> HeatMap:
    """The map of one dialogue."""
    most: dict[str, float] = {}
    for turn in scored.turns:
        for tool, probability in turn.tools.items():
            most[tool] = max(most.get(tool, 0.0), probability)
    called = list(dict.fromkeys(r.name for r in dialogue.references if r.name in most))
    others = sorted((t for t in most if t not in called), key=lambda t: (-most[t], t))
    tools = tuple([*called, *others][: max(COLUMNS, len(called))])
    hidden = [t for t in most if t not in tools]
    rows = tuple(
        HeatRow(
            t.turn,
            dialogue.turns[t.turn - 1].text,
            t.wait,
            tuple(_cell(dialogue, t.turn, tool, t.tools.get(tool, 0.0)) for tool in tools),
        )
        for t in scored.turns
    )
    return HeatMap(dialogue, tools, rows, len(hidden), max((most[t] for t in hidden), default=0.0))


def _cell(dialogue: Dialogue, turn: int, tool: str, probability: float) -> HeatCell:
    """The most urgent state of the tool's references at this turn."""
    references = [r for r in dialogue.references if r.name == tool]
    states = {status_at(r, turn) for r in references}
    unknown = [r.coverage for r in references if r.ready is None and r.coverage is not None]
    if Status.READY in states:
        window = "ready"
    elif Status.PENDING in states:
        window = "pending"
    elif any(first <= turn <= last for first, last in unknown):
        window = "unknown"
    else:
        window = ""
    return HeatCell(probability, window)
