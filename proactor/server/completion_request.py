"""`CompletionRequest` and `GenerateRequest`: bodies of requests that sample from a text, or from tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, field_validator, model_validator

from proactor.engine import Config, ResponseFormat, Sampling, format_constraint
from proactor.server.refusals import Refused

UNUSED = ("user", "service_tier", "cache_salt", "request_id", "skip_special_tokens", "detokenize")
"""Fields that change nothing about an answer here. Cached pages are shared whatever ``cache_salt`` says.
"""
UNUSED_SAMPLING = (
    *UNUSED,
    "spaces_between_special_tokens",
    "include_stop_str_in_output",
    "output_kind",
    "reasoning_effort",
    "routed_experts_prompt_start",
)


class _Drawn(Config):
    """What both have: how samples are drawn. ``top_k`` -1 is off, as 0 is."""

    n: int = Field(1, ge=1)
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = Field(0, ge=-1)
    min_p: float = 0.0
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    seed: int | None = None
    ignore_eos: bool = False
    presence_penalty: float = Field(0.0, ge=0, le=0)
    frequency_penalty: float = Field(0.0, ge=0, le=0)
    repetition_penalty: float = Field(1.0, ge=1, le=1)
    timeout: float | None = Field(None, ge=0)

    @field_validator("stop", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def sampling(self, adapter: bool | str, context: int) -> Sampling:
        """How it is sampled; without a limit on new tokens, up to the end of the context."""
        return Sampling(
            n=self.n,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=max(0, self.top_k),
            min_p=self.min_p,
            max_tokens=context if self.max_tokens is None else self.max_tokens,
            stop=self.stop,
            stop_ids=self.stop_token_ids,
            seed=self.seed,
            ignore_eos=self.ignore_eos,
            adapter=adapter,
        )


class CompletionRequest(_Drawn):
    """OpenAI's ``completions``: ``prompt`` is a text, token ids, or a list of either.

    ``logprobs``: with the tokens that were drawn so many of the most probable ones, 0 for none. ``best_of``:
    so many samples are drawn, and the ``n`` of the highest mean log-probability returned, the best first.
    ``response_format``, not OpenAI's here, is that of chats: the text as a whole keeps to it.
    """

    model: Any
    prompt: Any
    max_tokens: int | None = 16
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False
    best_of: int | None = Field(None, ge=1)
    response_format: ResponseFormat | None = None

    @model_validator(mode="after")
    def _possible(self) -> CompletionRequest:
        if self.echo and self.logprobs is not None:
            raise ValueError("echo with logprobs: there are none of prompts here; leave one of them out")
        if self.drawn < self.n:
            raise ValueError(f"best_of={self.best_of}: should be n={self.n} or more")
        return self

    @property
    def drawn(self) -> int:
        """Samples that are drawn of a prompt."""
        return self.n if self.best_of is None else self.best_of

    def sampling(self, adapter: bool | str, context: int) -> Sampling:
        """As it says; may take seconds for the first constraint. Raises EngineError for one that cannot be
        kept to.
        """
        more = {"n": self.drawn, "constraint": format_constraint(self.response_format)}
        drawn = super().sampling(adapter, context)
        return drawn.model_copy(update={**more, "top_logprobs": self.logprobs or 0})

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> CompletionRequest:
        """The request of a body. Raises Refused or EngineError for one that cannot be."""
        given = _given(fields, UNUSED)
        for name in ("model", "prompt"):
            if name not in given:
                raise Refused(400, f"{name} is needed")
        return cls(**given)

    def prompts(self) -> list[Any]:
        """The prompts, each a text or token ids. Raises Refused for anything else."""
        given = self.prompt
        if isinstance(given, str):
            return [given]
        if isinstance(given, list) and given:
            if all(isinstance(item, str) for item in given) or all(isinstance(item, list) for item in given):
                return given
            if all(isinstance(item, int) for item in given):
                return [given]
        raise Refused(400, "prompt should be a text, token ids, or a list of either")


class GenerateRequest(_Drawn):
    """vLLM's ``/inference/v1/generate``, as verifiers' client asks for it: token ids in, token ids out.

    ``priority``: lower ones begin first, as there. Pictures (``features``, ``content_parts``) are refused.
    """

    model: Any = None
    token_ids: list[int]
    logprobs: int | None = Field(None, ge=0, le=1)
    priority: int = Field(0, ge=-(1 << 31), lt=1 << 31)

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> GenerateRequest:
        """The request of a body. Raises Refused or EngineError for one that cannot be."""
        given = _given(fields, UNUSED)
        drawn = given.pop("sampling_params", {})
        if "token_ids" not in given or not isinstance(drawn, Mapping):
            raise Refused(400, "token_ids and sampling_params, an object, are needed")
        for name in given.keys() - {"model", "token_ids", "priority"}:
            raise Refused(400, f"{name}: not known here (known: model, token_ids, sampling_params, priority)")
        return cls(**{**_given(drawn, UNUSED_SAMPLING), **given})


def _given(fields: Mapping[str, Any], unused: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None and name not in unused}
