"""The scheduler under any order of arrivals, aborts and failures, with a pool too small for all."""

from __future__ import annotations

import random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from proactor.engine.load import LoadPolicy
from proactor.engine.parking import lease_name
from proactor.engine.step import Chunk, Request, RequestTooLarge
from tests.engine.machine import Whims, machine


class Events(RuleBasedStateMachine):
    """Requests with shared prefixes come and are aborted around and in steps; steps fail, weights change."""

    @initialize(
        pages=st.integers(4, 24),
        size=st.integers(1, 4),
        seqs=st.integers(1, 6),
        more=st.integers(0, 8),
        chunk=st.integers(1, 9),
        seed=st.integers(0, 1000),
    )
    def start(self, pages: int, size: int, seqs: int, more: int, chunk: int, seed: int) -> None:
        policy = self.policy(seed, pages)
        self.machine = machine(pages, size, seqs + more, seqs, chunk, pages // 2, policy)
        self.scheduler = self.machine.scheduler
        self.requests: dict[int, Request] = {}
        self.next_id = 0
        self.done: list[Request] = []

    def policy(self, seed: int, pages: int) -> LoadPolicy | None:
        return None

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
        self.submit(Request(self.next_id, space, prompt, n, new, data.draw(st.integers(0, 1))))

    def submit(self, request: Request) -> None:
        try:
            self.scheduler.add(request)
        except RequestTooLarge:
            return
        self.next_id += 1
        self.requests[request.id] = request

    @rule(data=st.data(), session=st.integers(0, 1), count=st.integers(1, 3), new=st.integers(1, 5))
    def advance(self, data: st.DataObject, session: int, count: int, new: int) -> None:
        """Keep the pages of a sample that ended, and perhaps go on with it."""
        ended = [(i, end) for i, ends in self.machine.ended.items() for end in ends.values()]
        if not ended:
            return
        i, end = data.draw(st.sampled_from(ended))
        before = self.requests[i]
        ids = before.prompt_ids + end.token_ids
        self.scheduler.park(session, before.namespace, ids)
        self.scheduler.check()
        if data.draw(st.booleans()):
            known = len(ids) - 1
            request = Request(
                self.next_id, before.namespace, ids + [1] * count, 1, new, session, known, lease_name(ids)
            )
            self.submit(request)

    @rule(session=st.integers(0, 1))
    def close(self, session: int) -> None:
        self.scheduler.forget(session)

    @rule(times=st.integers(1, 4))
    def step(self, times: int) -> None:
        for _ in range(times):
            self.machine.step()

    @rule(
        data=st.data(),
        what=st.sampled_from(["abort", "abort in flight", "step fails", "new weights", "update"]),
    )
    def disturb(self, data: st.DataObject, what: str) -> None:
        if what == "abort":
            self.machine.ended.pop(self.drop(data), None)  # type: ignore[arg-type]
        elif what == "abort in flight":
            self.abort_during_a_step(data)
        elif what == "step fails":
            self.step_fails()
        elif what == "update":
            self.update(*data.draw(st.permutations("ab")))
        else:
            self.scheduler.drop_namespace(data.draw(st.sampled_from("ab")))

    def update(self, old: str, new: str) -> None:
        """What is in flight goes on; the machine's memory knows whose keys a row may read."""
        self.scheduler.pause()
        assert self.scheduler.resting and self.scheduler.pool.used == self.scheduler.pool.held
        self.scheduler.drop_namespace(old)
        self.scheduler.rename(old, new)

    def drop(self, data: st.DataObject) -> int | None:
        live = [i for i in self.requests if i in self.scheduler._unended]
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
        running = set(self.scheduler._unended)
        if step is not None:
            for chunk in step.prefills:
                self.garbage(chunk)
        self.scheduler.reset()
        for i in running:
            del self.requests[i]
            self.machine.ended.pop(i, None)
        assert self.scheduler.idle and self.scheduler.pool.used == self.scheduler.pool.held

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
        for session in range(2):
            self.scheduler.forget(session)
        self.machine.verify(list(self.requests.values()))


TestEvents = Events.TestCase
TestEvents.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


class PreemptedEvents(Events):
    """The same, where a policy promises too few pages and changes its mind at every step."""

    def policy(self, seed: int, pages: int) -> LoadPolicy | None:
        return Whims(seed, pages)


TestPreemptedEvents = PreemptedEvents.TestCase
TestPreemptedEvents.settings = TestEvents.settings


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
