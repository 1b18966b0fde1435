"""A few tools, a short dialogue with them, and an oracle that says what it is told to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from proactor.annotation import Mark, MarkStatus, OracleAnswer, OracleRequest
from proactor.annotation.marks import render
from proactor.dialogue import Dialogue, Turn
from proactor.dialogue.catalog import Catalog, Parameter, Tool

TOOLS = Catalog(
    tools=(
        Tool(
            name="book",
            confirm=True,
            parameters=(
                Parameter(name="day", type="date"),
                Parameter(name="people", type="integer"),
                Parameter(name="price", type="number", required=False),
            ),
        ),
        Tool(
            name="note",
            parameters=(
                Parameter(name="text"),
                Parameter(name="loud", type="boolean", required=False),
                Parameter(name="kind", type="enum", values=("big", "small"), required=False),
            ),
        ),
    )
)


def talk(*texts: str, id: str = "d", **fields: object) -> Dialogue:
    """User and agent in turns, the user first."""
    turns = tuple(
        Turn(index=i, speaker="user" if i % 2 else "agent", text=t) for i, t in enumerate(texts, start=1)
    )
    return Dialogue.model_validate({"id": id, "turns": turns, **fields})


BOOKING = talk(
    "book a table",
    "which day?",
    "monday",
    "for how many?",
    "4 people",
    "monday for 4, ok?",
    "yes please",
    "booked",
    "thanks",
    "bye",
)


def mark(name: str, status: str, assent: int | None = None, **params: str) -> Mark:
    return Mark(name=name, status=MarkStatus(status), params=params, assent=assent)


Say = Callable[[OracleRequest], str | OracleAnswer]


@dataclass
class Scripted:
    """An oracle that calls ``say``; `asked` holds the requests."""

    say: Say
    identity: str = "scripted"
    batch: int = 1
    workers: int = 1
    steady: bool = False
    asked: list[OracleRequest] = field(default_factory=list)
    closed: int = 0

    async def answer(self, requests: Sequence[OracleRequest]) -> list[OracleAnswer]:
        self.asked += requests
        said = [self.say(request) for request in requests]
        return [text if isinstance(text, OracleAnswer) else OracleAnswer(text) for text in said]

    def tokens(self, text: str) -> int:
        return len(text.split())

    def cost(self) -> Mapping[str, int]:
        return {"requests": len(self.asked)}

    async def close(self) -> None:
        self.closed += 1


def says(by_turn: Mapping[int, Sequence[Mark]]) -> Say:
    return lambda request: render(by_turn.get(request.turn, ()))
