"""`ChatRequest`: the arguments of ``chat.completions.create``, checked; the impossible is refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from proactor.engine.config import MOST_TOP_LOGPROBS, Sampling
from proactor.engine.constraint import Constraint
from proactor.engine.frozen import Config
from proactor.engine.reply_grammar import reply_constraint
from proactor.engine.response_format import ResponseFormat, format_schema
from proactor.engine.tool_template import ToolTemplate
from proactor.engine.types import EngineError

UNUSED = (
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
)
"""Fields that change nothing about an answer here."""
_TRANSPORT = ("extra_headers", "extra_query")


class ChatRequest(Config):
    """A request, with OpenAI's names and defaults; ``top_k``, ``min_p`` (in ``extra_body``, as for other
    servers; ``top_k`` -1 is off, as 0 is) and ``logit_mask`` are the engine's (`Sampling`).

    ``response_format``, a ``tool_choice`` of ``required`` or a function, and tools that say ``strict`` are
    kept to, token by token (`reply_constraint`; with the extra ``constrain``). Answers that ``max_tokens`` or
    ``stop`` cut before they are what was asked for are counted.
    """

    messages: Any
    model: str
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = Field(0, ge=-1)
    min_p: float = 0.0
    logit_mask: object | None = None
    n: int = 1
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    tools: Any = ()
    tool_choice: Literal["auto", "none", "required"] | Mapping[str, Any] = "auto"
    parallel_tool_calls: bool = True
    response_format: ResponseFormat | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MOST_TOP_LOGPROBS)
    stream: Literal[False] = False
    presence_penalty: float = Field(0.0, ge=0, le=0)
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    timeout: float | None = Field(None, ge=0)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> ChatRequest:
        """The request of a call's keyword arguments; None, and OpenAI's "not given", are left out.

        Raises EngineError, in one line, for an unknown field and a value that cannot be.
        """
        extra = fields.get("extra_body") or {}
        if not isinstance(extra, Mapping):
            raise EngineError(f"extra_body: an object of fields, not {type(extra).__name__}")
        given = {**fields, **extra}
        known = {
            name: value
            for name, value in given.items()
            if value is not None
            and type(value).__name__ not in ("NotGiven", "Omit")
            and name not in (*UNUSED, *_TRANSPORT, "extra_body")
        }
        for name in ("messages", "model"):
            if name not in known:
                raise EngineError(f"chat.completions.create: {name}=… is needed")
        return cls(**known)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    @field_validator("top_logprobs")
    @classmethod
    def _beside_logprobs(cls, value: int, info: ValidationInfo) -> int:
        if value and not info.data.get("logprobs"):
            raise ValueError("needs logprobs: true")
        return value

    @field_validator("tool_choice")
    @classmethod
    def _names_a_function(cls, value: str | Mapping[str, Any]) -> str | Mapping[str, Any]:
        if not isinstance(value, str):
            function = value.get("function")
            if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
                raise ValueError("should be {'type': 'function', 'function': {'name': …}}")
        return value

    @property
    def wants_json(self) -> bool:
        """Whether answers should be JSON."""
        return format_schema(self.response_format) is not None

    @property
    def reads_calls(self) -> bool:
        """Whether answers may call tools."""
        return bool(self.tools) and self.tool_choice != "none"

    def fulfils(self, called: list[str]) -> bool:
        """Whether an answer that called these tools is what ``tool_choice`` asked for."""
        if isinstance(self.tool_choice, str):
            return self.tool_choice != "required" or bool(called)
        return self.tool_choice.get("function", {}).get("name") in called

    def constraint(self, template: ToolTemplate) -> Constraint | None:
        """What answers must be; None for anything. Raises EngineError for what cannot be kept to."""
        choice = (
            self.tool_choice if isinstance(self.tool_choice, str) else self.tool_choice["function"]["name"]
        )
        schema = format_schema(self.response_format) if choice in ("auto", "none") else None
        return reply_constraint(template, self.tools, choice, schema, self.parallel_tool_calls)

    def sampling(self, adapter: bool | str, context: int, template: ToolTemplate) -> Sampling:
        """How it is sampled; without a limit on new tokens, up to the end of the context."""
        limit = self.max_completion_tokens if self.max_tokens is None else self.max_tokens
        return Sampling(
            n=self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            logit_mask=self.logit_mask,
            constraint=self.constraint(template),
            max_tokens=context if limit is None else limit,
            stop=self.stop,
            seed=self.seed,
            adapter=adapter,
            top_logprobs=self.top_logprobs,
        )
