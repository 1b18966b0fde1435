"""A model behind an OpenAI-compatible endpoint as judge."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from proactor.endpoint import Endpoint
from proactor.endpoint_errors import EndpointError
from proactor.ruler.judge import JudgeFailure
from proactor.ruler.question import JudgeRequest


@dataclass
class EndpointJudge:
    """Asks the endpoint for the verdict's JSON schema. Requests run concurrently."""

    endpoint: Endpoint
    max_tokens: int = 2048
    concurrent: bool = field(default=True, init=False)

    @property
    def name(self) -> str:
        """The endpoint's model, address and options."""
        options = "".join(f",{k}={v}" for k, v in sorted(self.endpoint.options.items()))
        return f"endpoint:{self.endpoint.model}@{self.endpoint.base_url or 'openai'}{options}"

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """One answer per request. Raises EndpointSetupError at the first request without client or key."""
        return list(await asyncio.gather(*(self.reply_within(request, None) for request in requests)))

    async def reply_within(self, request: JudgeRequest, seconds: float | None) -> str | JudgeFailure:
        """One answer. ``seconds``: the limit from when the endpoint begins the request; queueing is free."""
        try:
            return await self.endpoint.reply(
                request.messages,
                schema=request.schema,
                seed=request.seed,
                max_tokens=self.max_tokens,
                within=seconds,
            )
        except EndpointError as error:
            return JudgeFailure(error.kind, str(error))
