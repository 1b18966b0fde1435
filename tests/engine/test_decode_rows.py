"""Kept decode sets follow who joins and leaves: attention is that of each sequence's own pages, always."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.engine import decode_rows
from proactor.engine.decode_rows import KeptRows
from proactor.engine.kept import KeptBlock
from proactor.engine.step import Decode, Request, Step

PAGE, HEADS, KV_HEADS, WIDTH, PAGES = 4, 4, 2, 8, 512


class Cache:
    """One layer of keys and values in pages, and sequences that decode over them."""

    def __init__(self) -> None:
        self.random = torch.Generator().manual_seed(0)
        self.store = torch.zeros(2 * KV_HEADS, PAGES * PAGE, WIDTH)
        self.running: list[Decode] = []
        self.free = list(range(PAGES))
        self.rows = KeptRows(PAGE, layers=1, token_bytes=1)
        self.roster = self.requests = 0

    def draw(self, *shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=self.random)

    def join(self, prompt: int, samples: int, left: int) -> None:
        """``samples`` of one request, which share the full pages of a prompt, and each have drawn a token."""
        self.requests, self.roster = self.requests + 1, self.roster + 1
        request = Request(self.requests, "weights", [0] * prompt, samples, left)
        shared = prompt // PAGE if samples > 1 else 0
        trunk = [self.page() for _ in range(shared)]
        for sample in range(samples):
            table = trunk + [self.page() for _ in range(prompt // PAGE + 1 - shared)]
            seq: Any = SimpleNamespace(block_table=table, generated=[0])
            self.running.append(
                Decode((request.id, sample), request, seq, prompt + 1, 0, shared, len(table) * PAGE, left)
            )
            for i in range(prompt):
                self.store[:, table[i // PAGE] * PAGE + i % PAGE] = self.draw(2 * KV_HEADS, WIDTH)

    def page(self) -> int:
        page = self.free.pop(0)
        self.store[:, page * PAGE : (page + 1) * PAGE] = 0
        return page

    def leave(self, which: list[int]) -> None:
        """Sequences end, and their pages are handed out again before all others."""
        gone = {i % len(self.running) for i in which} if self.running else set()
        for i in sorted(gone, reverse=True):
            table = self.running.pop(i).block_table
            own = [p for p in table if all(p not in d.block_table for d in self.running)]
            self.free = [*own, *self.free]
        self.roster += bool(gone)

    def step(self) -> None:
        """A token each, through what is kept and, as the reference, one sequence at a time in float64."""
        if not self.running:
            return
        step = Step([], [], list(self.running), self.roster, self.roster, [])
        kept = self.rows.follow(step)
        assert kept
        _, slots = self.rows.refresh()
        new, q = self.draw(2 * KV_HEADS, len(self.running), WIDTH), self.draw(len(self.running), HEADS, WIDTH)
        self.store[:, torch.from_numpy(slots)] = new
        out = torch.full((len(self.running), HEADS * WIDTH), torch.nan)
        for block in self.rows.blocks:
            block.write(0, new, self.store)
            block.attend(0, q, WIDTH**-0.5, out)
        expected = torch.stack([self.alone(d, q[i]) for i, d in enumerate(self.running)])
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5)
        for decode in self.running:
            decode.length += 1
            decode.left -= 1
            if decode.length > decode.capacity:
                decode.seq.block_table.append(self.page())
                decode.capacity += PAGE
        ended = [i for i, decode in enumerate(self.running) if decode.left < 1]
        if ended:
            self.leave(ended)

    def alone(self, decode: Decode, q: torch.Tensor) -> torch.Tensor:
        at = [decode.block_table[i // PAGE] * PAGE + i % PAGE for i in range(decode.length)]
        k, v = self.store[:, at].double().repeat_interleave(HEADS // KV_HEADS, 0).chunk(2)
        weights = torch.einsum("hd,hld->hl", q.double() * WIDTH**-0.5, k).softmax(-1)
        return torch.einsum("hl,hld->hd", weights, v).flatten()


EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("join"), st.integers(1, 14), st.integers(1, 3), st.integers(1, 30)),
        st.tuples(st.just("leave"), st.lists(st.integers(0, 20), max_size=3)),
        st.tuples(st.just("step")),
    ),
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(EVENTS, st.sampled_from([1, 3, 16]))
def test_attention_is_that_of_the_pages(events: list[tuple[Any, ...]], spare: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_rows, "SPARE", spare)
        patch.setattr(decode_rows, "WORTH", 0)
        cache = Cache()
        for name, *given_ in events:
            getattr(cache, name)(*given_)
            cache.step()


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many members each gathering copied."""
    counts: list[int] = []
    gather = KeptBlock._gather

    def counted(block: KeptBlock, layer: int, store: torch.Tensor) -> None:
        counts.append(block.members)
        gather(block, layer, store)

    monkeypatch.setattr(KeptBlock, "_gather", counted)
    return counts


def test_who_leaves_has_nothing_gathered_until_a_quarter_has_left(gathered: list[int]) -> None:
    cache = Cache()
    for _ in range(16):
        cache.join(prompt=5, samples=1, left=50)
    cache.step()
    for _ in range(4):
        cache.leave([0])
        cache.step()
    assert gathered == [16]
    cache.leave([0])
    cache.step()
    assert gathered == [16, 11]


def test_who_joins_is_gathered_without_the_others(gathered: list[int]) -> None:
    cache = Cache()
    for _ in range(16):
        cache.join(prompt=5, samples=1, left=50)
    cache.step()
    for _ in range(6):
        cache.join(prompt=5, samples=1, left=50)
        cache.step()
    assert gathered == [16, 1, 2, 3, 4, 1, 22], "with a cohort that is less than four times as large"


def test_short_and_large_sets_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = Cache()
    cache.join(prompt=5, samples=2, left=decode_rows.WORTH - 1)
    step = Step([], [], list(cache.running), 1, 1, [])
    assert not cache.rows.follow(step)
    cache.join(prompt=5, samples=1, left=decode_rows.WORTH)
    assert cache.rows.follow(Step([], [], list(cache.running), 2, 2, []))
    cache.rows.most_tokens = 8
    cache.join(prompt=5, samples=1, left=20)
    assert not cache.rows.follow(Step([], [], list(cache.running), 3, 3, []))
    assert not cache.rows.blocks, "nothing is held of a set that is not kept"
    monkeypatch.setattr(decode_rows, "decode_blocks", None)
    assert not cache.rows.follow(Step([], [], list(cache.running), 3, 3, [])), "decided once for a set"
