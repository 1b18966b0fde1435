"""The JSON types that the reader relies on in the records of SGD; other keys are ignored."""

from __future__ import annotations

from typing import Any

from proactor.sources.records import MISSING, Shape, SpokenTurn


class SgdCall(Shape):
    """A service call."""

    method: str = MISSING
    parameters: dict[str, Any] = MISSING


class SgdAct(Shape):
    """An act of the release."""

    act: str = MISSING
    slot: str = MISSING
    values: list[Any] = MISSING
    canonical_values: list[Any] | None = MISSING


class SgdState(Shape):
    """The dialogue state of the release."""

    active_intent: str = MISSING
    slot_values: dict[str, list[str]] = MISSING


class SgdReleasedFrame(Shape):
    """A frame of the release."""

    service: str = MISSING
    actions: list[SgdAct] = MISSING
    state: SgdState = MISSING
    service_call: SgdCall = MISSING


class SgdReleasedTurn(Shape):
    """A turn of the release."""

    speaker: str = MISSING
    utterance: str = MISSING
    frames: list[SgdReleasedFrame] = MISSING


class SgdRelease(Shape):
    """A dialogue of the release."""

    services: list[str] = MISSING
    turns: list[SgdReleasedTurn] = MISSING


class SgdFrame(Shape):
    """A frame of a compact record; `acts`: (act, slot, values)."""

    service: str = MISSING
    acts: list[tuple[str, Any, Any]] = MISSING
    intent: str = MISSING
    slots: dict[str, list[str]] = MISSING
    call: SgdCall = MISSING


class SgdTurn(SpokenTurn):
    """A turn of a compact record."""

    frames: list[SgdFrame] = MISSING


class SgdCompact(Shape):
    """A line of the compact file."""

    services: list[str] = MISSING
    turns: list[SgdTurn] = MISSING
