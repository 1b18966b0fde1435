"""The page pool against a model of its memory: in any order of events, a sequence reads what it wrote."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proactor.engine.kv import Copy, PagePool, Sequence
from proactor.engine.page_cache import OutOfPages
from proactor.engine.prefix import common_prefix, sharing_order
from proactor.engine.types import EngineError


def compute(pool: PagePool, ids: list[int], namespace: str = "base") -> Sequence:
    """Open a prompt and compute all of it."""
    seq, _ = pool.open(namespace, ids, pool.match(namespace, ids))
    pool.settle()
    pool.advance(seq, len(ids) - seq.computed)
    return seq


def decode(pool: PagePool, seq: Sequence, tokens: list[int]) -> None:
    """Feed tokens behind the prompt."""
    for token in tokens:
        seq.generated.append(token)
        if seq.computed == len(seq.block_table) * pool.page_size:
            pool.grow(seq)
        seq.computed += 1


# -- single behaviours ---


def test_a_second_prompt_shares_whole_pages_and_copies_the_part_page() -> None:
    pool = PagePool(16, page_size=4)
    first = compute(pool, list(range(10)))
    match = pool.match("base", [*range(9), 77, 78])
    assert [node.page for node in match.nodes] == first.block_table[:2]
    assert match.source is not None and (match.source.page, match.overlap) == (first.block_table[2], 1)
    second, copy = pool.open("base", [*range(9), 77, 78], match)
    assert copy == (first.block_table[2], second.block_table[2], 1)
    assert second.computed == 9 and second.block_table[:2] == first.block_table[:2]
    assert pool.hits == 9 and pool.copies == 1
    pool.check()


def test_the_last_token_of_a_known_prompt_is_left_to_compute() -> None:
    pool = PagePool(16, page_size=4)
    first = compute(pool, list(range(8)))
    second, copy = pool.open("base", list(range(8)), pool.match("base", list(range(8))))
    assert second.computed == 7 and copy == (first.block_table[1], second.block_table[1], 3)
    pool.check()  # the page that second will write is its own


def test_tokens_being_computed_are_waited_for_not_computed_again() -> None:
    pool = PagePool(16, page_size=4)
    first, _ = pool.open("base", list(range(10)), pool.match("base", list(range(10))))
    match = pool.match("base", [0, 1, 2, 3, 4, 9])
    assert match.blocked() and not match.nodes
    pool.advance(first, 4)
    assert match.blocked()  # token 4 is still to come
    assert (
        len(pool.match("base", [0, 1, 2, 3, 4, 9]).nodes) == 1
        and not pool.match("base", [0, 1, 2, 3, 9]).blocked()
    )
    pool.advance(first, 1)
    assert not match.blocked() and pool.match("base", [0, 1, 2, 3, 4, 9]).overlap == 1


def test_a_waiter_is_let_go_when_the_writer_gives_up() -> None:
    pool = PagePool(16, page_size=4)
    first, _ = pool.open("base", list(range(10)), pool.match("base", list(range(10))))
    pool.advance(first, 6)
    match = pool.match("base", list(range(12)))
    assert match.blocked()
    pool.close(first)
    assert not match.blocked()
    again = pool.match("base", list(range(12)))
    assert (len(again.nodes), again.overlap, again.blocked()) == (1, 2, False)
    pool.check()


def test_generated_tokens_serve_the_next_turn() -> None:
    pool = PagePool(16, page_size=4)
    seq = compute(pool, list(range(6)))
    decode(pool, seq, [20, 21, 22, 23, 24])
    pool.close(seq)
    match = pool.match("base", [*range(6), 20, 21, 22, 23, 24, 50, 51])
    assert len(match.nodes) == 2 and match.overlap == 3
    assert pool.match("adapter", list(range(6))).nodes == ()
    pool.check()


def test_forks_share_the_prompt_and_equal_samples_do_not_double_own() -> None:
    pool = PagePool(16, page_size=4)
    seq = compute(pool, list(range(6)))
    child, copy = pool.fork(seq)
    assert (
        copy == (seq.block_table[1], child.block_table[1], 2) and child.block_table[0] == seq.block_table[0]
    )
    for fork in (seq, child):
        decode(pool, fork, [7, 7, 7, 7])
    pool.close(child)
    pool.close(seq)
    pool.check()
    assert pool.cached == 3 and pool.used == 0  # the same tokens twice: kept once


def test_eviction_takes_the_longest_unused_leaf_first() -> None:
    pool = PagePool(4, page_size=2)
    pool.close(compute(pool, [1, 2, 3, 4]))
    pool.close(compute(pool, [5, 6]))
    pool.close(compute(pool, [1, 2, 9]))  # [1, 2] is used again
    assert pool.available == 4 and pool.cached == 4
    compute(pool, [7, 8])
    assert pool.evictions == 1
    assert len(pool.match("base", [1, 2, 0]).nodes) == 1 and len(pool.match("base", [5, 6, 0]).nodes) == 1
    assert len(pool.match("base", [1, 2, 3, 4, 0]).nodes) == 1  # [3, 4] went: a leaf, and the oldest
    pool.check()


def test_use_makes_a_leaf_young_again() -> None:
    pool = PagePool(3, page_size=2)
    for ids in ([1, 2], [5, 6], [1, 2]):  # the third time [1, 2] only lends its first token
        pool.close(compute(pool, ids))
    pool.close(pool.open("base", [1, 2, 9], pool.match("base", [1, 2, 9]))[0])  # taken and given back
    compute(pool, [7, 8])
    compute(pool, [3, 4])
    assert pool.evictions == 1
    assert not pool.match("base", [5, 6, 0]).nodes and len(pool.match("base", [1, 2, 0]).nodes) == 1
    pool.check()


def test_without_keep_nothing_new_enters_the_tree() -> None:
    pool = PagePool(8, page_size=4)
    pool.close(compute(pool, [1, 2, 3, 4, 5, 6]))
    seq, copy = pool.open("base", [1, 2, 3, 4, 5, 7, 8, 9], pool.match("base", [1, 2, 3, 4, 5, 7, 8, 9]))
    assert copy is not None  # it has not run, nor has the step
    pool.close(seq, keep=False)
    seq = compute(pool, [1, 2, 3, 4, 9])
    decode(pool, seq, [1, 2, 3, 4])
    pool.close(seq, keep=False)
    pool.settle()
    assert pool.cached == 2 and pool.match("base", [1, 2, 3, 4, 9, 1, 2]).overlap == 0
    pool.check()


def test_what_a_sample_generated_is_not_hung_under_a_page_that_may_never_be_computed() -> None:
    pool = PagePool(16, page_size=2)
    sample = compute(pool, [1, 2])
    other, _ = pool.open("base", [1, 2, 3, 4, 5], pool.match("base", [1, 2, 3, 4, 5]))
    decode(pool, sample, [3, 4, 5, 6])  # happens to say what the other is still going to compute
    pool.close(sample)
    pool.check()
    pool.close(other)
    pool.check()
    assert pool.used == 0


def test_a_page_that_siblings_share_is_not_hung_under_a_page_that_they_do_not() -> None:
    pool = PagePool(8, page_size=1)
    first, _ = pool.open("base", [5], pool.match("base", [5]))
    twin, _ = pool.open("base", [5, 6], pool.match("base", [5, 6]))  # does not wait: computes 5 again
    pool.advance(first, 1)
    pool.advance(twin, 2)
    sibling, _ = pool.fork(twin)
    pool.close(twin)
    pool.check()
    pool.close(first)
    pool.check()  # otherwise 5 would be idle, above a page in use, and could not be evicted
    pool.close(sibling)
    pool.check()
    assert pool.match("base", [5, 6, 7]).nodes and pool.cached == 2


def test_the_source_of_a_copy_survives_until_it_has_run() -> None:
    pool = PagePool(3, page_size=4)
    pool.close(compute(pool, [1, 2, 3]))
    _, copy = pool.open("base", [1, 2, 9], pool.match("base", [1, 2, 9]))
    assert copy is not None and pool.available == 1
    other, _ = pool.open("base", [5], pool.match("base", [5]))
    assert other.block_table != [copy[0]]
    with pytest.raises(OutOfPages):
        pool.open("base", [6], pool.match("base", [6]))
    pool.settle()
    compute(pool, [6])
    pool.check()


def test_a_dropped_namespace_is_forgotten_and_its_pages_return() -> None:
    pool = PagePool(8, page_size=2)
    pool.close(compute(pool, [1, 2, 3]))
    live = compute(pool, [1, 2, 5], "base")
    compute(pool, [1, 2], "adapter")
    assert pool.drop_namespace("base") == 1  # [3]; [1, 2] and [5] are in use
    assert not pool.match("base", [1, 2, 3]).nodes
    decode(pool, live, [4, 4])
    pool.close(live)
    assert pool.cached == 0 and pool.used == 1
    pool.check()


def test_more_pages_than_there_are_is_an_error_that_changes_nothing() -> None:
    pool = PagePool(2, page_size=2)
    compute(pool, [1, 2, 3])
    with pytest.raises(OutOfPages, match="1 pages needed, 0 available"):
        pool.open("base", [4], pool.match("base", [4]))
    pool.check()
    with pytest.raises(EngineError, match="positive"):
        PagePool(0)


def test_sharing_order_puts_the_deepest_turn_of_a_dialogue_first() -> None:
    trunk = list(range(100, 140))
    turns = [[*trunk[: 5 * k], 1, 2] for k in range(1, 9)]
    order = sharing_order([[9], *turns, [8]])
    assert order[0] == 0 and order[-1] == 9  # strangers keep their places
    assert order[1] == 7 and order[2] == 8  # turn 7 computes the trunk that the others share
    assert sorted(order) == list(range(10))
    assert sharing_order([[9], *turns, [8]], [1, *[1] * len(turns), 2])[0] == len(turns) + 1
    assert sharing_order([[9], *turns, [8]], [2, *[1] * len(turns), 3])[:2] == [len(turns) + 1, 0]
    assert sharing_order([]) == [] and sharing_order([[1], [1], [1]]) == [0, 1, 2]
    assert common_prefix([1, 2, 3], [1, 2, 4, 5]) == 2 and common_prefix([], [1]) == 0


# -- any sequence of events ---

Key = tuple[object, ...]
ids_strategy = st.lists(st.integers(0, 2), min_size=1, max_size=12)


class PoolMachine(RuleBasedStateMachine):
    """Opens, computes, forks, decodes, closes and drops at random. The memory holds, for each slot, the
    tokens up to it.
    """

    @initialize(pages=st.integers(3, 14), size=st.integers(1, 4))
    def start(self, pages: int, size: int) -> None:
        self.pool = PagePool(pages, size)
        self.memory: dict[tuple[int, int], Key] = {}
        self.spaces: dict[int, str] = {}  # of each live sequence: namespace and how often it had been dropped
        self.epochs = {"a": 0, "b": 0}
        self.live: list[Sequence] = []
        self.copies: list[Copy] = []

    def write(self, seq: Sequence, position: int) -> None:
        ids = (seq.prompt + seq.generated)[: position + 1]
        size = self.pool.page_size
        self.memory[seq.block_table[position // size], position % size] = (self.spaces[id(seq)], *ids)

    def run_copies(self) -> None:
        moved = {(dst, i): self.memory[src, i] for src, dst, count in self.copies for i in range(count)}
        self.memory.update(moved)
        self.copies.clear()
        self.pool.settle()

    def pick(self, data: st.DataObject, ready: bool) -> Sequence | None:
        choices = [seq for seq in self.live if (seq.computed >= len(seq.prompt)) == ready]
        return data.draw(st.sampled_from(choices)) if choices else None

    @rule(space=st.sampled_from("ab"), ids=ids_strategy, patient=st.booleans())
    def open(self, space: str, ids: list[int], patient: bool) -> None:
        match = self.pool.match(space, ids)
        if match.blocked() and patient:
            return
        before, cost = self.pool.available, self.pool.cost(match, len(ids))
        if cost > before:
            with pytest.raises(OutOfPages):
                self.pool.open(space, ids, match)
            return
        seq, copy = self.pool.open(space, ids, match)
        assert self.pool.available == before - cost
        self.spaces[id(seq)] = f"{space}{self.epochs[space]}"
        self.live.append(seq)
        if copy:
            self.copies.append(copy)

    @rule(data=st.data(), count=st.integers(1, 6))
    def advance(self, data: st.DataObject, count: int) -> None:
        self.run_copies()
        seq = self.pick(data, ready=False)
        if seq:
            count = min(count, len(seq.prompt) - seq.computed)
            for i in range(count):
                self.write(seq, seq.computed + i)
            self.pool.advance(seq, count)

    @precondition(lambda self: self.pool.available)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        self.run_copies()
        seq = self.pick(data, ready=True)
        if seq:
            child, copy = self.pool.fork(seq)
            self.spaces[id(child)] = self.spaces[id(seq)]
            self.live.append(child)
            if copy:
                self.copies.append(copy)

    @rule(data=st.data(), tokens=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def decode(self, data: st.DataObject, tokens: list[int]) -> None:
        self.run_copies()
        seq = self.pick(data, ready=True)
        for token in tokens if seq else ():
            assert seq is not None
            if seq.computed == len(seq.block_table) * self.pool.page_size:
                if not self.pool.available:
                    return
                self.pool.grow(seq)
            seq.generated.append(token)
            self.write(seq, seq.computed)
            seq.computed += 1

    @precondition(lambda self: self.live)
    @rule(data=st.data(), keep=st.booleans())
    def close(self, data: st.DataObject, keep: bool) -> None:
        self.run_copies()
        seq = data.draw(st.sampled_from(self.live))
        self.live.remove(seq)
        self.pool.close(seq, keep)

    @rule(space=st.sampled_from("ab"))
    def drop(self, space: str) -> None:
        self.pool.drop_namespace(space)
        self.epochs[space] += 1

    @invariant()
    def nothing_leaks(self) -> None:
        self.pool.check()
        assert self.pool.live == len(self.live)
        assert self.live or self.copies or self.pool.available == self.pool.num_pages

    @invariant()
    def everybody_reads_what_belongs_to_them(self) -> None:
        if self.copies:
            return
        for seq in self.live:
            ids = seq.prompt + seq.generated
            for i in range(seq.computed):
                slot = (seq.block_table[i // self.pool.page_size], i % self.pool.page_size)
                assert self.memory[slot] == (self.spaces[id(seq)], *ids[: i + 1])


TestPool = PoolMachine.TestCase
TestPool.settings = settings(
    max_examples=150, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
