"""The JSON types that the reader relies on in the records of MultiWOZ; other keys are ignored."""

from __future__ import annotations

from typing import Any

from pydantic import StrictInt

from proactor.sources.records import MISSING, Shape, SpokenTurn

Acts = dict[str, Any] | str | None
"""Acts by name; releases also have null and a text, which mean none."""


class MultiwozTurn(SpokenTurn):
    """A turn of a compact record."""

    acts: Acts = MISSING


class MultiwozEvidence(Shape):
    """Turns count from 0."""

    value_turns: dict[str, StrictInt | None] = MISSING


class MultiwozAction(Shape):
    """A booking of a compact record."""

    service: str = MISSING
    method: str = MISSING
    parameters: dict[str, Any] = MISSING
    variants: dict[str, list[str]] = MISSING
    call_turn: StrictInt = MISSING
    evidence: MultiwozEvidence = MISSING


class MultiwozCompact(Shape):
    """A line of the compact file."""

    goal: dict[str, Any] = MISSING
    turns: list[MultiwozTurn] = MISSING
    actions: list[MultiwozAction] = MISSING


class MultiwozSlots(Shape):
    """Values by slot, and the bookings made."""

    booked: list[Any] = MISSING


class MultiwozMetadata(Shape):
    """The state of one service."""

    semi: MultiwozSlots = MISSING
    book: MultiwozSlots = MISSING


class MultiwozEntry(Shape):
    """A turn of release 2.0 or 2.1."""

    text: str = MISSING
    metadata: dict[str, MultiwozMetadata] = MISSING
    dialog_act: Acts = MISSING


class MultiwozLog(Shape):
    """A dialogue of release 2.0 or 2.1."""

    goal: dict[str, Any] = MISSING
    log: list[MultiwozEntry] = MISSING


class MultiwozState(Shape):
    """The state of one service in release 2.2."""

    active_intent: str = MISSING
    slot_values: dict[str, list[Any]] = MISSING


class MultiwozFrame(Shape):
    """A frame of release 2.2."""

    service: str = MISSING
    state: MultiwozState = MISSING


class MultiwozFramed(Shape):
    """A turn of release 2.2."""

    speaker: str = MISSING
    utterance: str = MISSING
    frames: list[MultiwozFrame] = MISSING


class MultiwozTurnActs(Shape):
    """The acts of one turn in release 2.2; values are (slot, value) pairs."""

    dialog_act: dict[str, list[tuple[str, Any]]] = MISSING


class MultiwozRelease(Shape):
    """A dialogue of release 2.2."""

    services: list[str] = MISSING
    turns: list[MultiwozFramed] = MISSING
    acts: dict[str, MultiwozTurnActs] = MISSING
