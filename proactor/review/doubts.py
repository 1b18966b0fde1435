"""Why a window deserves a look before others: reasons in words, from the windows and from ``report.json``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from proactor.annotation import acausal_values, compare_windows
from proactor.annotation.blocked import MaskedWindow
from proactor.annotation.record import InferredWindow
from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.catalog import Catalog
from proactor.files import SourceError, first_problem, read_json

REPORT = "report.json"


class RepeatedActions(BaseModel):
    """Logged actions of a dialogue that share a window with one before."""

    model_config = ConfigDict(frozen=True)

    dialogue: str
    actions: tuple[str, ...]


class AnnotationNotes(BaseModel):
    """What an annotation's ``report.json`` says about single windows."""

    model_config = ConfigDict(frozen=True)

    masked: tuple[MaskedWindow, ...] = ()
    inferred: tuple[InferredWindow, ...] = ()
    repeated: tuple[RepeatedActions, ...] = ()

    @classmethod
    def beside(cls, windows: Path) -> AnnotationNotes:
        """The notes in the folder of a file of windows; empty without a report there. Raises SourceError."""
        file = windows.parent / REPORT
        if not file.is_file():
            return cls()
        try:
            return cls.model_validate(read_json(file))
        except ValidationError as error:
            raise SourceError(f"{file}: {first_problem(error)}") from None

    @cached_property
    def blocked(self) -> dict[tuple[str, str], list[str]]:
        """What kept a window unknown, by the ids of dialogue and window."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for window in self.masked:
            found[window.dialogue, window.reference] += window.blocked_by
        return found

    @cached_property
    def guessed(self) -> dict[tuple[str, str], list[str]]:
        """Values whose turn the oracle inferred, by the ids of dialogue and window."""
        found: dict[tuple[str, str], list[str]] = defaultdict(list)
        for window in self.inferred:
            found[window.dialogue, window.reference] += map(str, window.values)
        return found

    @cached_property
    def shared(self) -> dict[str, list[str]]:
        """Logged actions that lie in the window of a call before them, by the id of the dialogue."""
        return {each.dialogue: list(each.actions) for each in self.repeated}


def window_doubts(dialogue: Dialogue, catalog: Catalog, notes: AnnotationNotes) -> dict[str, list[str]]:
    """Reasons to look at a window, by its id, for the windows that have some."""
    early = {name: (parameter, turn) for name, parameter, turn in acausal_values(dialogue)}
    found = {}
    for reference in dialogue.references:
        place = dialogue.id, reference.id
        reasons = [f"inferred: {value}" for value in notes.guessed.get(place, ())]
        if reference.ready is None:
            why = "; ".join(notes.blocked.get(place, ())) or reference.null_reason.replace("_", " ")
            reasons.append(f"when it may fire is unknown: {why or 'no reason given'}")
        if reference.id in early:
            parameter, turn = early[reference.id]
            reasons.append(f"may fire before {parameter} is said, at turn {turn}")
        reasons += _by_words(reference, catalog)
        if reasons:
            found[reference.id] = reasons
    return found


def dialogue_doubts(dialogue: Dialogue, notes: AnnotationNotes) -> list[str]:
    """Reasons that concern a dialogue and no single window of it."""
    return [
        f"{action}: logged in the window of the call before" for action in notes.shared.get(dialogue.id, ())
    ]


def overlap(windows: Sequence[Reference], others: Sequence[Reference], points: Sequence[int]) -> float:
    """Mean IoU over the decision turns ``points`` of the ready windows of two annotations, of the coverages
    where none is known; 1 where neither has a window.
    """
    means = compare_windows(windows, others, points).means()
    found = means["ready_iou"] if means["ready_iou"] is not None else means["coverage_iou"]
    return 1.0 if found is None else float(found)


def _by_words(reference: Reference, catalog: Catalog) -> Iterator[str]:
    if unsaid := [name for name in reference.params if name not in reference.value_turns]:
        yield f"never said word for word: {', '.join(unsaid)}"
    tool = catalog.get(reference.name)
    asks = tool is not None and tool.confirm
    if asks and reference.coverage and reference.ready and reference.coverage[0] == reference.ready[0]:
        yield "the tool asks first, but may fire as soon as it is under way"
