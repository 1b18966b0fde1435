"""A model behind an OpenAI-compatible endpoint as annotator."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from proactor.annotation.marks import answer_schema
from proactor.annotation.oracle import OracleAnswer, OracleRequest
from proactor.annotation.prompt import messages
from proactor.endpoint import Endpoint
from proactor.endpoint_errors import EndpointError

CHARACTERS_A_TOKEN = 4
"""For the estimate only: the endpoint's tokenizer is not known."""


class EndpointOracle:
    """One call of the endpoint per request. A call that fails after the endpoint's retries is an
    `OracleAnswer` with the kind of failure.
    """

    steady = False
    batch = 1

    def __init__(self, endpoint: Endpoint, max_tokens: int = 1024) -> None:
        self.endpoint, self.max_tokens = endpoint, max_tokens
        self.workers = max(1, endpoint.concurrency)
        self.identity = f"endpoint {endpoint.model} {endpoint.base_url or ''} max_tokens={max_tokens}"

    async def answer(self, requests: Sequence[OracleRequest]) -> list[OracleAnswer]:
        """One answer per request, asked concurrently."""
        return list(await asyncio.gather(*(self._answer(request) for request in requests)))

    async def _answer(self, request: OracleRequest) -> OracleAnswer:
        try:
            text = await self.endpoint.reply(
                messages(request),
                schema=answer_schema(request.tools),
                seed=request.repeat,
                max_tokens=self.max_tokens,
            )
        except EndpointError as error:
            return OracleAnswer(failure=error.kind, reason=" ".join(str(error).split()))
        return OracleAnswer(text)

    def tokens(self, text: str) -> int:
        """Tokens of ``text``, by its characters."""
        return -(-len(text) // CHARACTERS_A_TOKEN)

    def cost(self) -> Mapping[str, int]:
        """The endpoint's counters."""
        return dict(self.endpoint.counters)

    async def close(self) -> None:
        """Close the endpoint's connections."""
        await self.endpoint.aclose()
