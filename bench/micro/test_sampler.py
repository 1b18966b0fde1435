"""The sampler around its model: scheduler, pages, prefixes, controller."""

from __future__ import annotations

import random

from bench.micro.conftest import Part
from proactor.engine.controller import Controller, Readings
from proactor.engine.kv import PagePool
from proactor.engine.prefix import sharing_order
from proactor.engine.scheduler import Scheduler
from proactor.engine.step import Request

REFERENCE = "python"


def prompts(count: int, shared: int, own: int) -> list[list[int]]:
    """Ids that begin alike."""
    rng = random.Random(0)
    first = [rng.randrange(1000) for _ in range(shared)]
    return [first + [rng.randrange(1000) for _ in range(own)] for _ in range(count)]


def test_forty_requests_through_the_scheduler(part: Part) -> None:
    ids = prompts(10, 40, 12)

    def run() -> None:
        scheduler = Scheduler(PagePool(400, 16), 128, 32, 64, 0, None)
        for i, prompt in enumerate(ids):
            scheduler.add(Request(i, "base", prompt, 4, 16))
        while (step := scheduler.plan()) is not None:
            drawn = [d.id for d in step.decodes]
            drawn += [(c.request_id, s) for c in step.prefills if c.last for s in c.request.samples]
            scheduler.commit(step, dict.fromkeys(drawn, 5), set())

    part(run)


def test_decode_steps_of_64_sequences(part: Part) -> None:
    most = 60_000  # more steps than any round takes
    pool = PagePool(64 * (most // 16 + 3), 16)  # room for all to their end
    scheduler = Scheduler(pool, 256, 64, 64, 0, None)
    scheduler.add(Request(0, "base", prompts(1, 20, 0)[0], 64, most))

    def step(decoding: int = 64) -> None:
        planned = scheduler.plan()
        assert planned is not None and len(planned.decodes) == decoding
        drawn = [d.id for d in planned.decodes]
        drawn += [(c.request_id, s) for c in planned.prefills if c.last for s in c.request.samples]
        scheduler.commit(planned, dict.fromkeys(drawn, 5), set())

    def some() -> None:
        for _ in range(4):
            step()

    step(0)
    part(some)


def test_order_of_200_prompts(part: Part) -> None:
    ids = [ids for seed in range(10) for ids in prompts(20, 30 + seed, 20)]
    part(lambda: sharing_order(ids))


def test_decisions_of_the_controller(part: Part) -> None:
    def run() -> None:
        controller = Controller()
        for i in range(100):
            controller.decide(
                Readings(
                    waiting=i % 50, admitted=32, decoding=32, backlog=100, pages_total=1000, pages_used=200
                )
            )

    part(run)
