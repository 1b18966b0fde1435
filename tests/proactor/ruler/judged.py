"""Small groups of candidates, and judges that answer what a test wants."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, TypeVar

from proactor.dialogue import Action
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.parse import render
from proactor.ruler import JudgeFailure, JudgeRequest
from tests.proactor.dialogues import ready, worked_example

T = TypeVar("T")

CATALOG = Catalog(
    tools=(
        Tool(name="book", parameters=(Parameter(name="dest"), Parameter(name="date")), confirm=True),
        Tool(name="email", parameters=(Parameter(name="to"),)),
    )
)
FULL = render((ready("book", dest="SFO", date="Mon"),))
PART = render((ready("book", dest="SFO"),))


def run(coroutine: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(coroutine)


def group(*answers: str | Sequence[Action], turn: int = 2, board: Board = EMPTY) -> Candidates:
    """Answers at a turn of the dialogue of T1.1."""
    texts = tuple(a if isinstance(a, str) else render(a) for a in answers)
    return Candidates(worked_example()[0], turn, texts, CATALOG, board)


def verdict(scores: dict[str, Any], **parts: float) -> str:
    """A judge's answer."""
    return json.dumps(
        {"scores": [{"id": i, "explanation": "", **parts, "score": s} for i, s in scores.items()]}
    )


class Script:
    """A judge that answers from a list, or by a function of the request; ``asked`` holds every request."""

    name = "script"
    concurrent = False

    def __init__(self, *answers: str | JudgeFailure | Callable[[JudgeRequest], str]) -> None:
        self.answers = list(answers)
        self.asked: list[JudgeRequest] = []
        self.batches: list[int] = []

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        self.batches.append(len(requests))
        return [self._one(request) for request in requests]

    def _one(self, request: JudgeRequest) -> str | JudgeFailure:
        self.asked.append(request)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(request) if callable(answer) else answer


def by_content(worth: dict[str, float]) -> Callable[[JudgeRequest], str]:
    """Score each trajectory by which of the texts it holds."""

    def answer(request: JudgeRequest) -> str:
        return verdict(score_texts(request.messages[1]["content"], worth))

    return answer


def score_texts(user: str, worth: dict[str, float]) -> dict[str, float]:
    """Ids of the trajectories in a question, with the worth of the message in each."""
    scores = {}
    for block in user.split('<trajectory id="')[1:]:
        id, _, rest = block.partition('">\n')
        lines = rest.partition("\n</trajectory>")[0].splitlines()
        scores[id] = worth[json.loads(lines[-1])["content"]]
    return scores
