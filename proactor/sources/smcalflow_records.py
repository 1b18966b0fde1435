"""The JSON types that the reader relies on in the records of SMCalFlow; other keys are ignored."""

from __future__ import annotations

from proactor.sources.records import MISSING, Shape, SpokenTurn


class SmcalflowUtterance(Shape):
    """One side of a turn of the release."""

    original_text: str = MISSING


class SmcalflowTurn(SpokenTurn):
    """A turn of either form; the release has both sides in one, and `lispress` for `program`."""

    program: str = MISSING
    user_utterance: SmcalflowUtterance = MISSING
    agent_utterance: SmcalflowUtterance = MISSING
    lispress: str = MISSING


class SmcalflowRecord(Shape):
    """A dialogue of either form."""

    turns: list[SmcalflowTurn] = MISSING
