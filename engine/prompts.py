"""What a prompt is, and what is refused instead of being guessed at."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from proactor.engine.arguments import short
from proactor.engine.chat import ChatFormat
from proactor.engine.types import EngineError

Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]
KINDS = "a prompt is text, a list of messages, or a list of token ids"


def check_prompts(prompts: Any, call: str = "sample") -> None:
    """Raise EngineError unless ``prompts`` is a list of prompts; one prompt by itself is refused by name."""
    if isinstance(prompts, str | bytes | Mapping):
        raise EngineError(f"{call}: takes a list of prompts, not one {_kind(prompts)}: write [prompt]")
    if not (hasattr(prompts, "__len__") and hasattr(prompts, "__getitem__")):
        raise EngineError(f"{call}: takes a list of prompts, not a {_kind(prompts)}")
    if len(prompts) and _is_id(prompts[0]):
        raise EngineError(f"{call}: takes a list of prompts, not one list of token ids: write [prompt]")
    if len(prompts) and isinstance(prompts[0], Mapping) and "role" in prompts[0]:
        raise EngineError(f"{call}: takes a list of prompts, not one list of messages: write [prompt]")


def encode_prompt(prompt: Prompt, chat: ChatFormat | None, model: str) -> list[int]:
    """`Engine.encode`; without ``chat`` only token ids, and EngineError naming ``model`` for the rest."""
    if not isinstance(prompt, str) and not is_messages(prompt):
        return token_ids(prompt)
    if chat is None:
        raise EngineError(f"{model}: no tokenizer in the model folder, so prompts must be token ids")
    if isinstance(prompt, str):
        return chat.encode_text(prompt)
    return chat.encode(prompt, add_generation_prompt=True)  # type: ignore[arg-type]


def is_messages(prompt: Any) -> bool:
    """Whether a prompt is a conversation: its first item is a mapping."""
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes)
    return listed and len(prompt) > 0 and isinstance(prompt[0], Mapping)


def token_ids(prompt: Any) -> list[int]:
    """A prompt of ids (list, tuple, one-dimensional array or tensor) as a list of int.

    Raises EngineError for anything that is not a list of whole numbers.
    """
    if isinstance(prompt, Mapping):
        hint = ": give its 'input_ids'" if "input_ids" in prompt else ""
        raise EngineError(f"{KINDS}, not a {_kind(prompt)}{hint}")
    if isinstance(prompt, np.ndarray | Tensor):
        prompt = prompt.tolist()
    listed = isinstance(prompt, Sequence) and not isinstance(prompt, str | bytes | bytearray | memoryview)
    if not listed:
        raise EngineError(f"{KINDS}, not a {_kind(prompt)}")
    if set(map(type, prompt)) <= {int}:
        return list(prompt)
    for item in prompt:
        if not _is_id(item):
            raise EngineError(f"{KINDS}, not a list with {item!r:.40} ({_kind(item)})")
    return [operator.index(item) for item in prompt]


def ids_of(ids: Any, what: str) -> list[int]:
    """`token_ids` of what is no prompt. Raises EngineError that begins with ``what``."""
    try:
        return token_ids(ids)
    except EngineError:
        raise EngineError(f"{what} is a list of token ids, not {short(ids)}") from None


def check_prompt(prompt: Any) -> None:
    """Raise EngineError for one message or one id where a prompt is asked for."""
    if isinstance(prompt, Mapping) or _is_id(prompt):
        raise EngineError(f"{KINDS}, not a {_kind(prompt)}")


def check_keys(keys: Sequence[Any]) -> None:
    """Raise EngineError, naming the prompt, unless every noise key is an integer of 32 bits: the noise counts
    modulo 2^32, and two keys must not become one.
    """
    for i, key in enumerate(keys):
        if not _is_id(key) or not 0 <= operator.index(key) < 1 << 32:
            raise EngineError(f"prompt {i}: key {key!r} is not an integer of 0 … {(1 << 32) - 1}")


def _is_id(item: Any) -> bool:
    if type(item) is int:
        return True
    if isinstance(item, bool | np.bool_) or getattr(item, "ndim", 0) != 0:
        return False
    try:
        operator.index(item)
    except (TypeError, ValueError):
        return False
    return not isinstance(item, Tensor) or not item.dtype.is_floating_point


def _kind(value: Any) -> str:
    return "text" if isinstance(value, str) else type(value).__name__
