"""What the driver asks and what an annotator is: something that answers one question a turn, with the whole
dialogue in view.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog


@dataclass(frozen=True, slots=True)
class OracleRequest:
    """Which actions are open right after ``turn``? ``tools``: those on offer. ``repeat``: 0 the first time; a
    second reading differs only in the noise. ``complaint``: what was wrong with the first answer, when it is
    asked again.
    """

    dialogue: Dialogue
    turn: int
    tools: Catalog
    repeat: int = 0
    complaint: str = ""


@dataclass(frozen=True, slots=True)
class OracleAnswer:
    """The annotator's text, or why there is none (``failure``: too_long, timeout, rate_limit, connection,
    http, empty). ``dropped``: what the annotator itself had to leave out, by reason.
    """

    text: str = ""
    failure: str = ""
    dropped: Mapping[str, int] = field(default_factory=dict)


class Oracle(Protocol):
    """An annotator. ``identity``: name of it and of all that changes its answers. ``batch``: dialogues it is
    handed at once; ``workers``: batches under way at once. ``steady``: the same question always gets the same
    answer, so that asking again tells nothing.
    """

    identity: str
    batch: int
    workers: int
    steady: bool

    async def answer(self, requests: Sequence[OracleRequest]) -> list[OracleAnswer]:
        """One answer a question, in order."""

    def tokens(self, text: str) -> int:
        """Tokens of ``text``, for the estimate."""

    def cost(self) -> Mapping[str, int]:
        """What was used so far: tokens and requests by name."""

    async def close(self) -> None:
        """Give connections back, in the loop that used them."""
