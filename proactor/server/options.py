"""`AnswerOptions`: how an answer is sent, apart from what is asked."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from proactor.engine import Config


class StreamOptions(Config):
    """OpenAI's ``stream_options``; ``include_obfuscation`` changes nothing here."""

    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False


class AnswerOptions(Config):
    """OpenAI's ``stream`` and ``stream_options``, and vLLM's names for what shows token ids.

    ``return_tokens_as_token_ids``: log-probabilities name tokens ``token_id:<id>``; ``return_token_ids``: the
    answer has ``token_ids``, and ``prompt_token_ids``.
    """

    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    @property
    def include_usage(self) -> bool:
        """Whether the last event of a stream has the usage."""
        return self.stream_options.include_usage

    @classmethod
    def take(cls, fields: dict[str, Any]) -> AnswerOptions:
        """Take these options out of a request's fields. Raises EngineError for a value that cannot be."""
        given = {name: fields.pop(name, None) for name in cls.model_fields}
        return cls(**{name: value for name, value in given.items() if value is not None})
