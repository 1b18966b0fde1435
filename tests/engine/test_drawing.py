"""Samples looked at while they are drawn: the pieces are the whole, and nobody waits for nothing."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from proactor.engine import Drawing, Engine, EngineError, Piece, Sample, Sampling
from proactor.engine.jobs import Job
from proactor.engine.stops import StopStrings, text_before_stop
from proactor.engine.submission import Submission
from proactor.engine.text import decode
from proactor.engine.text_stream import TextPieces, TextStream, TokenOffsets
from tests.engine.engines import drawn, idle, load, write_text_folder
from tests.engine.sessions import PATIENCE, run

WORDS = [[72, 101, 108], [108, 111]]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return load(write_text_folder(tmp_path_factory.mktemp("drawing") / "model"), deterministic=True)


async def read(engine: Engine, sampling: Sampling, prompts: Any = WORDS, **options: Any) -> Any:
    async with engine.draw(prompts, sampling, **options) as drawing:
        pieces = [piece async for piece in drawing.pieces()]
        return pieces, await drawing.groups()


def joined(pieces: list[Piece]) -> dict[int, tuple[str, list[int], list[float], list[bool]]]:
    whole: dict[int, Any] = defaultdict(lambda: ("", [], [], []))
    for piece in pieces:
        text, ids, logprobs, last = whole[piece.index]
        assert piece.start == len(ids)
        whole[piece.index] = (
            text + piece.text,
            ids + piece.token_ids,
            logprobs + piece.logprobs,
            [*last, piece.last],
        )
    return whole


@pytest.mark.parametrize("stop", [(), ("e",), ("ab", "xyz")])
def test_pieces_are_the_samples_of_the_same_seed(engine: Engine, stop: tuple[str, ...]) -> None:
    sampling = Sampling(n=3, max_tokens=24, seed=5, stop=stop)
    pieces, groups = run(read(engine, sampling))
    assert drawn(groups) == drawn(engine.sample(WORDS, sampling))
    whole, samples = joined(pieces), [sample for group in groups for sample in group.samples]
    assert sorted(whole) == list(range(6)) and len(pieces) > 6
    for index, sample in enumerate(samples):
        text, ids, logprobs, last = whole[index]
        assert (text, ids, logprobs) == (sample.text, sample.token_ids, sample.policy_logprobs)
        assert last == [False] * (len(last) - 1) + [True]


def test_without_a_seed_each_call_draws_its_own(engine: Engine) -> None:
    sampling = Sampling(max_tokens=24, ignore_eos=True)
    first, second = (run(read(engine, sampling))[1] for _ in range(2))
    assert drawn(first) != drawn(second) and first[0].samples[0].noise != second[0].samples[0].noise


def test_who_leaves_ends_the_sampling(engine: Engine) -> None:
    seen = threading.Event()

    def wait(ids: list[int], position: int) -> None:
        assert position < 5 or seen.wait(PATIENCE)

    async def leave() -> int:
        sampling = Sampling(max_tokens=100, ignore_eos=True, logit_mask=wait)
        async with engine.draw([[1]], sampling) as drawing:
            async for piece in drawing.pieces():
                seen.set()
                return piece.end
        raise AssertionError

    before = engine.counters().get("tokens_sampled", 0)
    assert 0 < run(leave()) <= 5
    assert idle(engine) and engine.counters()["tokens_sampled"] - before < 100


def test_a_deadline_and_an_error_reach_the_reader(engine: Engine) -> None:
    pieces, _ = run(read(engine, Sampling(max_tokens=800, ignore_eos=True), deadline=0.05))
    assert [piece.sample.finish_reason for piece in pieces if piece.last] == ["deadline"] * 2

    def broken(ids: list[int], position: int) -> None:
        if position == 3:
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run(read(engine, Sampling(max_tokens=9, ignore_eos=True, logit_mask=broken)))
    with pytest.raises(EngineError, match="draw: takes a list of prompts"):
        engine.draw("text")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="draw: deadline -1"):
        engine.draw([[1]], deadline=-1)
    assert idle(engine)


def test_many_readers_in_one_event_loop(engine: Engine) -> None:
    async def all_at_once() -> list[Any]:
        draws = [read(engine, Sampling(max_tokens=5 + i, seed=i), WORDS[:1]) for i in range(12)]
        return await asyncio.gather(*draws)

    for i, (pieces, groups) in enumerate(run(all_at_once())):
        assert drawn(groups) == drawn(engine.sample(WORDS[:1], Sampling(max_tokens=5 + i, seed=i)))
        assert joined(pieces)[0][0] == groups[0].samples[0].text


class Beginning(list[Job]):
    """Jobs that all begin, once they are ``taken``, while a reader has looked at the first one alone."""

    taken = False

    def __iter__(self) -> Iterator[Job]:
        for job in list.__iter__(self):
            yield job
            for begun in range(len(self) if self.taken else 0):
                self[begun].samples = self[begun].samples or [drawn_sample(begun)]


def drawn_sample(token: int) -> Sample:
    return Sample([1], [token], [0.0], [0.0], finish_reason="length")


class Ending:
    """Takes submissions as a `SamplingLoop` does; all of their jobs have ended by the second look at them."""

    def submit(self, submission: Submission) -> None:
        self.submission, submission.jobs.taken = submission, True  # type: ignore[attr-defined]
        asyncio.get_running_loop().call_soon(self.end)

    def end(self) -> None:
        jobs = self.submission.jobs
        for i in range(len(jobs)):
            self.submission.deliver(jobs[i])

    def cancel(self, submission: Submission) -> None:
        assert submission.ended


def test_a_sample_keeps_its_number_whatever_begins_while_it_is_read() -> None:
    jobs = Beginning(Job([1], Sampling(n=1), (0, 0, i), 1, frozenset(), i) for i in range(3))

    async def numbered() -> list[tuple[int, list[int]]]:
        async with Drawing(Ending(), Submission(jobs), None) as drawing:  # type: ignore[arg-type]
            return [(piece.index, piece.token_ids) async for piece in drawing.pieces()]

    assert sorted(run(numbered())) == [(0, [0]), (1, [1]), (2, [2])]


# -- texts ---


def metaspace() -> Any:
    """As SentencePiece: spaces are part of words, the first one is dropped, characters may be bytes."""
    pieces = ["<unk>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "▁a", "▁b", "c", "▁", "ä"]
    core = Tokenizer(models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>"))
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["</s>"])
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_a_stream_gives_the_whole_text_and_takes_nothing_back(engine: Engine, data: st.DataObject) -> None:
    tokenizer = engine.tokenizer
    text = data.draw(st.text(alphabet="abä😀 <end>\n", max_size=30)).encode()
    alphabet = {bytes([b]): i for i, b in _bytes_of(tokenizer).items()}
    ids = [alphabet[bytes([b])] for b in text]
    ids += data.draw(st.lists(st.integers(0, 256), max_size=6))
    stop = tuple(data.draw(st.lists(st.text("abä <", min_size=1, max_size=3), max_size=2)))
    _check(TextPieces(tokenizer), ids, stop, StopStrings(tokenizer).text, data)


@given(data=st.data())
@settings(max_examples=150, deadline=None)
def test_the_same_with_a_tokenizer_of_words(data: st.DataObject) -> None:
    tokenizer = _METASPACE
    letters = [258, 259, 260, 261, 262, 1]
    ids = data.draw(
        st.lists(st.sampled_from(letters) | st.just(-1), max_size=20).map(
            lambda picks: [i for p in picks for i in ([2 + b for b in "😀".encode()] if p == -1 else [p])]
        )
    )
    stop = tuple(data.draw(st.lists(st.text("abc ", min_size=1, max_size=3), max_size=2)))
    _check(TextPieces(tokenizer), ids, stop, lambda i, s: text_before_stop(tokenizer, i, s), data)


def test_a_special_token_between_words_leaves_their_space() -> None:
    stream = TextStream(TextPieces(_METASPACE), ())
    ids = [258, 1, 258, 258]
    assert [stream.take([i]) for i in ids] == ["a", "", " a", " a"]
    assert decode(_METASPACE, ids) == "a a a"


@given(text=st.text(alphabet="abä😀 \n", max_size=20), data=st.data())
@settings(max_examples=100, deadline=None)
def test_tokens_have_their_own_bytes_and_begin_where_their_character_does(
    engine: Engine, text: str, data: st.DataObject
) -> None:
    pieces, ids_of = TextPieces(engine.tokenizer), {b: i for i, b in _bytes_of(engine.tokenizer).items()}
    ids = [ids_of[byte] for byte in text.encode()]
    assert b"".join(map(pieces.own, ids)) == text.encode()
    offsets, found = TokenOffsets(pieces), []
    while len(found) < len(ids):
        found += offsets.take(ids[len(found) :][: data.draw(st.integers(1, 4))])
    assert found == [at for at, character in enumerate(text) for _ in character.encode()]


def test_of_words_too_and_of_special_tokens() -> None:
    pieces = TextPieces(_METASPACE)
    party = [2 + b for b in "😀".encode()]
    ids = [258, 262, 1, *party, *party, 260, 259]
    assert decode(_METASPACE, ids) == "aä😀😀c b"
    assert b"".join(map(pieces.own, ids)).decode() == " aä</s>😀😀c b"
    assert [pieces.text(i) for i in (258, 1, party[0])] == [" a", "</s>", "\ufffd"]
    assert TokenOffsets(pieces).take(ids) == [0, 1, 2, 2, 2, 2, 2, 3, 3, 3, 3, 4, 5]
    assert TokenOffsets(pieces).take([261, 1, 258, 258]) == [0, 0, 0, 2]  # "▁", which begins no text


_METASPACE = metaspace()


def _bytes_of(tokenizer: Any) -> dict[int, int]:
    pieces = TextPieces(tokenizer).bytes
    assert pieces is not None
    return {i: pieces[i][0] for i in range(256)}


def _check(pieces: TextPieces, ids: list[int], stop: tuple[str, ...], text_of: Any, data: Any) -> None:
    """In pieces of any size, all but the last token, which may complete a stop string."""
    ends = [i + 1 for i in range(len(ids)) if text_of(ids[: i + 1], stop) != text_of(ids[: i + 1], ())]
    ids = ids[: min(ends, default=len(ids))]
    whole, given, at = text_of(ids, stop), "", 0
    stream = TextStream(pieces, stop)
    while at < len(ids) - 1:
        size = data.draw(st.integers(1, 4))
        given += stream.take(ids[at : min(at + size, len(ids) - 1)])
        at += size
        assert whole.startswith(given)
    assert given + stream.finish(whole) == whole
