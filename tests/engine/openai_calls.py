"""Calls of OpenAI's client without a socket, and a model that says what a test wants."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch

from proactor.engine import Engine

ASK = [{"role": "user", "content": "Is Friday dry?"}]
GREEDY = {"model": "base", "messages": ASK, "temperature": 0, "max_tokens": 8}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}


def create(client: Any, **changes: Any) -> Any:
    return client.chat.completions.create(**{**GREEDY, **changes})


def said(completion: Any) -> list[list[int]]:
    return [choice.token_ids for choice in completion.choices]


def forced(engine: Engine, text: str) -> Any:
    """A client whose model can say nothing but ``text``."""
    assert engine.chat is not None
    client, ids, size = engine.openai(), engine.chat.encode_answer(text), engine.config.vocab_size

    def only(_: list[int], position: int) -> torch.Tensor:
        return torch.arange(size) == ids[min(position, len(ids) - 1)]

    said = partial(client.chat.completions.create, extra_body={"logit_mask": only})
    chat = SimpleNamespace(completions=SimpleNamespace(create=said))
    return SimpleNamespace(chat=chat, counters=client.counters, mask=only)
