"""The bodies of a chat completion: the form that a request asks for, and what an answer says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Literal

from pydantic import BaseModel

from proactor.files import valid_utf8

Form = Literal["json_schema", "json_object", "none"]

FORMS: tuple[Form, ...] = ("json_schema", "json_object", "none")
"""Forms of `response_format` for a schema, strictest first."""


class Message(BaseModel):
    """What the model said."""

    content: str | None = None


class Choice(BaseModel):
    """One answer, and why it ended."""

    message: Message
    finish_reason: str | None = None


class Usage(BaseModel):
    """Tokens that the server counted."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Completion(BaseModel):
    """The fields of a chat completion that are read."""

    choices: tuple[Choice, ...]
    usage: Usage | None = None


def read_completion(body: str) -> Completion:
    """The completion in a response's body. Raises pydantic's ValidationError where it is none.

    Half surrogate pairs (a cut emoji) become question marks: pydantic would refuse the whole reply for one.
    """
    if "\\ud" in body.lower():
        with suppress(ValueError, RecursionError):  # no JSON: pydantic says so
            body = valid_utf8(json.dumps(json.loads(body), ensure_ascii=False))
    return Completion.model_validate_json(body)


def response_format(form: Form, schema: Mapping[str, Any]) -> dict[str, Any]:
    """The field that asks for an answer by a JSON ``schema``, in the form "json_schema" or "json_object"."""
    if form == "json_object":
        return {"type": "json_object"}
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema), "strict": True}}
