"""The JSON types that the reader relies on in the records of STAR; other keys are ignored."""

from __future__ import annotations

from typing import Any

from pydantic import StrictInt

from proactor.sources.records import MISSING, Shape, SpokenTurn, Window


class StarAction(Shape):
    """A query of a compact record; turns count from 0."""

    method: str = MISSING
    request: str | None = MISSING
    parameters: dict[str, str] = MISSING
    value_turns: dict[str, StrictInt | None] = MISSING
    last_visible_turn: StrictInt = MISSING
    depends_on_result_at_turn: StrictInt | None = MISSING
    window: Window | None = MISSING


class StarCompact(Shape):
    """A line of the compact file."""

    domains: list[str | None] = MISSING
    tasks: list[str] = MISSING
    turns: list[SpokenTurn] = MISSING
    actions: list[StarAction] = MISSING


class StarEvent(Shape):
    """An event of the release."""

    Action: str = MISSING
    Agent: str = MISSING
    Text: str = MISSING
    APIName: str = MISSING
    Constraints: list[dict[str, Any]] = MISSING


class StarCapability(Shape):
    """A task of the wizard."""

    Task: str = MISSING


class StarScenario(Shape):
    """Domains and tasks of a dialogue."""

    Domains: list[str | None] = MISSING
    WizardCapabilities: list[StarCapability] = MISSING


class StarRelease(Shape):
    """A dialogue file of the release."""

    Events: list[StarEvent] = MISSING
    Scenario: StarScenario = MISSING
