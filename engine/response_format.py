"""``response_format`` of requests in OpenAI's form: what it may be, and what an answer must be then."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from proactor.engine.constraint import Constraint
from proactor.engine.grammars import check_schema
from proactor.engine.reply_grammar import OBJECT

FORMATS = ("text", "json_object", "json_schema")


def _known(value: Mapping[str, Any]) -> Mapping[str, Any]:
    if value.get("type") not in FORMATS:
        raise ValueError("should be {'type': 'text'}, 'json_object' or 'json_schema'")
    if value["type"] == "json_schema":
        named = value.get("json_schema")
        if not isinstance(named, Mapping) or not isinstance(named.get("schema"), Mapping | bool):
            raise ValueError("of type json_schema needs json_schema: {'name': …, 'schema': {…}}")
    return value


ResponseFormat = Annotated[Mapping[str, Any], AfterValidator(_known)]
"""``{"type": "text"}``, ``{"type": "json_object"}`` or ``{"type": "json_schema", "json_schema": {"schema":
…}}``, as the field of a configuration.
"""


def format_schema(value: Mapping[str, Any] | None) -> Mapping[str, Any] | bool | None:
    """The JSON schema of a `ResponseFormat`; None where any text will do."""
    if value is None or value["type"] == "text":
        return None
    if value["type"] == "json_object":
        return OBJECT
    schema: Mapping[str, Any] | bool = value["json_schema"]["schema"]
    return schema


def format_constraint(value: Mapping[str, Any] | None) -> Constraint | None:
    """What a text must be as a whole for a `ResponseFormat`. Raises EngineError, with the place, for a schema
    that cannot be kept to.
    """
    schema = format_schema(value)
    if schema is None:
        return None
    check_schema(schema, "response_format")
    return Constraint(json_schema=schema)
