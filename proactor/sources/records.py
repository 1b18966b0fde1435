"""The JSON types that readers rely on in the records of each corpus; other keys are ignored.

`check` refuses a record of other types before a reader works on it, so that an exception inside a reader is
a bug. A missing key is left to the reader, which may not need it: its KeyError is a refusal (`base.convert`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, StrictInt

MISSING: Any = None
"""Default of a key that may be missing, but not null."""


class Shape(BaseModel):
    """Base of the records and their parts."""


def check(kind: type[Shape], record: Mapping[str, Any]) -> None:
    """Raise pydantic's ValidationError where `record` has other types than `kind` says."""
    kind.model_validate(record)


class SpokenTurn(Shape):
    """A turn of a compact record."""

    speaker: str = MISSING
    text: str = MISSING


class Spoken(Shape):
    """A record of turns of any form."""

    turns: list[dict[str, Any]] = MISSING


class Window(Shape):
    """A ready window; turns count from 0."""

    earliest: StrictInt = MISSING
    latest: StrictInt = MISSING


# -- ABCD ---


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


# -- MultiWOZ ---

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


# -- Schema-Guided Dialogue ---


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


# -- SMCalFlow ---


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


# -- STAR ---


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


# -- Taskmaster-4 ---


class TaskmasterNote(Shape):
    """An annotation; requests and responses are JSON texts."""

    context: str = MISSING
    name: str = MISSING
    value: str = MISSING


class TaskmasterUtterance(Shape):
    """An utterance with its annotations."""

    speaker: str = MISSING
    text: str = MISSING
    annotations: list[TaskmasterNote] = MISSING


class TaskmasterRecord(Shape):
    """A dialogue of either form."""

    utterances: list[TaskmasterUtterance] = MISSING


class TaskmasterAddon(Shape):
    """An addon of a request."""

    addon_id: str = MISSING


class TaskmasterRequest(Shape):
    """The JSON of a request."""

    menu_item_id: str = MISSING
    attributes: list[dict[str, Any]] = MISSING
    addons: list[TaskmasterAddon] = MISSING


class TaskmasterResponse(Shape):
    """The JSON of a response."""

    menu_items: list[Any] | None = MISSING
    addons: list[Any] | None = MISSING
