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
from proactor.engine.text import decode, tokenizer_faults

MOST_OPEN: Final = 8
"""Tokens after which broken text is not waited for any longer: a character has at most 4 bytes."""

_BYTE: Final = re.compile("<0x[0-9A-F]{2}>")
"""A byte, as SentencePiece writes those of characters that have no token."""


class TextPieces:
    """A tokenizer as streams read it, in any thread. ``specials``: ids of tokens that are in no text."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.bytes = BytePieces.of(tokenizer)
        if self.bytes is not None:
            self.specials = self.bytes.specials
        else:
            self.specials = frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)
        self._own: dict[int, bytes] = {}

    def own(self, token: int) -> bytes:
        """The bytes that a token adds to a text that has begun: a part of a character too, a special token as
        it is written. Raises EngineError where the tokenizer cannot decode.
        """
        if self.bytes is not None:
            return self.bytes[token]
        if token not in self._own:
            self._own[token] = self._decoded(token)
        return self._own[token]

    def text(self, token: int) -> str:
        """The same as text, parts of a character as U+FFFD."""
        return self.own(token).decode(errors="replace")

    def _decoded(self, token: int) -> bytes:
        with tokenizer_faults("the tokenizer cannot decode"):
            name = self.tokenizer.convert_ids_to_tokens(token) or ""
        if _BYTE.fullmatch(name):
            return bytes([int(name[3:5], 16)])
        # what the second of two alike adds: a tokenizer may drop the space that begins a text
        first = decode(self.tokenizer, [token], specials=True)
        return decode(self.tokenizer, [token, token], specials=True)[len(first) :].encode()


class TokenOffsets:
    """At which character of a sample's text its tokens begin, those of a stop string as if it stood there.

    A token that goes on with a character begins where that one does. Special tokens take no place.
    """

    def __init__(self, pieces: TextPieces) -> None:
        self._pieces = pieces
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._length, self._begun = 0, False

    def take(self, ids: Sequence[int]) -> list[int]:
        """Of these further tokens."""
        return [self._take(token) for token in ids]

    def _take(self, token: int) -> int:
        offset, pieces = self._length, self._pieces
        if token in pieces.specials:
            return offset
        self._length += len(self._utf8.decode(pieces.own(token)))
        if pieces.bytes is None and not self._begun:  # less what is dropped where the text begins
            self._length -= len(pieces.text(token)) - len(decode(pieces.tokenizer, [token]))
            self._begun = bool(pieces.own(token))
        return offset


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
