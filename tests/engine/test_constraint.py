"""Constraints: what may be drawn, with which probabilities, and where a text may end."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from proactor.engine import Constraint, Engine, EngineError, Sample, Sampling
from proactor.engine.constraint_rows import ConstraintRows, spread_bits
from proactor.engine.stops import BytePieces
from tests.engine.engines import TRAIN, drawn, idle, load, prompts, sampler
from tests.engine.sessions import Held, run, trainable
from tests.engine.test_preemption import Hopeful

pytest.importorskip("llguidance")

TEXTS = ["a", "ab", "abc", "time", "times two", "what?\n", "what?\n<a", "table", "tübingen", "für"]
"""A language small enough to list: some texts begin others, some end inside of a token of the tokenizer."""
LANGUAGE = Constraint(regex="|".join(map(re.escape, TEXTS)))
PAIRS = Constraint(regex="([ab]{1,3},){2,8}c?")
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer"}, "s": {"type": "string", "maxLength": 4}},
    "required": ["n"],
    "additionalProperties": False,
}
OBJECT = Constraint(json_schema=SCHEMA)
EOS = "<|im_end|>"


@pytest.fixture(scope="module")
def engine(chat_folder: Path) -> Engine:
    return load(chat_folder, deterministic=True, kv_tokens=4096)


def pieces(engine: Engine) -> dict[int, bytes]:
    """The bytes of each ordinary token."""
    found = BytePieces.of(engine.tokenizer)
    assert found is not None
    ids = engine.tokenizer.get_vocab().values()
    return {i: found[i] for i in ids if i not in found.specials and found[i]}


def allowed(engine: Engine, text: bytes, texts: Iterable[str] = TEXTS) -> list[int]:
    """The ids that go on with a beginning of a text of the language, by its list."""
    left = [t.encode()[len(text) :] for t in texts if t.encode().startswith(text)]
    ids = [i for i, piece in pieces(engine).items() if any(rest.startswith(piece) for rest in left)]
    return sorted(ids + [engine.tokenizer.eos_token_id] * (b"" in left))


def said(engine: Engine, sample: Sample) -> bytes:
    known = pieces(engine)
    return b"".join(known.get(i, b"") for i in sample.token_ids)


# -- the distribution ---


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_masked_softmax_and_no_other(engine: Engine, temperature: float) -> None:
    """In float64, from the full log-probabilities, at every position of every sample."""
    sampling = Sampling(n=6, max_tokens=20, temperature=temperature, constraint=LANGUAGE)
    [ids] = prompts(1)
    [group] = engine.sample([ids], sampling)
    size, checked = engine.config.vocab_size, 0
    for sample in {tuple(s.token_ids): s for s in group.samples}.values():
        for at, token in enumerate(sample.token_ids):
            before = sample.token_ids[:at]
            may = allowed(engine, b"".join(pieces(engine)[i] for i in before))
            assert token in may
            place = len(ids) + at
            rows = [[*ids, *before, t] for t in range(size)]
            full = engine.logprobs(rows, [(place, place + 1)] * size, trees=[0] * size)
            logits = torch.cat(full).double() / temperature
            masked = logits[may].log_softmax(0)[may.index(token)]
            assert sample.logprobs[at] == pytest.approx(float(masked), abs=2e-5)
            assert sample.policy_logprobs[at] == pytest.approx(float(logits.log_softmax(0)[token]), abs=2e-5)
            checked += 1
    assert checked > 9


def test_it_is_drawn_as_often_as_that(engine: Engine) -> None:
    [group] = engine.sample(prompts(1), Sampling(n=3000, max_tokens=1, constraint=LANGUAGE))
    expected = {s.token_ids[0]: math.exp(s.logprobs[0]) for s in group.samples}
    assert set(expected) == set(allowed(engine, b"")) and sum(expected.values()) == pytest.approx(1, abs=1e-4)
    counts = {token: sum(s.token_ids[0] == token for s in group.samples) for token in expected}
    chi = sum((counts[t] - 3000 * p) ** 2 / (3000 * p) for t, p in expected.items())
    assert chi < len(expected) + 4 * math.sqrt(2 * len(expected))


def test_filters_come_after_the_constraint(engine: Engine) -> None:
    for changes in ({"temperature": 0.0}, {"top_k": 1}, {"top_p": 1e-6}):
        [group] = engine.sample(prompts(1), Sampling(max_tokens=1, constraint=LANGUAGE, **changes))
        [sample] = group.samples
        may, [ids] = allowed(engine, b""), prompts(1)
        best = engine.logprobs([[*ids, t] for t in may], [(len(ids), len(ids) + 1)] * len(may))
        assert sample.token_ids == [may[int(torch.cat(best).argmax())]]
        assert sample.logprobs[0] > sample.policy_logprobs[0] + 1e-3
        if "temperature" not in changes:
            assert sample.logprobs[0] == pytest.approx(0.0, abs=1e-6)


def test_rows_with_and_without_are_drawn_together(engine: Engine) -> None:
    ids = prompts(3)
    free, bound = Sampling(n=4, max_tokens=12), Sampling(n=4, max_tokens=12, constraint=PAIRS)
    keys = range(3)
    mixed = engine.sample(
        ids, [free.model_copy(update={"seed": 3}), bound, free.model_copy(update={"seed": 3})], keys
    )
    alone = engine.sample(ids, free.model_copy(update={"seed": 3}), keys)
    assert drawn([mixed[0], mixed[2]]) == drawn([alone[0], alone[2]])
    assert all(re.fullmatch(r"[ab,c]*", s.text) for s in mixed[1].samples)


# -- where a text may end ---


def test_the_end_is_allowed_exactly_where_the_text_is_complete(engine: Engine) -> None:
    [group] = engine.sample(prompts(1), Sampling(n=200, max_tokens=30, constraint=LANGUAGE))
    assert all(
        s.finish_reason == "stop" and s.token_ids[-1] == engine.tokenizer.eos_token_id for s in group.samples
    )
    assert {s.text for s in group.samples} > {"a", "ab", "abc"}  # which begin one another
    assert {s.text for s in group.samples} <= set(TEXTS)


def test_other_ends(engine: Engine) -> None:
    special, plain = engine.tokenizer.convert_tokens_to_ids(["<|eot|>", "c"])
    for changes, ends in (
        ({"stop_ids": (special,), "ignore_eos": True}, {special}),
        ({"stop_ids": (special,)}, {special, engine.tokenizer.eos_token_id}),
        ({"stop_ids": (plain,)}, {plain, engine.tokenizer.eos_token_id}),
    ):
        [group] = engine.sample(prompts(1), Sampling(n=60, max_tokens=40, constraint=PAIRS, **changes))
        stopped = [s for s in group.samples if s.finish_reason == "stop"]
        assert {s.token_ids[-1] for s in stopped} == ends
        assert all(re.fullmatch("([ab]{1,3},){2,8}c?c?", s.text) for s in stopped)


def test_what_is_cut_is_a_beginning(engine: Engine) -> None:
    [group] = engine.sample(prompts(1), Sampling(n=20, max_tokens=3, constraint=OBJECT))
    assert all(s.finish_reason == "length" and s.text.startswith("{") for s in group.samples)
    sampling = Sampling(n=20, max_tokens=60, constraint=PAIRS, stop=("b,",))
    [group] = engine.sample(prompts(1), sampling)
    stopped = [s for s in group.samples if "b," in said(engine, s).decode()]
    assert stopped and all(s.finish_reason == "stop" and "b," not in s.text for s in stopped)


@pytest.mark.parametrize("schema", [SCHEMA, json.dumps(SCHEMA), OBJECT.json_schema])
def test_schemas_in_any_form(engine: Engine, schema: Any) -> None:
    constraint = Constraint(json_schema=schema)
    assert constraint == OBJECT and hash(constraint) == hash(OBJECT)
    [group] = engine.sample(prompts(1), Sampling(n=20, max_tokens=120, constraint=constraint))
    values = [json.loads(s.text) for s in group.samples if s.finish_reason == "stop"]
    assert len(values) > 15
    for value in values:
        assert type(value["n"]) is int and value.keys() <= {"n", "s"} and len(value.get("s", "")) <= 4


def test_a_pydantic_model_is_a_schema() -> None:
    class Answer(BaseModel):
        right: bool

    assert Constraint(json_schema=Answer).json_schema == json.dumps(Answer.model_json_schema())


def test_a_grammar(engine: Engine) -> None:
    balanced = Constraint(grammar='start: "(" start? ")"')
    [group] = engine.sample(prompts(1), Sampling(n=20, max_tokens=100, constraint=balanced))
    for sample in group.samples:
        half = len(sample.text) // 2
        assert sample.finish_reason == "length" or sample.text == "(" * half + ")" * half


# -- with a mask of the caller's ---


def test_a_mask_narrows_a_constraint(engine: Engine) -> None:
    size, comma = engine.config.vocab_size, engine.tokenizer.convert_tokens_to_ids(",")
    no_a = torch.ones(size, dtype=torch.bool)
    no_a[[i for i, piece in pieces(engine).items() if b"a" in piece]] = False
    sampling = Sampling(n=20, max_tokens=60, constraint=PAIRS, logit_mask=lambda ids, at: no_a)
    [group] = engine.sample(prompts(1), sampling)
    assert all(re.fullmatch("[bc,]+", s.text) for s in group.samples)
    only = torch.arange(size) == comma
    with pytest.raises(EngineError, match=r"^prompt 1: logit_mask: no token allowed at position 0$"):
        engine.sample(
            prompts(2), [sampling, sampling.model_copy(update={"logit_mask": lambda ids, at: only})]
        )
    assert idle(engine)


# -- a matcher's life ---


MANY = [
    Sampling(n=3, max_tokens=24, seed=1, constraint=Constraint(regex="([ab]{1,3},)+")),
    Sampling(n=2, max_tokens=30, seed=2, constraint=OBJECT, temperature=1.3),
    Sampling(n=2, max_tokens=9, seed=3),
    Sampling(n=4, max_tokens=20, seed=4, constraint=LANGUAGE, stop=("e",)),
]


def preemptions_without_effect(
    engine: Engine, folder: Path, chosen: list[Sampling], ids: list[list[int]], tokens: int, batch: int
) -> int:
    """How often a cache of ``tokens`` tokens preempted; its bits are those of a cache with room for all."""
    wanted = drawn(engine.sample(ids, chosen))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("proactor.engine.policy.load_policy", lambda *_: Hopeful(8))
        small = load(folder, deterministic=True, kv_tokens=tokens, max_batch=batch)
        assert drawn(small.sample(ids, chosen)) == wanted
    preempted = small.counters()["preemptions"]
    small.release()
    return preempted


@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_neither_batch_nor_preemption_nor_forks_show(
    chat_folder: Path, engine: Engine, data: st.DataObject
) -> None:
    """Any requests in any order through a cache too small for them."""
    chosen = data.draw(st.lists(st.sampled_from(MANY), min_size=2, max_size=5))
    seed, tokens = data.draw(st.integers(0, 99)), data.draw(st.sampled_from([64, 96]))
    ids = prompts(len(chosen), length=4, shared=data.draw(st.sampled_from([0, 6])), seed=seed)
    preemptions_without_effect(engine, chat_folder, chosen, ids, tokens, data.draw(st.integers(3, 8)))


def test_what_was_preempted_keeps_its_constraint(chat_folder: Path, engine: Engine) -> None:
    chosen = [Sampling(n=3, max_tokens=24, seed=s, constraint=PAIRS) for s in range(4)]
    ids = prompts(4, length=4)
    assert preemptions_without_effect(engine, chat_folder, chosen, ids, tokens=64, batch=8) > 0


def test_the_state_is_that_of_the_text(engine: Engine) -> None:
    """In the middle of a sample its mask is that of a matcher which has just read the whole text."""
    seen: list[tuple[list[int], Any]] = []
    inner = sampler(engine)
    grammar = engine._maker.grammars.compile(PAIRS, engine.eos_ids)
    size = engine.config.vocab_size
    original = ConstraintRows.fill

    def fill(self: ConstraintRows, width: int) -> dict[int, str]:
        failed = original(self, width)
        seen.extend((list(ids), row.copy()) for (_, ids), row in zip(self.texts, self.spread(width).numpy()))
        return failed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConstraintRows, "fill", fill)
        engine.sample(prompts(2), Sampling(n=3, max_tokens=20, constraint=PAIRS))
    assert len(seen) > 40
    for ids, mask in seen:
        fresh = ConstraintRows(
            [0], [(grammar.matcher(engine.eos_ids), ids)], inner.named, torch.device("cpu")
        )
        assert not fresh.fill(size) and np.array_equal(fresh.spread(size)[0].numpy(), mask)


def test_turns_of_a_session_begin_anew(chat_folder: Path) -> None:
    engine = load(chat_folder, deterministic=True, kv_tokens=2048)
    sampling = Sampling(max_tokens=30, constraint=LANGUAGE)

    async def main() -> tuple[Sample, list[Sample]]:
        async with engine.session() as session:
            sample = await session.sample([1, 2, 3], sampling, key=1)
            await session.advance(sample, [50, 51], sampling)
            return sample, await session.branch(sample, 1, 4, sampling, key=2)

    sample, branches = run(main())
    turns = [sample.token_ids[a:b] for a, b in sample.turns()]
    turns += [branch.token_ids[a:b] for branch in branches for a, b in branch.turns()]
    assert len(turns) == 2 + 4 * 2
    for ids in turns:
        assert ids[-1] == engine.tokenizer.eos_token_id
        assert said(engine, Sample([], ids)).decode() in TEXTS


def test_a_sample_goes_on_through_an_update(chat_folder: Path) -> None:
    engine = load(chat_folder, max_staleness=1, kv_tokens=2048)

    async def main() -> Sample:
        held = Held(6, constraint=Constraint(regex="([ab],)+"))
        async with engine.session() as session:
            sampling = held.sampling.model_copy(update={"ignore_eos": False, "max_tokens": 20})
            waiting = asyncio.ensure_future(session.sample([1, 2], sampling))
            await held.reached()
            training = asyncio.ensure_future(asyncio.to_thread(engine.train, trainable(), TRAIN))
            held.go_on()
            await training
            return await waiting

    sample = run(main())
    assert re.fullmatch("([ab],)+[ab]?", sample.text) and len(sample.token_ids) > 6


def test_constraints_are_compiled_once(engine: Engine) -> None:
    grammars = engine._maker.grammars
    first = grammars.compile(Constraint(regex="xy*"), engine.eos_ids)
    assert grammars.compile(Constraint(regex="xy*"), engine.eos_ids) is first
    assert grammars.compile(Constraint(regex="xy+"), engine.eos_ids) is not first


def test_bits_are_spread_alike_on_every_device() -> None:
    bits = torch.randint(
        -(2**31), 2**31 - 1, (3, 5), dtype=torch.int32, generator=torch.Generator().manual_seed(0)
    )
    octets = bits.numpy().view(np.uint8)
    for width in (129, 160):
        expected = np.unpackbits(octets, axis=1, count=width, bitorder="little").astype(bool)
        assert np.array_equal(spread_bits(bits, width).numpy(), expected)


def test_a_text_that_the_vocabulary_cannot_write_ends_its_own_call_alone(chat_folder: Path) -> None:
    """Ids without a token are never drawn: without that of ``b`` nothing goes on after ``a``."""
    engine = load(chat_folder, kv_tokens=2048)
    inner = sampler(engine)
    inner.named = torch.ones(engine.config.vocab_size, dtype=torch.bool)
    inner.named[[i for i, piece in pieces(engine).items() if b"b" in piece]] = False
    inner._named = inner.named
    jobs = [Sampling(max_tokens=5), Sampling(max_tokens=5, constraint=Constraint(regex="ab"))]
    with pytest.raises(EngineError, match=r"^prompt 1: constraint: no token goes on at position 1$"):
        engine.sample(prompts(2), jobs)
    assert idle(engine) and engine.sample(prompts(1), jobs[0])
