"""`AnswerOptions`: how an answer is sent, apart from what is asked."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from proactor.engine import Config
from proactor.server.refusals import Refused


class StreamOptions(Config):
    """OpenAI's ``stream_options``; ``include_obfuscation`` changes nothing here."""

    include_usage: bool = False
    continuous_usage_stats: Literal[False] = False
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

    def token(self, token: int, text: str) -> str:
        """How a token is named among log-probabilities."""
        return f"token_id:{token}" if self.return_tokens_as_token_ids else text

    @classmethod
    def take(cls, fields: dict[str, Any]) -> AnswerOptions:
        """Take these options out of a request's fields. Raises EngineError for a value that cannot be, and
        Refused for vLLM's names of constraints.
        """
        for name, value in fields.items():
            if value is not None and (name.startswith("guided_") or name == "structured_outputs"):
                raise Refused(400, f"{name}: not known here; response_format takes a JSON schema")
        given = {name: fields.pop(name, None) for name in cls.model_fields}
        return cls(**{name: value for name, value in given.items() if value is not None})
