"""`Limits`: how much a server takes at once, and how long it waits."""

from __future__ import annotations

from pydantic import Field

from proactor.engine import Config

MIB = 1 << 20


class Limits(Config):
    """Sizes in bytes, times in seconds."""

    max_body: int = Field(8 * MIB, ge=1, le=1 << 30, description="a request's body")
    max_concurrent: int = Field(256, ge=1, le=1 << 16, description="requests that are sampled at once")
    max_tokens: int | None = Field(
        None, ge=1, description="new tokens of a sample; None: up to the end of the context"
    )
    max_samples: int = Field(64, ge=1, le=1 << 16, description="samples of a request: prompts times n")
    timeout: float = Field(600.0, gt=0, le=86400, description="sampling of a request; not an agent's")
    head_timeout: float = Field(10.0, gt=0, le=3600, description="a request's head, once it is connected")
    body_timeout: float = Field(30.0, gt=0, le=3600, description="a request's body")
    write_timeout: float = Field(30.0, gt=0, le=3600, description="a client that reads nothing of its answer")
    idle_timeout: float = Field(60.0, gt=0, le=3600, description="a connection without a request")
    max_conversations: int = Field(10000, ge=1, le=1 << 20, description="open at once, of an agent's")
    conversation_idle: float = Field(
        21600.0, gt=0, le=365 * 86400, description="a conversation without a turn or an answer: it is closed"
    )
    drain: float = Field(30.0, ge=0, le=3600, description="for what runs, once the server is asked to end")

    @property
    def max_connections(self) -> int:
        """Connections at once: those that are sampled for, and as many again that wait, send or read."""
        return 4 * self.max_concurrent
