"""verifiers 0.4 samples through the server, as its rollouts would: `make test-neighbours`."""

from __future__ import annotations

from pathlib import Path

from proactor.engine import Engine, Sampling
from tests.neighbours.conftest import Client
from tests.proactor.server.served import ASK, Served


def test_verifiers_gets_the_engines_tokens(
    client: Client, served: Served, folder: Path, engine: Engine
) -> None:
    told = client("verifiers", "verifiers_client.py", served.url, "policy", folder)
    ids = engine.encode(ASK)
    stops = tuple(engine.eos_ids)
    [sample] = engine.sample([ids], Sampling(max_tokens=12, seed=5, stop_ids=stops))[0].samples
    for turn in ("turn 0", "turn 1"):
        assert told[turn] == {
            "prompt_ids": ids,
            "completion_ids": sample.token_ids,
            "logprobs": sample.policy_logprobs,
            "finish_reason": "stop" if sample.finish_reason == "stop" else "length",
        }
    assert "exceeds maximum context length (1024)" in told["too long"]
    assert told["relayed"] == {"content": sample.text, "tokens": len(sample.token_ids)}
