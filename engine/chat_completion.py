"""A chat completion: objects with the attributes of the `openai` package's, which need not be installed.

Names and fields are those of ``openai.types.chat``. Beyond them there are ``prompt_token_ids`` and
``token_ids`` (vLLM's names), the ids as they were encoded and drawn, and ``reasoning_content``, what was
thought before.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from proactor.engine.adapter_names import BASE, POLICY
from proactor.engine.types import BASE_VERSION

FinishReason = Literal["stop", "length", "tool_calls"]


class Record(BaseModel):
    """Base of these objects: immutable, with the two methods of OpenAI's that pydantic does not have."""

    model_config = ConfigDict(frozen=True)

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None, as plain values."""
        return self.model_dump(exclude_none=True, mode="json")

    def to_json(self, indent: int | None = 2) -> str:
        """`to_dict` as JSON."""
        return self.model_dump_json(exclude_none=True, indent=indent)


class Function(Record):
    """What is called; ``arguments`` is a JSON object as text."""

    name: str
    arguments: str


class ChatCompletionMessageToolCall(Record):
    """A call of a tool."""

    id: str
    function: Function
    type: Literal["function"] = "function"


class ChatCompletionMessage(Record):
    """What the model said. ``content`` is None where it only called tools."""

    content: str | None
    role: Literal["assistant"] = "assistant"
    tool_calls: list[ChatCompletionMessageToolCall] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None


class TopLogprob(Record):
    """A token that might have been drawn; ``token_id`` is not OpenAI's."""

    token: str
    logprob: float
    token_id: int
    bytes: list[int] | None = None


class ChatCompletionTokenLogprob(Record):
    """A token, its bytes, and its natural log-probability in the full softmax at the temperature."""

    token: str
    logprob: float
    top_logprobs: list[TopLogprob]
    bytes: list[int] | None = None


class ChoiceLogprobs(Record):
    """Log-probabilities of an answer's tokens."""

    content: list[ChatCompletionTokenLogprob] | None
    refusal: list[ChatCompletionTokenLogprob] | None = None


class Choice(Record):
    """One answer."""

    finish_reason: FinishReason
    index: int
    message: ChatCompletionMessage
    token_ids: list[int]
    logprobs: ChoiceLogprobs | None = None


class CompletionUsage(Record):
    """Tokens of the prompt, counted once, and of all answers."""

    completion_tokens: int
    prompt_tokens: int
    total_tokens: int


class ChatCompletion(Record):
    """The answers to a request. ``system_fingerprint`` names the weights, ``policy_version`` counts them
    (`Sample.policy_version`).
    """

    id: str
    choices: list[Choice]
    created: int
    model: str
    prompt_token_ids: list[int]
    usage: CompletionUsage
    object: Literal["chat.completion"] = "chat.completion"
    system_fingerprint: str | None = None
    policy_version: int = BASE_VERSION


def fingerprint(adapter: str | None, version: int) -> str:
    """The name of an adapter's weights at a version."""
    return BASE if version == BASE_VERSION else f"{adapter or POLICY}-{version}"
