"""Requests of `bench.serving`: those whose answers are known, and those of clients that do not behave."""

from __future__ import annotations

import random
from typing import Any

from proactor.engine import Engine, Sampling, ToolChat

KINDS = {
    "chat": 25,
    "chat, streamed": 15,
    "completion": 15,
    "completion, streamed": 10,
    "tokens": 15,
    "models": 3,
    "metrics": 1,
    "leaves": 6,
    "half a head": 1,
    "half a body": 2,
    "reads nothing": 2,
    "rubbish": 5,
}
"""Kinds of requests, with their weights."""
CASES = 60
"""Different answers that are compared."""
STALL = 1.0
"""Seconds that the server waits for a slow client here."""
MAX_BODY = 64 * 1024
"""Bytes of a request's body that the server takes here."""
SHOWN = {"return_token_ids": True}
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions", "tokens": "/inference/v1/generate"}
ANSWERED = tuple(kind for kind in KINDS if kind.partition(",")[0] in {*PATHS, "models", "metrics"})
"""Kinds that have an answer."""


class Cases:
    """Requests whose answers are known: the engine's own, drawn in process."""

    def __init__(self, engine: Engine, rng: random.Random, tokens: int) -> None:
        assert engine.chat is not None
        self.engine, self.tokens = engine, tokens
        self.expected: list[list[dict[str, Any]]] = []
        self.asked: list[dict[str, Any]] = []
        words = [f"t{rng.randrange(3, 400)}" for _ in range(400)]
        chat = ToolChat(engine.chat)
        for case in range(CASES):
            text = " ".join(rng.choices(words, k=rng.randint(1, 40)))
            form = ("chat", "completion", "tokens")[case % 3]
            messages = [{"role": "user", "content": text}]
            ids = chat.opening(messages) if form == "chat" else engine.encode(text)
            drawn: dict[str, Any] = {"n": rng.choice((1, 1, 2)), "seed": case}
            drawn["max_tokens"] = rng.randint(1, tokens)
            adapter = rng.random() < 0.5
            drawn["temperature"] = rng.choice((0.0, 0.7, 1.0))
            [group] = engine.sample([ids], Sampling(adapter=adapter, **drawn))
            self.expected.append(
                [
                    {"token_ids": s.token_ids, "logprobs": s.policy_logprobs, "text": s.text}
                    for s in group.samples
                ]
            )
            body: dict[str, Any] = {"model": "adapter" if adapter else "model"}
            if form == "tokens":
                body |= {"token_ids": ids, "sampling_params": {**drawn, "logprobs": 1}}
            else:
                prompt = {"messages": messages} if form == "chat" else {"prompt": text}
                body |= {**prompt, **drawn, **SHOWN}
                body["logprobs"] = True if form == "chat" else 0
            self.asked.append({"form": form, "body": body})

    def request(self, kind: str, rng: random.Random) -> dict[str, Any]:
        """A request of a kind."""
        form = kind.partition(",")[0]
        if form in PATHS:
            case = rng.choice([i for i, asked in enumerate(self.asked) if asked["form"] == form])
            body = dict(self.asked[case]["body"])
            if "streamed" in kind:
                body["stream"] = True
            return {"kind": kind, "path": PATHS[form], "body": body, "expect": case}
        if kind in ("models", "metrics"):
            return {"kind": kind, "path": "/v1/models" if kind == "models" else "/metrics"}
        long = {"model": "model", "prompt": "t9", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        odd: dict[str, Any] = {"kind": kind, "path": PATHS["completion"], "body": long}
        if kind == "leaves":
            odd["body"] = {**long, "stream": rng.random() < 0.5}
            return {**odd, "manner": "leave", "seconds": rng.random() / 4, "rough": rng.random() < 0.5}
        if kind == "reads nothing":
            odd["body"] = {**long, "n": 8, "max_tokens": 200, **SHOWN, "logprobs": 1}
            return {**odd, "manner": "read_nothing", "seconds": 2 * STALL}
        if kind.startswith("half"):
            return {**odd, "manner": "send_half", "bytes": 40 if kind == "half a head" else 160}
        return {**odd, "manner": "send_rubbish", **_rubbish(rng, long)}


def _rubbish(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """A request that is refused."""
    return rng.choice(
        [
            {"body": {**body, "model": "../../etc/passwd"}},
            {"body": {**body, "temperature": -1}},
            {"body": {**body, "prompt": {"a": []}}},
            {"body": {**body, "n": 10**6}},
            {"body": [1, 2]},
            {"body": {**body, "prompt": "t9 " * MAX_BODY}},
            {"path": "/v1/models/../../etc/passwd"},
            {"raw": b"GET / HTTP/1.1\r\nHost: a\r\nX: a\x00b\r\n\r\n".hex()},
            {"raw": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".hex() + b"\r\n\r\n".hex()},
        ]
    )
