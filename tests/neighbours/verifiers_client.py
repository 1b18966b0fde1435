"""verifiers' own client asks a server; run in its environment, prints what came back as JSON.

python verifiers_client.py URL MODEL TOKENIZER_FOLDER
"""

import asyncio
import json
import sys

from renderers import DefaultRendererConfig
from verifiers.v1.clients.client import resolve_client
from verifiers.v1.configs.client import EvalClientConfig, TrainClientConfig
from verifiers.v1.dialects import ChatDialect
from verifiers.v1.errors import ProviderError
from verifiers.v1.types import SamplingConfig

ASK = [{"role": "user", "content": "Is Friday dry?"}]


async def play(url, model, folder):
    endpoint = {"base_url": f"{url}/v1", "api_key_var": "SERVER_KEY"}
    renderer = {"renderer": DefaultRendererConfig(), "renderer_model_name": folder}
    train = resolve_client(TrainClientConfig(**endpoint, **renderer))
    body, sampling = {"model": model, "messages": ASK}, SamplingConfig(max_tokens=12, seed=5)
    told = {}
    for turn in range(2):
        response = await train.get_response(ChatDialect(), body, sampling, session_id="trace")
        told[f"turn {turn}"] = {
            "prompt_ids": response.tokens.prompt_ids,
            "completion_ids": response.tokens.completion_ids,
            "logprobs": response.tokens.completion_logprobs,
            "finish_reason": response.finish_reason,
        }
    try:
        long = {"model": model, "messages": [{"role": "user", "content": "long " * 2000}]}
        await train.get_response(ChatDialect(), long, sampling)
    except ProviderError as error:
        told["too long"] = str(error)
    relay = resolve_client(EvalClientConfig(**endpoint))
    asked = {**body, "max_tokens": 12, "seed": 5}
    response = await relay.get_response(ChatDialect(), asked, sampling, session_id="trace")
    told["relayed"] = {"content": response.message.content, "tokens": response.usage.completion_tokens}
    await train.close()
    await relay.close()
    return told


print(json.dumps(asyncio.run(play(*sys.argv[1:]))))
