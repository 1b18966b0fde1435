"""The scheduler, driven by a machine that stands in for the model: it checks what every row of every step reads."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proactor.engine.kv import PagePool
from proactor.engine.scheduler import Scheduler
from proactor.engine.step import Chunk, Ended, Request, RequestTooLarge, SampleId, Step

END = 0


def draw(request: Request, sample: int, drawn: list[int]) -> int:
    """The token that the stand-in model samples: a function of the request's own tokens, like one with keyed noise."""
    return hash((tuple(request.prompt_ids), sample, tuple(drawn))) % 5


def expected(request: Request, sample: int) -> list[int]:
    """What a sample must consist of, whatever else runs."""
    tokens: list[int] = []
    while len(tokens) < request.max_tokens and (not tokens or tokens[-1] != END):
        tokens.append(draw(request, sample, tokens))
    return tokens


class Machine:
    """Runs steps on a memory that holds, slot by slot, the tokens from the root to it, and refuses to read anything else."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.memory: dict[tuple[int, int], object] = {}
        self.ended: dict[int, dict[int, Ended]] = {}
        self.prefill_rows = 0
        self.log: list[object] = []

    def slots(self, table: list[int], length: int) -> list[tuple[int, int]]:
        size = self.scheduler.pool.page_size
        return [(table[i // size], i % size) for i in range(length)]

    def run(self, step: Step) -> dict[SampleId, int]:
        """Copies, writes, then reads: as the model does layer by layer. Returns the tokens drawn."""
        scheduler = self.scheduler
        assert 0 < step.rows <= scheduler.max_rows and len(step.decodes) <= scheduler.max_seqs
        targets = [dst for _, dst, _ in step.copies]
        assert len(set(targets)) == len(targets) and not set(targets) & {src for src, _, _ in step.copies}
        self.memory.update({(dst, i): self.memory[src, i] for src, dst, n in step.copies for i in range(n)})
        rows: list[tuple[list[tuple[int, int]], int, tuple[object, ...]]] = []
        for chunk in step.prefills:
            assert len(chunk.ids) <= scheduler.prefill_chunk
            end, prompt = chunk.start + len(chunk.ids), chunk.request.prompt_ids
            assert chunk.ids == prompt[chunk.start : end] and chunk.last == (end == len(prompt))
            rows.append((self.slots(chunk.block_table, end), chunk.start, (chunk.request.namespace, *prompt[:end])))
            self.prefill_rows += len(chunk.ids)
        for decode in step.decodes:
            ids = decode.request.prompt_ids + decode.generated
            assert decode.length == len(ids) and decode.input_id == ids[-1]
            shared = len(decode.request.prompt_ids) // scheduler.pool.page_size if decode.request.n > 1 else 0
            assert decode.shared_pages == shared
            rows.append((self.slots(decode.block_table, len(ids)), len(ids) - 1, (decode.request.namespace, *ids)))
        written: set[tuple[int, int]] = set()
        for slots, start, path in rows:
            for i in range(start, len(slots)):
                assert slots[i] not in written, "two rows write one slot"
                written.add(slots[i])
                self.memory[slots[i]] = path[: i + 2]
        for slots, _, path in rows:
            for i, slot in enumerate(slots):
                assert self.memory[slot] == path[: i + 2], "a row reads what is not its own"
        self.log.append((step.copies, [(c.request_id, c.start, len(c.ids)) for c in step.prefills], step.membership))
        self.log.append([(d.id, d.length, list(d.block_table)) for d in step.decodes])
        return self.sample(step)

    def sample(self, step: Step) -> dict[SampleId, int]:
        tokens = {d.id: draw(d.request, d.id[1], d.generated) for d in step.decodes}
        for chunk in step.prefills:
            if chunk.last:
                tokens |= {(chunk.request_id, s): draw(chunk.request, s, []) for s in range(chunk.request.n)}
        return tokens

    def commit(self, step: Step, tokens: dict[SampleId, int]) -> None:
        for end in self.scheduler.commit(step, tokens, {key for key, token in tokens.items() if token == END}):
            assert end.sample not in self.ended.setdefault(end.request_id, {}), "a sample ended twice"
            self.ended[end.request_id][end.sample] = end

    def step(self) -> bool:
        step = self.scheduler.plan()
        if step is None:
            return False
        self.scheduler.check()
        self.commit(step, self.run(step))
        self.scheduler.check()
        return True

    def drain(self) -> int:
        steps = 0
        while self.step():
            steps += 1
            assert steps < 10_000, "no end in sight"
        return steps

    def verify(self, requests: list[Request]) -> None:
        """Every sample of every request ended once, with its tokens and its reason; nothing is held any more."""
        for request in requests:
            ends = self.ended.pop(request.id)
            assert sorted(ends) == list(range(request.n))
            assert [end.last for end in ends.values()] == [False] * (request.n - 1) + [True]
            for sample, end in ends.items():
                assert end.token_ids == expected(request, sample)
                assert end.reason == ("stop" if end.token_ids[-1] == END else "length")
        assert not self.ended
        self.scheduler.check()
        assert self.scheduler.idle and self.scheduler.reserved == 0
        assert self.scheduler.pool.used == 0 and self.scheduler.pool.live == 0


def machine(pages: int = 200, size: int = 4, rows: int = 64, seqs: int = 16, chunk: int = 32) -> Machine:
    return Machine(Scheduler(PagePool(pages, size), rows, seqs, chunk))


def nested(turns: int, per_turn: int, tail: int = 3) -> list[list[int]]:
    """The prompts of one dialogue: a longer and longer piece of the trunk, each with a tail of its own."""
    trunk = [100 + i for i in range(turns * per_turn)]
    return [trunk[: k * per_turn] + [10 * k + i for i in range(1, tail + 1)] for k in range(1, turns + 1)]


# -- sharing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_turn", [5, 8, 11])
@pytest.mark.parametrize("order", ["as said", "reversed", "shuffled"])
def test_nested_prompts_that_arrive_together_compute_the_trunk_once(per_turn: int, order: str) -> None:
    prompts = nested(8, per_turn)
    if order != "as said":
        prompts.reverse() if order == "reversed" else random.Random(1).shuffle(prompts)
    m = machine(rows=512, seqs=64, chunk=512)
    requests = [Request(i, "base", prompt, 4, 6) for i, prompt in enumerate(prompts)]
    for request in requests:
        m.scheduler.add(request)
    stranger = Request(8, "base", [7] * 9, 4, 6)
    m.scheduler.add(stranger)
    m.step()
    assert m.scheduler.counters()["admitted"] == 2  # who shares nothing does not wait
    m.step()
    m.prefill_rows -= 9
    assert m.prefill_rows == 8 * per_turn + 8 * 3  # the trunk and the tails, two steps after arrival
    counters = m.scheduler.counters()
    assert counters["admitted"] == 9 and counters["waiting"] == 0
    assert counters["tokens_avoided_prefix"] == sum(map(len, prompts)) - m.prefill_rows
    m.drain()
    assert m.scheduler.counters()["tokens_avoided_fork"] == 3 * sum(map(len, [*prompts, stranger.prompt_ids]))
    m.verify([*requests, stranger])


def test_waiting_requests_follow_a_long_prompt_chunk_by_chunk() -> None:
    m = machine(rows=40, seqs=16, chunk=16)
    requests = [Request(i, "base", prompt, 1, 3) for i, prompt in enumerate(nested(6, 10))]
    for request in requests:
        m.scheduler.add(request)
    m.step()
    assert m.scheduler.counters()["admitted"] == 1
    requests.append(Request(6, "base", [7] * 5, 1, 3))
    m.scheduler.add(requests[6])
    m.step()
    assert sorted(m.scheduler._runs) == [0, 4, 6]  # turn 1 begins while the trunk is being computed; a stranger as well
    m.drain()
    assert m.prefill_rows == 6 * 10 + 6 * 3 + 5
    m.verify(requests)


def test_who_waits_does_not_hold_up_the_rest() -> None:
    m = machine(size=8, chunk=3)
    requests = [
        Request(0, "base", [1] * 12, 1, 3),
        Request(1, "base", [1] * 9 + [2], 1, 3),
        Request(2, "base", [3] * 4),
    ]
    for request in requests[:2]:
        m.scheduler.add(request)
    m.step()
    m.scheduler.add(requests[2])
    m.step()
    assert sorted(m.scheduler._runs) == [0, 2]  # 1 waits for pages that take 0 several steps
    m.drain()
    assert m.prefill_rows == 12 + 1 + 4
    m.verify(requests)


def test_the_next_turn_computes_only_what_is_new() -> None:
    m = machine()
    first = Request(0, "base", list(range(50, 70)), 1, 9)
    m.scheduler.add(first)
    m.drain()
    reply = m.ended[0][0].token_ids
    rows = m.prefill_rows
    second = Request(1, "base", first.prompt_ids + reply + [90, 91, 92], 2, 5)
    m.scheduler.add(second)
    m.drain()
    assert m.prefill_rows - rows == 1 + 3  # the last token of the reply was drawn, never fed back
    m.verify([first, second])


prompt_families = st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=20), min_size=1, max_size=8)


@settings(max_examples=200, deadline=None)
@given(prompts=prompt_families, size=st.integers(1, 5), chunk=st.integers(1, 30), n=st.integers(1, 3))
def test_shared_tokens_are_computed_once(prompts: list[list[int]], size: int, chunk: int, n: int) -> None:
    m = machine(pages=600, size=size, rows=60, seqs=30, chunk=chunk)
    requests = [Request(i, "base", prompt, n, 4) for i, prompt in enumerate(prompts)]
    for request in requests:
        m.scheduler.add(request)
    m.drain()
    trie = {tuple(prompt[:k]) for prompt in prompts for k in range(1, len(prompt) + 1)}
    leaves = [p for p in {tuple(p) for p in prompts} if not any(q[: len(p)] == p and len(q) > len(p) for q in trie)]
    # a prompt that is the beginning of another, or equal to it, computes its last token for the logits
    assert len(trie) <= m.prefill_rows <= len(trie) + len(prompts) - len(leaves)
    assert m.scheduler.pool.evictions == 0
    assert m.scheduler.pool.hits == sum(map(len, prompts)) - m.prefill_rows
    m.verify(requests)


# -- admission -----------------------------------------------------------------------------------------------------


def test_a_request_that_can_never_fit_is_refused_at_once() -> None:
    scheduler = Scheduler(PagePool(10, 4), 64, 8)
    with pytest.raises(
        RequestTooLarge, match="request 3: 30 prompt tokens and 12 new ones need 11 pages of 4 tokens, "
    ):
        scheduler.add(Request(3, "base", list(range(30)), 1, 12))
    scheduler.add(Request(3, "base", list(range(30)), 1, 11))
    with pytest.raises(ValueError, match="in use"):
        scheduler.add(Request(3, "base", [1], 1, 1))
    for bad in (Request(4, "b", []), Request(4, "b", [1], n=0), Request(4, "b", [1], max_tokens=0)):
        with pytest.raises(ValueError, match="needs a prompt"):
            scheduler.add(bad)
    with pytest.raises(ValueError, match="max_seqs"):
        Scheduler(PagePool(10), max_rows=4, max_seqs=5)


@settings(max_examples=150, deadline=None)
@given(
    length=st.integers(1, 20),
    n=st.integers(1, 6),
    new=st.integers(1, 12),
    size=st.integers(1, 5),
    seqs=st.integers(1, 6),
)
def test_the_smallest_pool_that_accepts_a_request_completes_it(
    length: int, n: int, new: int, size: int, seqs: int
) -> None:
    request = Request(0, "base", list(range(1, length + 1)), n, new)
    for pages in range(1, 60):
        m = machine(pages, size, rows=seqs, seqs=seqs, chunk=7)
        try:
            m.scheduler.add(request)
        except RequestTooLarge:
            continue
        m.drain()
        m.verify([request])
        assert pages <= -(-(length + new - 1) // size) + 1
        # and again on the pages that are now full of cached content
        m.scheduler.add(request)
        m.drain()
        m.verify([request])
        return
    raise AssertionError("no pool was large enough")


def test_samples_are_split_when_not_all_fit() -> None:
    m = machine(pages=14, size=4, rows=32, seqs=16)
    requests = [Request(i, "base", [50 + i] * 9, 8, 8) for i in range(3)]
    for request in requests:
        m.scheduler.add(request)
    decoding, split = [], []
    while m.step():
        decoding.append(m.scheduler.counters()["decoding"])
        split.append(len(m.scheduler._forking))
    assert 2 <= max(decoding) < 8
    assert max(split) == 1  # no second prompt is held while samples of the first have not begun
    m.verify(requests)


def test_a_request_joins_while_others_decode() -> None:
    m = machine()
    requests = [Request(i, "base", [i + 1] * 6, 2, 12) for i in range(4)]
    for request in requests:
        m.scheduler.add(request)
        m.step()
    m.drain()
    m.verify(requests)


# -- steps ---------------------------------------------------------------------------------------------------------


def test_what_does_not_change_is_not_rebuilt() -> None:
    m = machine(size=8, seqs=16)
    m.scheduler.add(Request(0, "base", [1] * 7, 2, 40))
    m.step()
    seen: list[Step] = []
    for _ in range(19):
        step = m.scheduler.plan()
        assert step is not None
        seen.append(step)
        m.scheduler.commit(step, dict.fromkeys(m.sample(step), 3))
    assert all(step.decodes is seen[0].decodes and step.roster == seen[0].roster for step in seen)
    for before, after in pairwise(seen):
        assert (after.membership != before.membership) == bool(after.grown)
    assert [i for i, step in enumerate(seen) if step.grown == [0, 1]] == [
        1,
        9,
        17,
    ]  # once a page, both samples together


def test_commit_refuses_what_it_was_not_asked() -> None:
    m = machine()
    scheduler = m.scheduler
    assert scheduler.plan() is None
    scheduler.add(Request(0, "base", [1, 2, 3], 2, 8))
    step = scheduler.plan()
    assert step is not None
    with pytest.raises(RuntimeError, match="before the last step"):
        scheduler.plan()
    with pytest.raises(ValueError, match=r"no token for \(request, sample\) \[\(0, 1\)\]"):
        scheduler.commit(step, {(0, 0): 1})
    scheduler.commit(step, {(0, 0): 1, (0, 1): 1})
    with pytest.raises(RuntimeError, match="not the one planned last"):
        scheduler.commit(step, {(0, 0): 1, (0, 1): 1})
    step = scheduler.plan()
    assert step is not None
    with pytest.raises(ValueError, match="no token"):
        scheduler.commit(step, {(0, 0): 1})
    scheduler.check()


def test_abort_frees_everything_wherever_the_request_is() -> None:
    for steps in range(8):
        for in_flight in (False, True):
            m = machine(rows=8, seqs=4, chunk=6)
            requests = [Request(i, "base", [7] * 9 + [i + 1], 3, 6) for i in range(3)]
            for request in requests:
                m.scheduler.add(request)
            for _ in range(steps):
                m.step()
            step = m.scheduler.plan() if in_flight else None
            known = 1 in m.scheduler._ids
            assert m.scheduler.abort(1) == known
            if step is not None:
                m.commit(step, m.run(step))
            m.scheduler.check()
            assert not m.scheduler.abort(1)
            m.drain()
            if known:
                m.ended.pop(1, None)
            m.verify([request for request in requests if request.id != 1 or not known])


def test_a_failed_step_can_be_dropped() -> None:
    m = machine()
    for i in range(3):
        m.scheduler.add(Request(i, "base", [1, 2, 3, 4, 5, 6, 7, i], 2, 9))
    for _ in range(3):
        m.step()
    assert m.scheduler.plan() is not None
    m.scheduler.reset()
    m.scheduler.check()
    assert m.scheduler.idle and m.scheduler.pool.used == 0 and m.scheduler.plan() is None
    m.ended.clear()
    again = Request(0, "base", [1, 2, 3, 4, 5, 6, 7, 9], 2, 9)
    m.scheduler.add(again)
    m.drain()
    m.verify([again])


def test_new_weights_reuse_nothing() -> None:
    m = machine()
    first, second = (Request(i, f"epoch {i}", [1, 2, 3, 4, 5, 6], 2, 5) for i in range(2))
    m.scheduler.add(first)
    m.drain()
    assert m.scheduler.drop_namespace("epoch 0") > 0 and m.scheduler.pool.cached == 0
    m.scheduler.add(second)
    m.drain()
    assert m.scheduler.pool.hits == 0
    m.verify([first, second])


def test_a_decode_step_is_cheap() -> None:
    scheduler = Scheduler(PagePool(4000, 16), 8192, 256)
    for i in range(8):
        scheduler.add(Request(i, "base", [i + 1] * (100 + 3 * i), 8, 300))
    m = Machine(scheduler)
    times: list[float] = []
    step = scheduler.plan()
    while step is not None:
        tokens = dict.fromkeys(m.sample(step), 1)
        began = time.perf_counter()
        scheduler.commit(step, tokens)
        step = scheduler.plan()
        times.append(time.perf_counter() - began)
    assert sorted(times)[len(times) // 2] < 300e-6, "64 sequences, nothing joins or leaves"


# -- any sequence of events ----------------------------------------------------------------------------------------


class Events(RuleBasedStateMachine):
    """Requests that share beginnings arrive, are aborted before, between and during steps, steps fail, weights change."""

    @initialize(
        pages=st.integers(4, 24),
        size=st.integers(1, 4),
        seqs=st.integers(1, 6),
        more=st.integers(0, 8),
        chunk=st.integers(1, 9),
    )
    def start(self, pages: int, size: int, seqs: int, more: int, chunk: int) -> None:
        self.machine = machine(pages, size, seqs + more, seqs, chunk)
        self.scheduler = self.machine.scheduler
        self.requests: dict[int, Request] = {}
        self.next_id = 0
        self.done: list[Request] = []

    @rule(
        data=st.data(),
        ids=st.lists(st.integers(1, 2), max_size=8),
        n=st.integers(1, 4),
        new=st.integers(1, 7),
        space=st.sampled_from("ab"),
    )
    def add(self, data: st.DataObject, ids: list[int], n: int, new: int, space: str) -> None:
        base = data.draw(st.sampled_from([[], *(request.prompt_ids for request in self.requests.values())]))
        prompt = base[: data.draw(st.integers(0, len(base)))] + ids or [1]
        request = Request(self.next_id, space, prompt, n, new)
        try:
            self.scheduler.add(request)
        except RequestTooLarge:
            return
        self.next_id += 1
        self.requests[request.id] = request

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.machine.step()

    @rule(data=st.data(), what=st.sampled_from(["abort", "abort in flight", "step fails", "new weights"]))
    def disturb(self, data: st.DataObject, what: str) -> None:
        if what == "abort":
            self.machine.ended.pop(self.drop(data), None)  # type: ignore[arg-type]
        elif what == "abort in flight":
            self.abort_during_a_step(data)
        elif what == "step fails":
            self.step_fails()
        else:
            self.scheduler.drop_namespace(data.draw(st.sampled_from("ab")))

    def drop(self, data: st.DataObject) -> int | None:
        live = [i for i in self.requests if i in self.scheduler._ids]
        if not live:
            return None
        victim = data.draw(st.sampled_from(live))
        assert self.scheduler.abort(victim)
        del self.requests[victim]
        return victim

    def abort_during_a_step(self, data: st.DataObject) -> None:
        step = self.scheduler.plan()
        if step is None:
            return
        tokens = self.machine.run(step)
        victim = self.drop(data)
        self.machine.ended.pop(victim, None)  # type: ignore[arg-type]
        self.machine.commit(step, tokens)
        assert victim not in self.machine.ended

    def step_fails(self) -> None:
        step = self.scheduler.plan()
        running = set(self.scheduler._ids)
        if step is not None:
            for chunk in step.prefills:
                self.garbage(chunk)
        self.scheduler.reset()
        for i in running:
            del self.requests[i]
            self.machine.ended.pop(i, None)
        assert self.scheduler.idle and self.scheduler.pool.used == 0

    def garbage(self, chunk: Chunk) -> None:
        for slot in self.machine.slots(chunk.block_table, chunk.start + len(chunk.ids))[chunk.start :]:
            self.machine.memory[slot] = "garbage"

    @invariant()
    def nothing_leaks_nothing_is_promised_twice(self) -> None:
        self.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "machine"):
            return
        self.machine.drain()
        self.machine.verify(list(self.requests.values()))


TestEvents = Events.TestCase
TestEvents.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_same_events_give_the_same_steps(seed: int) -> None:
    logs: list[list[object]] = []
    for _ in range(2):
        rng = random.Random(seed)
        m = machine(pages=30, size=3, rows=20, seqs=6, chunk=7)
        for i in range(12):
            prompt = [rng.randint(1, 2) for _ in range(rng.randint(1, 15))]
            m.scheduler.add(Request(i, "base", prompt, rng.randint(1, 3), rng.randint(1, 9)))
            if rng.random() < 0.5:
                m.step()
            if rng.random() < 0.2:
                m.scheduler.abort(rng.randint(0, i))
        m.drain()
        logs.append(m.log)
    assert logs[0] == logs[1]
