"""Stop strings found token by token: the definition is in terms of the whole text, decoded anew each time."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from proactor.engine import stops
from proactor.engine.stops import BYTE_OF, BytePieces, ByteSearch, StopStrings, WindowSearch, text_before_stop
from proactor.engine.text import decode

CHARACTER = {byte: character for character, byte in BYTE_OF.items()}
PIECES = [
    *(bytes([b]) for b in b"ab<>\n"),
    *("é".encode()[i : i + 1] for i in range(2)),
    *("🎉".encode()[i : i + 2] for i in (0, 2)),
    *("🎉".encode()[i : i + 1] for i in range(4)),
    b"ab",
    b"a<",
    "b🎉".encode()[:3],
    "🎉a".encode()[2:],
    "é é".encode(),
    b"\xff",
    "�".encode(),
]
SPECIALS = ["<s>", "<é b>"]
"""The second is not written in the characters of bytes."""


def tokenizer_of(vocabulary: dict[str, int], decoder: Any, specials: Sequence[str] = SPECIALS) -> Any:
    core = Tokenizer(models.BPE(vocabulary, []))
    if decoder is not None:
        core.decoder = decoder
    core.add_special_tokens([AddedToken(s, special=True) for s in specials])
    core.add_tokens([AddedToken("a b", special=False)])
    return PreTrainedTokenizerFast(tokenizer_object=core)


def byte_level() -> Any:
    """Tokens of single bytes, and of bytes in which characters begin, end and lie whole."""
    return tokenizer_of(
        {"".join(CHARACTER[b] for b in piece): i for i, piece in enumerate(dict.fromkeys(PIECES))},
        decoders.ByteLevel(),
    )


def fallback() -> Any:
    """As sentencepiece writes: words after ▁, and bytes of their own where it knows no token."""
    words = ["▁a", "a", "▁", "b", "ab", "é", *(f"<0x{b:02X}>" for b in "🎉".encode())]
    chain = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    return tokenizer_of({w: i for i, w in enumerate(words)}, decoders.Sequence(chain))


def words() -> Any:
    return tokenizer_of({w: i for i, w in enumerate(["a", "b", "ab", "é", "🎉a"])}, None)


TOKENIZERS = {"byte level": byte_level(), "fallback": fallback(), "words": words()}


def end_of(tokenizer: Any, ids: list[int], stop: Sequence[str]) -> int | None:
    """The definition: the fewest tokens whose visible text holds one of the strings."""
    for n in range(1, len(ids) + 1):
        if any(s in decode(tokenizer, ids[:n], specials=True) for s in stop):
            return n
    return None


def found(search: stops.StopSearch, ids: list[int]) -> int | None:
    """Where the search stops."""
    return next((n for n, token in enumerate(ids, 1) if search.take(token)), None)


@st.composite
def completions(draw: st.DrawFn, name: str) -> tuple[list[int], tuple[str, ...]]:
    """Ids, and strings of which some stand in their text."""
    tokenizer = TOKENIZERS[name]
    size = len(tokenizer)
    ids = draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=40))
    text = decode(tokenizer, ids, specials=True)
    inside = st.builds(
        lambda at, n: text[at : at + n], st.integers(0, max(0, len(text) - 1)), st.integers(1, 6)
    )
    other = st.text("ab<>sé🎉 \n", min_size=1, max_size=4)
    strings = draw(st.lists(st.one_of(inside, other), min_size=1, max_size=3))
    return ids, tuple(s for s in strings if s) or ("zz",)


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_token_by_token_equals_the_whole_text(name: str, data: st.DataObject) -> None:
    ids, stop = data.draw(completions(name))
    tokenizer = TOKENIZERS[name]
    end = end_of(tokenizer, ids, stop)
    strings = StopStrings(tokenizer)
    assert found(strings.search(stop), ids) == end
    drawn = ids[:end]
    assert strings.text(drawn, stop) == text_before_stop(tokenizer, drawn, stop)


@settings(max_examples=300, deadline=None)
@given(ids=st.lists(st.integers(0, len(TOKENIZERS["byte level"]) + 3), max_size=30))
def test_pieces_join_to_what_the_tokenizer_decodes(ids: list[int]) -> None:
    """Ids without a token included."""
    tokenizer = TOKENIZERS["byte level"]
    pieces = BytePieces.of(tokenizer)
    assert pieces is not None
    whole = b"".join(pieces[i] for i in ids).decode(errors="replace")
    assert whole == decode(tokenizer, ids, specials=True)
    plain = b"".join(pieces[i] for i in ids if i not in pieces.specials).decode(errors="replace")
    assert plain == decode(tokenizer, ids)


def ids_of(*pieces: str | bytes) -> list[int]:
    """Ids of byte-level tokens, given as bytes, and of special ones, by their text."""
    tokenizer = TOKENIZERS["byte level"]
    names = (p if isinstance(p, str) else "".join(CHARACTER[b] for b in p) for p in pieces)
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


PARTY = "🎉".encode()


@pytest.mark.parametrize(
    ("pieces", "stop", "end", "text"),
    [
        ([b"ab"], "a", 1, ""),  # the first token, and the text goes beyond
        ([b"a", b"a<", b"b", b"b"], "a<b", 3, "a"),  # across tokens
        ([b"ab", b"ab"], "ba", 2, "a"),
        ([PARTY[:2], PARTY[2:], b"a"], "🎉", 2, ""),  # complete with its last byte
        ([b"b" + PARTY[:2], PARTY[2:] + b"a", b"b"], "🎉a", 2, "b"),  # tokens cut its characters
        ([PARTY[:2], b"a", b"b"], "a", 2, "�"),  # after a character that broke off
        ([b"a", "<s>", b"b"], "a<s>b", 3, ""),  # special tokens are matched as written …
        ([b"a", "<s>", b"b", b"b"], "s>b", 3, "a"),  # … and none is in the text
        ([b"a", "<é b>", b"b"], "é b", 2, "a"),
        ([b"a", "a b", b"b"], "a bb", 3, "a"),  # an added token that is not special
        ([b"a", b"b", b"a"], "bb", None, "aba"),
        ([PARTY[:2], b"a"], "�a", 2, ""),  # broken bytes show as U+FFFD
        ([b"a", b"b"], "\ud83c", None, "ab"),  # a lone surrogate never stands in a text
    ],
)
def test_where_it_ends_and_what_is_left(
    pieces: list[str | bytes], stop: str, end: int | None, text: str
) -> None:
    strings, ids = StopStrings(TOKENIZERS["byte level"]), ids_of(*pieces)
    assert found(strings.search((stop,)), ids) == end
    assert strings.text(ids[:end], (stop,)) == text


def test_searches_of_one_set_share_moves_and_not_their_place() -> None:
    strings = StopStrings(TOKENIZERS["byte level"])
    first, second = strings.search(("ab",)), strings.search(("ab",))
    assert isinstance(first, ByteSearch) and isinstance(second, ByteSearch)
    (a,), (b,) = ids_of(b"a"), ids_of(b"b")
    assert not first.take(a) and second.state is not first.state
    assert not second.take(b) and first.take(b)


def test_few_moves_are_kept_and_nothing_changes() -> None:
    strings, ids = StopStrings(TOKENIZERS["byte level"]), ids_of(b"a", b"b", b"a", b"<", b"a", b"a", b"\n")
    with mock.patch.object(stops, "MOST_MOVES", 2):
        search = strings.search(("aa\n",))
        assert isinstance(search, ByteSearch)
        assert found(search, ids * 1) == 7
        assert sum(len(state.moves) for state in search.state.automaton.states.values()) <= 2


def test_a_long_string_takes_memory_by_its_length_and_not_by_its_square() -> None:
    """From the start, and along a text that keeps on beginning it."""
    strings, stop = StopStrings(TOKENIZERS["byte level"]), "ab" * 5000 + "<"
    ids = ids_of(b"ab") * 1000 + ids_of(b"b", b"ab", b"ab")
    tracemalloc.start()
    try:
        search = strings.search((stop, stop[1:]))
        assert found(search, ids) is None
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20
    assert found(search, ids_of(b"ab") * 4999 + ids_of(b"<")) == 5000


def test_the_pieces_of_other_tokenizers_are_not_known() -> None:
    assert BytePieces.of(TOKENIZERS["fallback"]) is None and BytePieces.of(None) is None
    assert isinstance(StopStrings(TOKENIZERS["words"]).search(("a",)), WindowSearch)
