"""The JSON types that the reader relies on in the records of Taskmaster-4; other keys are ignored."""

from __future__ import annotations

from typing import Any

from proactor.sources.records import MISSING, Shape


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
