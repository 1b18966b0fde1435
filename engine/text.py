"""Text to ids and back, for one Hugging Face tokenizer.

`TextCodec.markup` reads special tokens (for what a chat template wrote), `TextCodec.plain` never does (for
what people wrote). A fast tokenizer keeps the switch between the two as shared state, so `plain` has a
tokenizer of its own: no thread can turn another one's text into control tokens.

Decoding never tidies white space: a text is what was drawn.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor

from proactor.engine.types import EngineError, one_line

_PROBE: Final = "a"


@contextmanager
def tokenizer_faults(where: str, kind: type[EngineError] = EngineError) -> Iterator[None]:
    """Raise ``kind``, beginning with ``where``, for what a tokenizer's library raises in the block.

    Its Rust core knows no error but a bare Exception, and its Python part fails with whatever wrong types in
    the files lead to: nothing narrower can be caught.
    """
    try:
        yield
    except Exception as error:
        raise kind(f"{where}: {type(error).__name__}: {one_line(error)}") from error


class TextCodec:
    """A tokenizer's encoder, safe to call from several threads.

    ``specials``: text to id of the tokens that a message's text must never produce. ``opening`` and
    ``closing``: ids that the tokenizer's own post-processor puts around a text (Llama's begin token).
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.specials = _special_tokens(tokenizer)
        unknown = getattr(tokenizer, "unk_token_id", None)
        # the unknown token is what odd characters become: it controls nothing
        self._control = frozenset(self.specials.values()) - {unknown}
        self.opening, self.closing = self._frame()
        self._lock = threading.Lock()
        self._splitter: Any = None

    def markup(self, text: str) -> list[int]:
        """Ids of text in which special tokens count, such as a chat template's."""
        return self._encode(self.tokenizer, text, split=False)

    def plain(self, text: str) -> list[int]:
        """Ids of text in which nothing is a special token. Raises EngineError if the tokenizer cannot."""
        ids = self.markup(text)
        if self.special_in(text) is None and self._control.isdisjoint(ids):
            return ids
        ids = self._split(text)
        if self._control.isdisjoint(ids):
            return ids
        # a vocabulary that holds the special token's text as an ordinary entry: cut inside that text
        cuts = "|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in self.specials if len(s) > 1)
        ids = [token for piece in re.split(cuts, text) for token in self._split(piece)]
        if not self._control.isdisjoint(ids):
            raise EngineError(f"the text {text[:60]!r} becomes a special token in this tokenizer")
        return ids

    def special_in(self, value: object) -> str | None:
        """The first special token whose text stands in a string, or in a string inside lists and mappings."""
        if isinstance(value, str):
            return next((token for token in self.specials if token in value), None)
        if isinstance(value, Mapping):
            value = [*value.keys(), *value.values()]
        if isinstance(value, Sequence):
            return next((token for item in value if (token := self.special_in(item))), None)
        return None

    def _split(self, text: str) -> list[int]:
        with self._lock:
            if self._splitter is None:
                self._splitter = copy.deepcopy(self.tokenizer)
        return self._encode(self._splitter, text, split=True)

    @staticmethod
    def _encode(tokenizer: Any, text: str, split: bool) -> list[int]:
        with tokenizer_faults(f"the tokenizer cannot encode {text[:40]!r}"):
            encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=split)
            ids: list[int] = encoded["input_ids"]
        return ids

    def _frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What ``tokenizer(text)`` puts before and after a text's own ids."""
        with tokenizer_faults(f"the tokenizer cannot encode {_PROBE!r}"):
            whole: list[int] = self.tokenizer(_PROBE)["input_ids"]
        bare = self.markup(_PROBE)
        if not bare:  # a vocabulary of words without an unknown token
            return tuple(whole), ()
        for start in range(len(whole) - len(bare) + 1):
            if whole[start : start + len(bare)] == bare:
                return tuple(whole[:start]), tuple(whole[start + len(bare) :])
        return (), ()  # the post-processor changes the text's own ids


def _special_tokens(tokenizer: Any) -> dict[str, int]:
    with tokenizer_faults("the tokenizer's special tokens"):
        added = {
            token.content: int(i)
            for i, token in getattr(tokenizer, "added_tokens_decoder", {}).items()
            if token.special
        }
        named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
        return {text: token for text, token in (added | dict(named)).items() if text}


def drawable_ids(tokenizer: Any, size: int, eos_ids: Iterable[int]) -> tuple[int, Tensor | None]:
    """Which of the model's ``size`` ids have a token, or end a completion: a tokenizer's ids may have gaps.

    Returns 1 + the highest such id, and a bool mask [size] on the CPU that is False for padding; None: all.
    """
    ids = {i for i in (*tokenizer.get_vocab().values(), *eos_ids) if i < size}
    mask = None
    if len(ids) < size:
        mask = torch.zeros(size, dtype=torch.bool)
        mask[list(ids)] = True
    return max(ids, default=-1) + 1, mask


def decode(tokenizer: Any, ids: Sequence[int], specials: bool = False) -> str:
    """Text of ids, with or without special tokens, its white space as it is."""
    with tokenizer_faults("the tokenizer cannot decode"):
        text: str = tokenizer.decode(
            list(ids), skip_special_tokens=not specials, clean_up_tokenization_spaces=False
        )
    return text
