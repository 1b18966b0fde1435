"""`CompletionRequest` and `GenerateRequest`: bodies of requests that sample from a text, or from tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator

from proactor.engine import Config, Sampling
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

    def sampling(self, adapter: bool, context: int) -> Sampling:
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

    ``logprobs`` 0 or 1: the tokens that were drawn, with their log-probabilities, and no others.
    """

    model: Any
    prompt: Any
    max_tokens: int | None = 16
    logprobs: int | None = Field(None, ge=0, le=1)
    echo: Literal[False] = False
    best_of: Literal[1] = 1

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
