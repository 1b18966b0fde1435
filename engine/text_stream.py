"""The text of a sample while it is drawn: what is certain is given out, and is never taken back.

A token may end inside a character, and the last characters may begin a stop string, before which the text
will end. Both are kept back until the next tokens, or the end, decide.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence
from typing import Any, Final

from proactor.engine.stops import BytePieces
from proactor.engine.text import decode

MOST_OPEN: Final = 8
"""Tokens after which broken text is not waited for any longer: a character has at most 4 bytes."""

_BYTE: Final = re.compile("<0x[0-9A-F]{2}>")
"""A byte, as SentencePiece writes those of characters that have no token."""


class TextPieces:
    """A tokenizer as streams read it, in any thread."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bytes = BytePieces.of(tokenizer)


class TextStream:
    """The text of one sample with the stop strings ``stop``."""

    def __init__(self, pieces: TextPieces, stop: Sequence[str]) -> None:
        self._decoder: _ByteDecoder | _WindowDecoder = _WindowDecoder(pieces.tokenizer)
        if pieces.bytes is not None:
            self._decoder = _ByteDecoder(pieces.bytes)
        self._held = max(map(len, stop), default=1) - 1
        self._pending, self._given = "", 0

    def take(self, ids: Sequence[int]) -> str:
        """The text that is certain with these further tokens, and was not before. None of them completes a
        stop string.
        """
        self._pending += self._decoder.take(ids)
        sure = max(0, len(self._pending) - self._held)
        text, self._pending = self._pending[:sure], self._pending[sure:]
        self._given += sure
        return text

    def finish(self, text: str) -> str:
        """What is left of the whole ``text`` (`Sample.text`)."""
        return text[self._given :]


class _ByteDecoder:
    """For a byte-level tokenizer: UTF-8, a piece at a time."""

    def __init__(self, pieces: BytePieces) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")

    def take(self, ids: Sequence[int]) -> str:
        specials = self._pieces.specials
        return self._utf8.decode(b"".join(self._pieces[i] for i in ids if i not in specials))


class _WindowDecoder:
    """For any tokenizer: the tokens since the last whole character are decoded beside those before them."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []  # as context: a tokenizer may drop the space that begins a text
        self._open: list[int] = []

    def take(self, ids: Sequence[int]) -> str:
        self._open += ids
        if self._open and _BYTE.fullmatch(self._tokenizer.convert_ids_to_tokens(self._open[-1]) or ""):
            return ""  # a run of bytes is read as a whole, or is no text as a whole
        known = decode(self._tokenizer, self._before)
        text = decode(self._tokenizer, self._before + self._open)
        if text.endswith("\ufffd") and len(self._open) < MOST_OPEN:
            return ""
        if len(text) > len(known):  # tokens without text, such as special ones, are no context
            self._before = self._open
        self._open = []
        return text[len(known) :]
