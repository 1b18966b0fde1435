"""`Constraint`: what the text of a completion must be.

    Sampling(constraint=Constraint(json_schema={"type": "object", "properties": {"day": {"type": "string"}}}))

At each token everything is masked that no text of the constraint could go on with, and the sample may end
exactly where its text is complete. `Sample.logprobs` are then of the masked softmax, renormalised;
``policy_logprobs`` stay those of the full one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pydantic import BaseModel, Field, field_validator, model_validator

from proactor.engine.frozen import Config

KINDS: Final = ("json_schema", "regex", "grammar")


class Constraint(Config):
    """One of ``json_schema``, ``regex`` and ``grammar``. Hashable; compiled once by each engine.

    Needs the library llguidance (``pip install 'proactor[constrain]'``), a fast tokenizer, and an end token.
    What the library cannot keep to is refused when sampling is asked for, with its place. A text that
    ``max_tokens`` or a stop string cuts is a beginning of one that fits.
    """

    json_schema: str | None = Field(
        None,
        description="JSON schema (draft 2020-12) as a mapping, a pydantic model or JSON; kept as JSON. "
        "Properties come in the schema's order, with a space, or a line break and an indent, between; "
        "additional ones are allowed unless additionalProperties is false",
    )
    regex: str | None = Field(
        None, min_length=1, description="Rust's syntax, without look-around; the whole text matches it"
    )
    grammar: str | None = Field(None, description="a context-free grammar in llguidance's dialect of Lark")

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_json(cls, value: Any) -> Any:
        if isinstance(value, type) and issubclass(value, BaseModel):
            value = value.model_json_schema()
        if isinstance(value, str):
            try:
                value = json.loads(value)
            except (ValueError, RecursionError):
                raise ValueError(f"should be a schema as JSON, not {value!r:.60}") from None
        if value is None:
            return None
        if not isinstance(value, Mapping | bool):
            raise ValueError(f"should be a JSON schema (a mapping), not {value!r:.60}")
        try:
            return json.dumps(value, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise ValueError(f"cannot be written as JSON: {error}") from None

    @model_validator(mode="after")
    def _is_one(self) -> Constraint:
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of {', '.join(KINDS)}, not {' and '.join(given) or 'none'}")
        return self
