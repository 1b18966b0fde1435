"""`Oracle`: the protocol of annotators. An annotator sees the whole dialogue and answers about one turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from proactor.annotation.inferred import InferredValue
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog


@dataclass(frozen=True, slots=True)
class OracleRequest:
    """The question which actions are open right after ``turn``.

    ``tools``: those on offer. ``repeat``: 0 for the first reading, 1 for a second one, which differs by its
    noise alone. ``complaint``: the fault of the first answer, where the turn is asked again.
    """

    dialogue: Dialogue
    turn: int
    tools: Catalog
    repeat: int = 0
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class OracleAnswer:
    """The annotator's text, or the kind of its failure.

    ``failure``: too_long, timeout, rate_limit, connection, http or empty; ``reason``: the failure in the
    server's words, one line. ``dropped``: counts of what the annotator itself left out, by reason.
    ``inferred``: values of the dialogue's actions whose turn it inferred.
    """

    text: str = ""
    failure: str = ""
    reason: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)
    inferred: tuple[InferredValue, ...] = ()


class Oracle(Protocol):
    """An annotator.

    ``identity``: its name, with everything that changes its answers. ``batch``: dialogues per call;
    ``workers``: concurrent calls. ``steady``: equal requests get equal answers, so asking again is no use.
    """

    identity: str
    batch: int
    workers: int
    steady: bool

    async def answer(self, requests: Sequence[OracleRequest]) -> list[OracleAnswer]:
        """One answer per request, in order."""

    def tokens(self, text: str) -> int:
        """Tokens of ``text``, for the estimate."""

    def cost(self) -> Mapping[str, int]:
        """Tokens and requests so far, by name."""

    async def close(self) -> None:
        """Close connections, in the event loop that used them."""
