"""`Judge`: the protocol of everything that grades.

A judge answers each request with text, or with the reason why it could not. `proactor.ruler.verdict` reads
the text of all judges alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

from proactor.ruler.question import JudgeRequest

FailureKind = Literal["timeout", "rate_limit", "connection", "http", "empty", "too_long"]


@dataclass(frozen=True, slots=True)
class JudgeFailure:
    """A request that got no answer, by kind."""

    kind: FailureKind
    message: str = ""


@runtime_checkable
class Judge(Protocol):
    """Anything that grades."""

    @property
    def name(self) -> str:
        """The model with its settings. Verdicts are cached under this name."""
        ...

    @property
    def concurrent(self) -> bool:
        """Whether it may be asked while the policy is sampled; if not, it takes all requests at once."""
        ...

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """One answer per request, in order. The failure of a single request is returned, not raised."""
        ...
