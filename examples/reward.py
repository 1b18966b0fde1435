"""A reward of one's own, in TRL's signature. In a run configuration: `reward: examples.reward:brevity`.

    proactor train configs/demo.yaml name=brevity reward=examples.reward:brevity reward_options={}

A reward gets a batch of prompts and completions and returns one number a completion. Every column of the data
arrives as a keyword argument, one value a completion: take those that you need by name and leave the rest to
`columns`. A completion is a text, or a list of messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TARGET = 40
"""Characters that an answer may have before it costs."""


def text_of(completion: str | Sequence[dict[str, str]]) -> str:
    """The text of a completion in either form."""
    return completion if isinstance(completion, str) else "".join(m["content"] for m in completion)


def brevity(prompts: Sequence[Any], completions: Sequence[Any], **columns: Sequence[Any]) -> list[float]:
    """1 up to `TARGET` characters, falling to 0 at twice that; 0 for an empty answer."""
    lengths = [len(text_of(completion).strip()) for completion in completions]
    return [0.0 if not n else max(0.0, min(1.0, 2.0 - n / TARGET)) for n in lengths]
