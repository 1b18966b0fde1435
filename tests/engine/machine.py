"""A stand-in for the model under the scheduler; it checks what every row of every step reads."""

from __future__ import annotations

import random

from proactor.engine.controller import Decision, Readings
from proactor.engine.kv import PagePool
from proactor.engine.load import LoadPolicy
from proactor.engine.scheduler import Scheduler
from proactor.engine.step import Ended, Request, SampleId, Step

END = 0


def draw(request: Request, sample: int, drawn: list[int]) -> int:
    """The token sampled by the stand-in: a function of the request's tokens alone, as with keyed noise."""
    return hash((tuple(request.prompt_ids), sample, tuple(drawn))) % 5


def go_on(request: Request, sample: int, drawn: list[int]) -> int:
    """`draw`, also where the sample was preempted before."""
    return draw(request.root, sample, request.prompt_ids[len(request.root.prompt_ids) :] + drawn)


def expected(request: Request, sample: int) -> list[int]:
    """The tokens that a sample must have, whatever runs beside it."""
    tokens: list[int] = []
    while len(tokens) < request.max_tokens and (not tokens or tokens[-1] != END):
        tokens.append(draw(request, sample, tokens))
    return tokens


class Machine:
    """Runs steps on a memory whose slots hold all tokens from the root; a read of anything else fails."""

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
            rows.append(
                (self.slots(chunk.block_table, end), chunk.start, (chunk.request.namespace, *prompt[:end]))
            )
            self.prefill_rows += len(chunk.ids)
        for decode in step.decodes:
            ids = decode.request.prompt_ids + decode.generated
            assert decode.length == len(ids) and decode.input_id == ids[-1]
            root = decode.request.root
            shared = len(root.prompt_ids) // scheduler.pool.page_size if root.n > 1 else 0
            assert decode.shared_pages == shared
            rows.append(
                (self.slots(decode.block_table, len(ids)), len(ids) - 1, (decode.request.namespace, *ids))
            )
        written: set[tuple[int, int]] = set()
        for slots, start, path in rows:
            for i in range(start, len(slots)):
                assert slots[i] not in written, "two rows write one slot"
                written.add(slots[i])
                self.memory[slots[i]] = path[: i + 2]
        for slots, _, path in rows:
            for i, slot in enumerate(slots):
                assert self.memory[slot] == path[: i + 2], "a row reads what is not its own"
        self.log.append(
            (step.copies, [(c.request_id, c.start, len(c.ids)) for c in step.prefills], step.membership)
        )
        self.log.append([(d.id, d.length, list(d.block_table)) for d in step.decodes])
        return self.sample(step)

    def sample(self, step: Step) -> dict[SampleId, int]:
        tokens = {d.id: go_on(d.request, d.id[1], d.generated) for d in step.decodes}
        for chunk in step.prefills:
            if chunk.last:
                tokens |= {(chunk.request_id, s): go_on(chunk.request, s, []) for s in chunk.request.samples}
        return tokens

    def commit(self, step: Step, tokens: dict[SampleId, int]) -> None:
        for end in self.scheduler.commit(
            step, tokens, {key for key, token in tokens.items() if token == END}
        ):
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
        """Every sample of every request ended once, with its tokens and reason; no page is referenced."""
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


def machine(
    pages: int = 200,
    size: int = 4,
    rows: int = 64,
    seqs: int = 16,
    chunk: int = 32,
    parked: int = 0,
    policy: LoadPolicy | None = None,
) -> Machine:
    return Machine(Scheduler(PagePool(pages, size), rows, seqs, chunk, parked, policy))


class Whims:
    """A policy that decides anything: the scheduler has to hold its rules whatever it is told."""

    def __init__(self, seed: int, pages: int) -> None:
        self.rng, self.pages = random.Random(seed), pages

    def decide(self, readings: Readings) -> Decision:
        rng = self.rng
        room = rng.choice([0, self.pages, readings.pages_total - readings.pages_used])
        rows, batch = rng.randint(0, 12), rng.randint(0, 8)
        return Decision(batch, room, rows, readings.pages_short + rng.randint(0, 3), 0.0)

    def expected(self, age: int, limit: int) -> float:
        return min(limit - age, self.rng.randint(1, 3))
