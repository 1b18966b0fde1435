"""An hour of a busy engine, scaled down: does everything come back, and does memory stay flat?

    python -m bench.soak [--seconds 120] [--seed 0]

Clients arrive as a Poisson process at one engine with few pages: they sample, hold dialogues, branch, run
out of time, are cancelled, close their session, leave streams unread, call from threads, or ask for what
cannot be. A trainer updates the weights meanwhile, and samples in flight go on through one update. At the
end all clients have an outcome, the counters add up and no page is held. Exit code 1 where one of the checks
fails. Where the engine is too slow for the arrivals, clients begin late (counted).
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from bench.models import VOCAB, write_tiny_qwen2
from bench.records import add_results, say, stamp, write_record
from proactor.engine import GRPO, Engine, EngineError, LoRA, Sample, Sampling, Session

RATE = 24.0
"""Clients a second."""
AT_ONCE = 64
MODEL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
"""Small: what is tried is what surrounds it."""
PAGES, PAGE = 96, 16
"""Pages of the cache, and tokens of a page: few enough that sequences are preempted."""
STALENESS = 1
KINDS = {
    "sample": 33,
    "dialogue": 15,
    "branch": 5,
    "deadline": 12,
    "dropped": 12,
    "closed": 6,
    "unread": 10,
    "thread": 2,
    "refused": 5,
}
"""Kinds of clients, with their weights."""
UNREAD = 20
"""Streams that are held unread; older ones are let go."""
PATIENCE = 120.0
"""Seconds after the last arrival in which all clients have to end."""
LEARN = GRPO(lr=1e-4)
FLAT = 0.02
"""Most growth of the resident memory from the middle third to the last, as a share."""


class Soak:
    """The clients of one engine, and what became of them."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.random = engine, random.Random(seed)
        self.outcomes: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.clients = self.late = self.delivered = self.updates = self.trained = 0
        self.problems: list[str] = []
        self.streams: deque[Any] = deque(maxlen=UNREAD)
        self.memory: list[tuple[int, float]] = []  # (clients so far, MB)
        self.closing = False
        self.places = asyncio.Semaphore(AT_ONCE)

    # -- what clients ask for ---

    def prompt(self, most: int = 60) -> list[int]:
        """Random tokens, half of the time after a beginning that others share."""
        ids = [self.random.randrange(3, VOCAB) for _ in range(self.random.randint(1, most))]
        return [7 + self.random.randrange(3)] * 40 + ids if self.random.random() < 0.5 else ids

    def sampling(self, most: int = 40, **changes: Any) -> Sampling:
        """Settings of a sample of up to ``most`` tokens, or, half of the time, of one that ends by chance."""
        if self.random.random() < 0.5:
            return Sampling(max_tokens=self.random.randint(1, most), ignore_eos=True, **changes)
        ends = tuple(range(3, 3 + 2 * VOCAB // most))
        return Sampling(max_tokens=4 * most, stop_ids=ends, ignore_eos=True, **changes)

    def take(self, sample: Sample) -> str:
        """Note a sample that arrived; returns how it ended."""
        self.delivered += sum(sample.trained_mask())
        if not len(sample.token_ids) == len(sample.logprobs) == len(sample.token_versions()):
            self.problems.append("a sample's tokens, log-probabilities and versions differ in number")
        versions = sample.token_versions()
        if any(versions[end - 1] - versions[start] > STALENESS for start, end in sample.turns()):
            self.problems.append("a turn went on through more updates than one")
        return sample.finish_reason

    # -- clients ---

    async def sample(self, session: Session) -> str:
        """Ask once, by chance with a priority."""
        asked = session.sample(self.prompt(), self.sampling(), priority=self.random.randrange(3))
        return self.take(await asked)

    async def dialogue(self, session: Session) -> str:
        """Sample, then advance some turns, each after a while."""
        sample = await session.sample(self.prompt(), self.sampling(20))
        for _ in range(self.random.randint(1, 3)):
            await asyncio.sleep(self.random.expovariate(10.0))
            await session.advance(sample, self.prompt(20), self.sampling(20))
        return self.take(sample)

    async def branch(self, session: Session) -> str:
        """Sample, then draw the turn anew three times."""
        sample = await session.sample(self.prompt(), self.sampling(20))
        self.take(sample)
        drawn = [self.take(new) for new in await session.branch(sample, 0, 3, self.sampling(20))]
        return drawn[0]

    async def deadline(self, session: Session) -> str:
        """Ask with little time."""
        asked = session.sample(self.prompt(), self.sampling(), deadline=self.random.uniform(0, 0.4))
        return self.take(await asked)

    async def dropped(self, session: Session) -> str:
        """Ask, and cancel the task after a while."""
        task = asyncio.create_task(session.sample(self.prompt(), self.sampling()))
        await asyncio.wait([task], timeout=self.random.uniform(0, 0.3))
        if not task.cancel():
            return self.take(task.result())
        try:
            return self.take(await task)
        except asyncio.CancelledError:
            return "dropped"

    async def closed(self, session: Session) -> str:
        """Ask, and close the session after a while: what was drawn arrives."""
        task = asyncio.create_task(session.sample(self.prompt(), self.sampling()))
        await asyncio.wait([task], timeout=self.random.uniform(0, 0.3))
        session.close()
        return self.take(await task)

    async def unread(self, session: Session) -> str:
        """Begin a stream, read one group of it, and never the others."""
        prompts = [self.prompt() for _ in range(3)]
        stream = self.engine.stream(prompts, self.sampling(n=2))
        for sample in (await anext(stream)).samples:
            self.take(sample)
        self.streams.append(stream)
        return "one group read"

    async def thread(self, session: Session) -> str:
        """Ask for many long samples at once, from a thread: more than are expected, so pages run out."""
        prompts, long = [self.prompt() for _ in range(8)], Sampling(n=2, max_tokens=120, ignore_eos=True)
        groups = await asyncio.to_thread(self.engine.sample, prompts, long)
        return [self.take(sample) for group in groups for sample in group.samples][-1]

    async def refused(self, session: Session) -> str:
        """Ask for more pages than there are, or for nothing."""
        prompt = [9] * (PAGES * PAGE + 1) if self.random.random() < 0.5 else []
        try:
            return self.take(await session.sample(prompt, Sampling(max_tokens=8)))
        except EngineError:
            return "refused"

    # -- around them ---

    async def client(self, kind: str) -> None:
        """One client with a session of its own; gives its place back."""
        play: Callable[[Session], Awaitable[str]] = getattr(self, kind)
        async with self.engine.session() as session:
            try:
                outcome = await play(session)
            except EngineError as error:
                outcome = "error"
                self.problems.append(f"{kind}: {error}")
        self.outcomes[kind][outcome] += 1
        self.places.release()

    async def train(self) -> None:
        """Sample, reward and update, again and again."""
        sampling = Sampling(n=4, max_tokens=24, ignore_eos=True)
        while not self.closing:
            prompts = [self.prompt(), self.prompt()]
            groups = await asyncio.to_thread(self.engine.sample, prompts, sampling)
            for group in groups:
                for sample in group.samples:
                    self.take(sample)
                group.rewards = [self.random.random() for _ in group.samples]
            stats = await asyncio.to_thread(self.engine.train, groups, LEARN)
            self.updates += 1
            self.trained += int(stats["tokens_computed"])
            await asyncio.sleep(0.5)

    async def watch(self) -> None:
        """Read the resident memory four times a second."""
        page = os.sysconf("SC_PAGE_SIZE")
        while not self.closing:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * page / 1e6
            self.memory.append((self.clients, resident))
            await asyncio.sleep(0.25)

    async def play(self, seconds: float) -> None:
        """Arrivals for so long, then until all clients have ended."""
        kinds, weights = list(KINDS), list(KINDS.values())
        until = time.monotonic() + seconds
        async with asyncio.timeout(seconds + PATIENCE), asyncio.TaskGroup() as tasks:
            tasks.create_task(self.train())
            tasks.create_task(self.watch())
            while time.monotonic() < until:
                self.late += self.places.locked()
                await self.places.acquire()
                self.clients += 1
                tasks.create_task(self.client(self.random.choices(kinds, weights)[0]))
                await asyncio.sleep(self.random.expovariate(RATE))
            self.closing = True
        self.streams.clear()


def growth(memory: list[tuple[int, float]]) -> dict[str, float]:
    """Resident memory after the first third of (clients so far, MB).

    Medians of the middle and the last third, the growth between them as a share, and the slope by clients.
    """
    clients, resident = zip(*memory[len(memory) // 3 :], strict=True)
    slope = statistics.linear_regression(clients, resident).slope
    half = len(resident) // 2
    middle, last = statistics.median(resident[:half]), statistics.median(resident[half:])
    return {
        "middle_mb": round(middle, 1),
        "last_mb": round(last, 1),
        "growth": round(last / middle - 1, 4),
        "mb_a_thousand_clients": round(slope * 1000, 2),
    }


def checks(soak: Soak, counters: dict[str, int], memory: dict[str, float]) -> dict[str, bool]:
    """What has to hold at the end, by name."""
    held = ("pages_used", "pages_parked", "pages_reserved", "waiting", "running", "decoding")
    updates = soak.updates - counters["empty_steps"] - counters["skipped_steps"]
    return {
        "each client has one outcome": sum(c.total() for c in soak.outcomes.values()) == soak.clients,
        "nothing is held": not any(counters[name] for name in held),
        "rows are those of sampling and training": counters["rows_computed"]
        == counters["tokens_computed"] + soak.trained,
        "tokens delivered were drawn": soak.delivered <= counters["tokens_sampled"],
        "versions are updates": soak.engine.policy_version == updates > 0,
        "sequences were preempted": counters["preemptions"] > 0,
        "memory is flat": memory["growth"] <= FLAT,
        "no problems": not soak.problems,
    }


def run(seconds: float, seed: int) -> dict[str, Any]:
    """One soak; returns its part of the record."""
    with tempfile.TemporaryDirectory() as scratch:
        engine = Engine.load(
            write_tiny_qwen2(Path(scratch) / "model", **MODEL),
            lora=LoRA(rank=8),
            device="cpu",
            dtype="float32",
            page_size=PAGE,
            kv_tokens=PAGES * PAGE,
            max_batch=32,
            max_waiting=16,
            max_staleness=STALENESS,
            parked_share=0.2,
        )
        soak = Soak(engine, seed)
        asyncio.run(soak.play(seconds))
        gc.collect()
        engine._owner.call(
            lambda: engine._policy.ready_sampler().scheduler.check()
        )  # after all that was posted
        counters, memory = engine.counters(), growth(soak.memory)
        found = checks(soak, counters, memory)
        engine.release()
    return {
        "clients": soak.clients,
        "late": soak.late,
        "updates": soak.updates,
        "outcomes": {kind: dict(soak.outcomes[kind]) for kind in KINDS},
        "counters": counters,
        "tokens_delivered": soak.delivered,
        "memory": memory,
        "problems": soak.problems[:20],
        "checks": found,
    }


def main(argv: list[str] | None = None) -> int:
    """Run it, print a table of outcomes and the checks, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0, help="of arrivals")
    parser.add_argument("--seed", type=int, default=0)
    add_results(parser)
    options = parser.parse_args(argv)
    found = run(options.seconds, options.seed)
    for kind, outcomes in found["outcomes"].items():
        print(f"{kind:<10} " + ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items())))
    shown = ("tokens_computed", "tokens_sampled", "tokens_recomputed", "preemptions", "evictions")
    print(
        f"{found['clients']} clients, {found['late']} late, {found['updates']} updates; "
        + ", ".join(f"{name} {found['counters'][name]:,}" for name in shown)
    )
    print(", ".join(f"{name} {value:g}" for name, value in found["memory"].items()))
    for name, passed in found["checks"].items():
        print(f"{'ok    ' if passed else 'FAILED'} {name}")
    for problem in found["problems"]:
        print(f"       {problem}")
    record = {
        **stamp(),
        "seconds": options.seconds,
        "seed": options.seed,
        "clients_a_second": RATE,
        "at_once": AT_ONCE,
        "kv_tokens": PAGES * PAGE,
        "max_staleness": STALENESS,
        **found,
        "failed": sum(not passed for passed in found["checks"].values()),
    }
    say(f"record: {write_record(options.results, 'soak', record)}")
    return int(record["failed"] > 0)


if __name__ == "__main__":
    sys.exit(main())
