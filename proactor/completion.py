"""The bodies of a chat completion: the fields of a request that a server takes, and what an answer says."""

from __future__ import annotations

import json
import re
from collections.abc import Container, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Literal

from pydantic import BaseModel

from proactor.files import valid_utf8

Form = Literal["json_schema", "json_object", "none"]

FORMS: tuple[Form, ...] = ("json_schema", "json_object", "none")
"""Forms of `response_format` for a schema, strictest first."""
QUOTED = re.compile(r"""['"`](\w+)['"`]""")
"""The name of a field in a server's message."""


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


@dataclass(frozen=True, slots=True)
class Dialect:
    """The fields that a server is thought to take: all, until it refuses one.

    ``form``: of `response_format`, for a schema. ``limit_key``: the name of the limit on new tokens.
    """

    form: Form = FORMS[0]
    limit_key: str = "max_tokens"
    seeded: bool = True

    def fields(self, schema: Mapping[str, Any] | None, seed: int | None, max_tokens: int) -> dict[str, Any]:
        """The fields of a request besides model and messages."""
        fields: dict[str, Any] = {self.limit_key: max_tokens}
        if self.seeded and seed is not None:
            fields["seed"] = seed
        if schema is not None and self.form == "json_object":
            fields["response_format"] = {"type": "json_object"}
        elif schema is not None and self.form == "json_schema":
            named = {"name": "answer", "schema": dict(schema), "strict": True}
            fields["response_format"] = {"type": "json_schema", "json_schema": named}
        return fields

    def without(self, message: str, sent: Container[str]) -> tuple[Dialect, str] | None:
        """(the dialect without a field of those ``sent``, a name of the refusal) for a server's refusal.

        The field is the one that ``message`` names, or else `response_format`, in its next weaker form. None
        where nothing is left to leave out.
        """
        named = set(QUOTED.findall(message))
        if "max_tokens" in sent and named & {"max_tokens", "max_completion_tokens"}:
            return replace(self, limit_key="max_completion_tokens"), "max_tokens_refused"
        if "seed" in sent and "seed" in named:
            return replace(self, seeded=False), "seed_refused"
        if "response_format" in sent:
            weaker = FORMS[FORMS.index(self.form) + 1]
            return replace(self, form=weaker), f"{self.form}_refused"
        return None
