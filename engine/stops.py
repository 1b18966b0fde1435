"""Stop strings, found token by token at a cost that does not grow with the text.

The visible text of a completion, special tokens included, is what its stop strings are searched in. A
byte-level tokenizer (Qwen, Llama 3, GPT-2) writes it by joining the bytes of its tokens, and UTF-8 is
self-synchronising: a string stands in the text exactly where its bytes stand in the joined bytes. So the
search is a finite automaton over bytes (Knuth, Morris and Pratt, for several strings), whose state is how
many first bytes of each string the text ends in. Its moves by token are kept, so that most tokens cost one
look-up. Other tokenizers, and strings that hold U+FFFD, decode the last few tokens anew.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, Protocol

from proactor.engine.text import decode

MOST_MOVES: Final = 1 << 15
"""Moves that one set of stop strings keeps; then they are forgotten and found again."""
MOST_SETS: Final = 32
"""Sets of stop strings whose moves are kept."""
SLACK: Final = 8
"""Tokens that a window holds beyond the longest string's bytes, for characters split over tokens."""


class StopSearch(Protocol):
    """The search in one completion."""

    def take(self, token: int) -> bool:
        """Whether the next token completes a stop string."""
        ...


class StopStrings:
    """Stop strings for one Hugging Face tokenizer. Used by one thread alone."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.pieces = BytePieces.of(tokenizer)
        self._automaton = lru_cache(MOST_SETS)(self._new_automaton)

    def search(self, stop: tuple[str, ...]) -> StopSearch:
        """A search for any of ``stop`` in a completion that begins."""
        strings = _as_bytes(stop)
        if self.pieces is None or strings is None:
            return WindowSearch(self.tokenizer, stop)
        return ByteSearch(self._automaton(strings).start)

    def _new_automaton(self, strings: tuple[bytes, ...]) -> StopAutomaton:
        assert self.pieces is not None
        return StopAutomaton(self.pieces, strings)

    def text(self, ids: Sequence[int], stop: tuple[str, ...]) -> str:
        """Text without special tokens, cut before the first of ``stop`` that stands in the visible text.

        Raises EngineError where the tokenizer cannot decode.
        """
        strings = _as_bytes(stop)
        if not stop or strings is None or self.pieces is None:
            return text_before_stop(self.tokenizer, ids, stop)
        pieces, specials = [self.pieces[i] for i in ids], self.pieces.specials
        visible = b"".join(pieces)
        left = min((at for s in strings if (at := visible.find(s)) >= 0), default=len(visible))
        kept = []
        for i, piece in zip(ids, pieces, strict=True):
            if i not in specials:
                kept.append(piece[:left])
            left = max(0, left - len(piece))
        return b"".join(kept).decode(errors="replace")


class BytePieces(dict[int, bytes]):
    """The bytes that each id of a byte-level tokenizer adds to a text; none for ids without a token.

    ``specials``: ids of special tokens.
    """

    def __init__(self, core: Any) -> None:
        super().__init__()
        self._core = core
        self.specials = frozenset(i for i, t in core.get_added_tokens_decoder().items() if t.special)

    @classmethod
    def of(cls, tokenizer: Any) -> BytePieces | None:
        """The pieces of a fast tokenizer whose decoder joins bytes, else None."""
        from tokenizers import decoders

        core = getattr(tokenizer, "backend_tokenizer", None)
        return cls(core) if core is not None and isinstance(core.decoder, decoders.ByteLevel) else None

    def __missing__(self, token: int) -> bytes:
        text = self._core.id_to_token(token) or ""
        known = all(c in BYTE_OF for c in text)  # an added token need not be written in these characters
        piece = self[token] = bytes(BYTE_OF[c] for c in text) if known else text.encode()
        return piece


def _byte_characters() -> dict[str, int]:
    """GPT-2's character of each byte: its own where it prints, one from U+0100 on elsewhere."""
    own = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(own)]
    return {chr(b): b for b in own} | {chr(256 + i): b for i, b in enumerate(rest)}


BYTE_OF: Final = _byte_characters()


def _as_bytes(stop: Sequence[str]) -> tuple[bytes, ...] | None:
    """The strings in UTF-8; None where bytes cannot stand for one.

    Broken bytes show as U+FFFD, and a lone surrogate has no UTF-8.
    """
    if any(c == "\ufffd" or "\ud800" <= c <= "\udfff" for s in stop for c in s):
        return None
    return tuple(s.encode() for s in stop)


Begun = tuple[int, ...]
"""Of each stop string, how many of its first bytes the text ends in."""


class StopState:
    """A state of the automaton: what the bytes so far have ``begun``.

    ``moves``: the states that follow, by token. ``found``: a stop string is complete.
    """

    __slots__ = ("automaton", "begun", "found", "moves")

    def __init__(self, automaton: StopAutomaton, begun: Begun, found: bool = False) -> None:
        self.automaton, self.begun, self.found = automaton, begun, found
        self.moves: dict[int, StopState] = {}

    def after(self, token: int) -> StopState:
        """The state that follows ``token``, which has no move yet."""
        following = self.automaton.follow(self.begun, token)
        self.moves[token] = following
        return following


class StopAutomaton:
    """The states of one set of strings, made as they are reached. What it holds from the start is linear in
    their bytes.
    """

    def __init__(self, pieces: BytePieces, strings: Sequence[bytes]) -> None:
        self.pieces = pieces
        self.strings = [(string, _borders(string)) for string in strings]
        nothing = (0,) * len(strings)
        self.found = StopState(self, nothing, found=True)
        self.start = StopState(self, nothing)
        self.states = {nothing: self.start}
        self.moves = 0

    def follow(self, begun: Begun, token: int) -> StopState:
        """The state of a text that had ``begun`` so much, after ``token``."""
        self._count()
        lengths = list(begun)
        for byte in self.pieces[token]:
            for i, (string, borders) in enumerate(self.strings):
                lengths[i] = length = _longer(string, borders, lengths[i], byte)
                if length == len(string):
                    return self.found
        following = tuple(lengths)
        return self.states.setdefault(following, StopState(self, following))

    def _count(self) -> None:
        """Forget all moves when there are too many: a vocabulary may be visited in every state."""
        self.moves += 1
        if self.moves > MOST_MOVES:
            self.moves = 0
            for state in self.states.values():
                state.moves.clear()


def _longer(string: bytes, borders: array[int], length: int, byte: int) -> int:
    """How many first bytes of ``string`` a text ends in that ended in ``length`` of them, after ``byte``."""
    while length and string[length] != byte:
        length = borders[length - 1]
    return length + (string[length] == byte)


def _borders(string: bytes) -> array[int]:
    """For each beginning of ``string``, the length of its longest proper end that begins it too."""
    borders = array("L", [0])
    for byte in string[1:]:
        borders.append(_longer(string, borders, borders[-1], byte))
    return borders


class ByteSearch:
    """`StopSearch` for a byte-level tokenizer."""

    __slots__ = ("state",)

    def __init__(self, state: StopState) -> None:
        self.state = state

    def take(self, token: int) -> bool:
        """Whether the next token completes a stop string."""
        state = self.state
        self.state = state = state.moves.get(token) or state.after(token)
        return state.found


class WindowSearch:
    """`StopSearch` for any tokenizer: decodes the last tokens, each at least one byte of the text."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, stop
        longest = max(len(s.encode(errors="surrogatepass")) for s in stop)
        self.ids: deque[int] = deque(maxlen=longest + SLACK)

    def take(self, token: int) -> bool:
        """Whether the next token completes a stop string. Raises EngineError where it cannot be decoded."""
        self.ids.append(token)
        tail = decode(self.tokenizer, self.ids, specials=True)
        return any(s in tail for s in self.stop)


def text_before_stop(tokenizer: Any, ids: Sequence[int], stop: Sequence[str]) -> str:
    """`StopStrings.text` for any tokenizer."""
    places = []
    if stop:
        visible = decode(tokenizer, ids, specials=True)
        places = [at for s in stop if (at := visible.find(s)) >= 0]
    if not places:
        return decode(tokenizer, ids)
    place, end = min(places), len(ids)
    while end and len(visible := decode(tokenizer, ids[: end - 1], specials=True)) > place:
        end -= 1
    # ids[end - 1] holds the stop's first character; as much of it is cut as the visible text goes beyond
    beyond = len(decode(tokenizer, ids[:end], specials=True)) - place
    before, text = decode(tokenizer, ids[: end - 1]), decode(tokenizer, ids[:end])
    return before if text == before else text[: len(text) - beyond]
