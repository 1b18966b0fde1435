"""An OpenAI-compatible endpoint as annotator: the shared prompt, the shared schema, several dialogues at
once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from proactor.annotation.marks import schema
from proactor.annotation.oracle import Answer, Question
from proactor.annotation.prompt import messages
from proactor.endpoint import Endpoint, EndpointError

CHARACTERS_A_TOKEN = 4
"""For the estimate only: the endpoint's tokenizer is not known here."""


class EndpointOracle:
    """Each question is one request. ``Endpoint`` bounds how many are under way and retries; what still fails
    is an `Answer` with its kind.
    """

    steady = False
    batch = 1

    def __init__(self, endpoint: Endpoint, max_tokens: int = 1024) -> None:
        self.endpoint, self.max_tokens = endpoint, max_tokens
        self.workers = max(1, endpoint.concurrency)
        self.identity = f"endpoint {endpoint.model} {endpoint.base_url or ''} max_tokens={max_tokens}"

    async def answer(self, questions: Sequence[Question]) -> list[Answer]:
        return list(await asyncio.gather(*(self._one(question) for question in questions)))

    async def _one(self, question: Question) -> Answer:
        try:
            text = await self.endpoint.reply(
                messages(question),
                schema=schema(question.tools),
                seed=question.repeat,
                max_tokens=self.max_tokens,
            )
        except EndpointError as error:
            return Answer(failure=error.kind)
        return Answer(text)

    def tokens(self, text: str) -> int:
        return -(-len(text) // CHARACTERS_A_TOKEN)

    def cost(self) -> Mapping[str, int]:
        return dict(self.endpoint.counters)

    async def close(self) -> None:
        await self.endpoint.aclose()
