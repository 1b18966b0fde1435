"""An OpenAI-compatible endpoint as annotator: the shared prompt, the shared schema, several dialogues at
once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from proactor.annotation.marks import schema
from proactor.annotation.oracle import OracleAnswer, OracleRequest
from proactor.annotation.prompt import messages
from proactor.endpoint import Endpoint, EndpointError

CHARACTERS_A_TOKEN = 4
"""For the estimate only: the endpoint's tokenizer is not known here."""


class EndpointOracle:
    """Each request is one request. ``Endpoint`` bounds how many are under way and retries; what still fails
    is an `OracleAnswer` with its kind.
    """

    steady = False
    batch = 1

    def __init__(self, endpoint: Endpoint, max_tokens: int = 1024) -> None:
        self.endpoint, self.max_tokens = endpoint, max_tokens
        self.workers = max(1, endpoint.concurrency)
        self.identity = f"endpoint {endpoint.model} {endpoint.base_url or ''} max_tokens={max_tokens}"

    async def answer(self, requests: Sequence[OracleRequest]) -> list[OracleAnswer]:
        return list(await asyncio.gather(*(self._one(request) for request in requests)))

    async def _one(self, request: OracleRequest) -> OracleAnswer:
        try:
            text = await self.endpoint.reply(
                messages(request),
                schema=schema(request.tools),
                seed=request.repeat,
                max_tokens=self.max_tokens,
            )
        except EndpointError as error:
            return OracleAnswer(failure=error.kind)
        return OracleAnswer(text)

    def tokens(self, text: str) -> int:
        return -(-len(text) // CHARACTERS_A_TOKEN)

    def cost(self) -> Mapping[str, int]:
        return dict(self.endpoint.counters)

    async def close(self) -> None:
        await self.endpoint.aclose()
