"""``/inference/v1/generate``: token ids in, token ids out, as vLLM names it and verifiers' client asks."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from proactor.engine import Sample
from proactor.server.answering import answered, drawing, finish_reason, usage_of
from proactor.server.completion_request import GenerateRequest
from proactor.server.refusals import as_json
from proactor.server.serving import Serving

router = APIRouter()


@router.post("/inference/v1/generate")
async def generate(request: Request) -> Response:
    """Samples of one prompt, with the log-probabilities of the full softmax at their temperature."""
    serving = Serving.of(request)
    asked = GenerateRequest.of(await serving.fields(request))
    asked = serving.within_limits(asked, asked.n)
    name = serving.models.base if asked.model is None else asked.model
    async with serving.place(request), serving.models.use(name) as adapter:
        groups = await answered(await drawing(serving.engine, [asked.token_ids], asked, adapter))
    samples = groups[0].samples
    return as_json(
        {
            "request_id": f"generate-{uuid.uuid4().hex}",
            "model": name,
            "choices": [_choice(i, sample, asked.logprobs is not None) for i, sample in enumerate(samples)],
            "prompt_logprobs": None,
            "usage": usage_of(serving, groups),
            "policy_version": samples[0].policy_version,
        }
    )


def _choice(index: int, sample: Sample, logprobs: bool) -> dict[str, Any]:
    content: list[dict[str, Any]] = [
        {"token": f"token_id:{token}", "logprob": logprob, "bytes": None, "top_logprobs": []}
        for token, logprob in zip(sample.token_ids, sample.policy_logprobs, strict=True)
    ]
    return {
        "index": index,
        "token_ids": sample.token_ids,
        "finish_reason": finish_reason(sample),
        "logprobs": {"content": content} if logprobs else None,
    }
