"""The JSON types that the reader relies on in the records of ABCD; other keys are ignored."""

from __future__ import annotations

from typing import Any

from pydantic import StrictInt

from proactor.sources.records import MISSING, Shape, SpokenTurn, Window


class AbcdAction(Shape):
    """An action of a compact record; turns count from 0."""

    method: str = MISSING
    values: list[str] = MISSING
    value_turns: list[StrictInt | None] = MISSING
    last_visible_turn: StrictInt = MISSING
    window: Window | None = MISSING


class AbcdScenario(Shape):
    """What the customer knows."""

    flow: str = MISSING
    personal: dict[str, Any] = MISSING
    order: dict[str, Any] = MISSING


class AbcdCompact(Shape):
    """A line of the compact file."""

    turns: list[SpokenTurn] = MISSING
    scenario: AbcdScenario = MISSING
    actions: list[AbcdAction] = MISSING


class AbcdDelexed(Shape):
    """`targets`: intent, next step, button, values, utterance."""

    targets: tuple[Any, Any, str | None, list[Any], Any] = MISSING


class AbcdRelease(Shape):
    """A conversation of the release; `original`: (speaker, text)."""

    scenario: AbcdScenario = MISSING
    original: list[tuple[str, str]] = MISSING
    delexed: list[AbcdDelexed] = MISSING


class AbcdValues(Shape):
    """The values that slots may have, where they can be listed."""

    enumerable: dict[str, list[str]]


class AbcdOntology(Shape):
    """ontology.json: slots by action, by group."""

    values: AbcdValues
    actions: dict[str, dict[str, list[str]]]
