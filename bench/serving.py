"""The server under load: does everything come back, is every answer the engine's, and what does HTTP cost?

    python -m bench.serving [--requests 10000] [--concurrent 200] [--model FOLDER]
    python -m bench.serving --requests 300 --concurrent 20 --tokens 16 --repeats 1      # a look

Two parts. *Mixed*: requests of all kinds, with clients that leave, stall and send rubbish, on an engine in
deterministic mode; each answer's ids, log-probabilities and text are compared with those of `Engine.sample`
for the same seed. *Throughput*: the same prompts through `Engine.sample`, through ``/v1/completions`` all at
once, and streamed. Clients are a process of their own (`bench.serving_clients`). Exit code 1 where a check
fails. The first part's model is a small random one; the second's too without ``--model``.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from bench.models import write_tiny_qwen2
from bench.protocol import ROOT
from bench.records import add_results, say, stamp, write_record
from bench.serving_requests import ANSWERED, KINDS, MAX_BODY, PATHS, STALL, Cases
from bench.soak import growth
from proactor.engine import Engine, LoRA, Sampling
from proactor.server.app import create_app
from proactor.server.keys import Keys
from proactor.server.limits import Limits
from proactor.server.models import Models
from proactor.server.run import bind, server_of
from proactor.server.serving import Serving

SHARE = 0.9
"""Least throughput over HTTP, as a share of `Engine.sample`'s."""
FLAT = 0.05
"""Most growth of the resident memory from the middle third to the last, as a share."""
ENOUGH = 2000
"""Requests after which memory says something."""
SMALL = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
SMALL_NAME = "2 layers, 64 wide, random"


class Host:
    """A server of an engine in a thread of this process."""

    def __init__(self, engine: Engine, concurrent: int) -> None:
        limits = Limits(
            max_concurrent=2 * concurrent,
            max_body=MAX_BODY,
            head_timeout=STALL,
            body_timeout=STALL,
            write_timeout=STALL,
        )
        self.serving = Serving(engine, Models(engine, "model", "adapter"), limits, Keys())
        self.bound = bind("127.0.0.1", 0, keys=False)
        self.ready = threading.Event()
        self.server = server_of(create_app(self.serving), self.serving, self.ready.set)
        self.thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    async def _serve(self) -> None:
        self.loop = asyncio.get_running_loop()
        await self.server.serve([self.bound])

    def __enter__(self) -> Host:
        self.thread.start()
        self.ready.wait()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.server.should_exit = True
        self.thread.join()

    def tasks(self) -> int:
        """Tasks in the server's event loop."""

        async def count() -> int:
            return len(asyncio.all_tasks()) - 1

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result()

    def rest(self, seconds: float = 60.0) -> bool:
        """Wait until nothing is answered any more. False where that does not come."""
        until = time.monotonic() + seconds
        while self.serving.taken or self.server.server_state.tasks or self.engine_busy():
            if time.monotonic() > until:
                return False
            time.sleep(0.05)
        return True

    def engine_busy(self) -> bool:
        """Whether the engine holds a request."""
        counters = self.serving.engine.counters()
        return any(counters.get(name) for name in ("waiting", "running", "decoding"))

    def play(self, requests: Sequence[dict[str, Any]], concurrent: int, expected: Sequence[Any]) -> Any:
        """The results of a process of clients."""
        plan = {
            "host": "127.0.0.1",
            "port": self.bound.getsockname()[1],
            "concurrent": concurrent,
            "requests": requests,
            "expected": expected,
        }
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(plan, file)
            file.flush()
            command = [sys.executable, "-m", "bench.serving_clients", file.name]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench.serving_clients: {done.stderr[-2000:]}")
        return json.loads(done.stdout)


def mixed(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """Requests of all kinds; returns their part of the record."""
    rng = random.Random(options.seed)
    cases = Cases(engine, rng, options.mixed_tokens)
    kinds, weights = list(KINDS), list(KINDS.values())
    requests = [cases.request(kind, rng) for kind in rng.choices(kinds, weights, k=options.requests)]
    memory: list[tuple[int, float]] = []
    with Host(engine, options.concurrent) as host:
        host.play(requests[:50], options.concurrent, cases.expected)  # whatever is made once
        host.rest()
        before = host.tasks(), _descriptors()
        watching = threading.Event()
        watch = threading.Thread(target=_watch, args=(host, memory, watching))
        watch.start()
        found = host.play(requests, options.concurrent, cases.expected)
        watching.set()
        watch.join()
        rested = host.rest()
        time.sleep(0.2)
        gc.collect()
        after, counters = (host.tasks(), _descriptors()), engine.counters()
        metrics = host.serving.metrics
        stalled = {what: metrics.stalled.labels(what)._value.get() for what in ("head", "body", "read")}
        gone = metrics.gone._value.get()
    outcomes = {kind: Counter(found["outcomes"].get(kind, {})) for kind in KINDS}
    shape = growth(memory) if len(memory) >= 9 else {}
    checks = {
        "every request has an outcome": sum(c.total() for c in outcomes.values()) == options.requests,
        "no wrong answer": all(set(outcomes[kind]) <= {"right"} for kind in KINDS if kind in ANSWERED),
        "slow clients are dropped": set(outcomes["half a head"]) <= {"dropped"}
        and set(outcomes["half a body"]) <= {"408"},
        "rubbish is refused": set(outcomes["rubbish"]) <= {"refused", "dropped"},
        "the engine is at rest": rested and not counters["pages_used"] and not counters["pages_parked"],
        "no task is left": after[0] <= before[0],
        "no connection is left": after[1] <= before[1],
        "memory is flat": options.requests < ENOUGH or shape.get("growth", 1.0) <= FLAT,
    }
    return {
        "outcomes": {kind: dict(count) for kind, count in outcomes.items()},
        "wall": found["wall"],
        "requests_a_second": options.requests / found["wall"],
        "seconds": {kind: quantiles(found["seconds"].get(kind, ())) for kind in ANSWERED},
        "first_event": {kind: quantiles(found["first"].get(kind, ())) for kind in ANSWERED if "str" in kind},
        "clients_gone": gone,
        "clients_stalled": stalled,
        "tasks": {"before": before[0], "after": after[0]},
        "memory": shape,
        "problems": found["problems"],
        "checks": checks,
    }


def throughput(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """The same requests in process, over HTTP, and streamed; returns their part of the record."""
    rng = random.Random(options.seed)
    size = engine.vocabulary
    prompts = [[rng.randrange(3, size) for _ in range(rng.randint(16, 64))] for _ in range(options.prompts)]
    sampling = Sampling(max_tokens=options.tokens, ignore_eos=True, adapter=False)
    total = len(prompts) * options.tokens
    rates: dict[str, list[float]] = {"in process": [], "HTTP": [], "HTTP, streamed": []}
    body = {"model": "model", "max_tokens": options.tokens, "ignore_eos": True, "return_token_ids": True}
    wrong = 0
    with Host(engine, options.prompts) as host:
        for round_ in range(options.repeats + 1):  # the first is not counted
            for name, measured in rates.items():
                if name == "in process":
                    began = time.perf_counter()
                    groups = engine.sample(prompts, sampling)
                    seconds, done = (
                        time.perf_counter() - began,
                        sum(len(g.samples[0].token_ids) for g in groups),
                    )
                else:
                    more = {"stream": True} if "streamed" in name else {}
                    requests = [
                        {
                            "kind": name,
                            "path": PATHS["completion"],
                            "body": {**body, "prompt": prompt, **more},
                            "expect": "tokens",
                            "tokens": options.tokens,
                        }
                        for prompt in prompts
                    ]
                    found = host.play(requests, options.prompts, ())
                    seconds, done = found["wall"], found["tokens"]
                    wrong += sum(c for o, c in found["outcomes"][name].items() if o != "right")
                wrong += done != total
                if round_:
                    measured.append(total / seconds)
                    say(f"  round {round_}, {name}: {measured[-1]:,.0f} tokens a second")
    medians = {name: statistics.median(values) for name, values in rates.items()}
    shares = {name: medians[name] / medians["in process"] for name in medians if name != "in process"}
    return {
        "requests": len(prompts),
        "tokens": options.tokens,
        "tokens_a_second": {
            name: {"median": medians[name], "range": [min(values), max(values)]}
            for name, values in rates.items()
        },
        "share": shares,
        "checks": {
            "all tokens came": not wrong,
            f"at least {SHARE:.0%} of Engine.sample": shares["HTTP"] >= SHARE,
        },
    }


def quantiles(values: Sequence[float]) -> dict[str, float]:
    """Count, p50, p99 and the most, in seconds."""
    if not values:
        return {"count": 0}
    ordered = sorted(values)
    p50, p99 = (ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.5, 0.99))
    return {"count": len(ordered), "p50": p50, "p99": p99, "most": ordered[-1]}


def _watch(host: Host, memory: list[tuple[int, float]], stop: threading.Event) -> None:
    page = os.sysconf("SC_PAGE_SIZE") / 1e6
    while not stop.wait(0.25):
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * page
        memory.append((host.server.server_state.total_requests, resident))


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - faster than Path.iterdir


def load(folder: Path, deterministic: bool, concurrent: int) -> Engine:
    """The engine of a part, with an adapter that has an effect."""
    engine = Engine.load(
        folder, lora=LoRA(rank=8), deterministic=deterministic, max_batch=max(32, concurrent)
    )
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for leaf in engine.parameters():
            leaf.add_((torch.randn(leaf.shape, generator=noise) * 0.02).to(leaf.device))
    engine.weights_changed()
    return engine


def main(argv: list[str] | None = None) -> int:
    """Run both parts, print the tables and the checks, write the record; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="of the second part: a folder; random weights will do")
    parser.add_argument("--requests", type=int, default=10_000, help="of the mixed part; 0: without it")
    parser.add_argument("--concurrent", type=int, default=200)
    parser.add_argument("--mixed-tokens", type=int, default=16, help="most new tokens of a mixed request")
    parser.add_argument("--prompts", type=int, default=64, help="of the second part, all at once")
    parser.add_argument("--tokens", type=int, default=128, help="new tokens of a request of the second part")
    parser.add_argument("--repeats", type=int, default=3, help="rounds of the second part; 0: without it")
    parser.add_argument("--seed", type=int, default=0)
    add_results(parser)
    options = parser.parse_args(argv)
    parts: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        small = write_tiny_qwen2(Path(scratch) / "model", **SMALL)
        for name, part in (("mixed", mixed), ("throughput", throughput)):
            if not (options.requests if name == "mixed" else options.repeats):
                continue
            first = name == "mixed"
            folder = small if first else options.model or small
            engine = load(folder, first, options.concurrent if first else options.prompts)
            parts[name] = part(engine, options)
            engine.release()
    record = {
        **stamp(),
        "models": {"mixed": SMALL_NAME, "throughput": "SmolLM2-135M" if options.model else SMALL_NAME},
        "threads": torch.get_num_threads(),
        "requests": options.requests,
        "concurrent": options.concurrent,
        "seed": options.seed,
        **parts,
    }
    show(record)
    record["failed"] = sum(not passed for part in parts.values() for passed in part["checks"].values())
    say(f"record: {write_record(options.results, 'serving', record)}")
    return int(record["failed"] > 0)


def show(record: dict[str, Any]) -> None:
    """Print a record."""
    if found := record.get("mixed"):
        print(f"{'requests':<22} {'count':>6} {'p50 ms':>8} {'p99 ms':>8}  outcomes")
        for kind, outcomes in found["outcomes"].items():
            times = found["seconds"].get(kind, {})
            shown = [f"{1000 * times[q]:8.1f}" if q in times else " " * 8 for q in ("p50", "p99")]
            told = ", ".join(f"{outcome} {count}" for outcome, count in sorted(outcomes.items()))
            print(f"{kind:<22} {sum(outcomes.values()):>6} {' '.join(shown)}  {told}")
        print(
            f"{found['requests_a_second']:.0f} requests a second; clients gone {found['clients_gone']:.0f}, "
            + ", ".join(
                f"stalled in the {what} {count:.0f}" for what, count in found["clients_stalled"].items()
            )
        )
        print(", ".join(f"{name} {value:g}" for name, value in found["memory"].items()))
    if found := record.get("throughput"):
        for name, rate in found["tokens_a_second"].items():
            share = f"  {found['share'][name]:.1%} of it" if name in found["share"] else ""
            print(f"{name:<22} {rate['median']:10,.0f} tokens a second{share}")
    for part in ("mixed", "throughput"):
        for name, passed in record.get(part, {}).get("checks", {}).items():
            print(f"{'ok    ' if passed else 'FAILED'} {name}")
    for problem in record.get("mixed", {}).get("problems", [])[:20]:
        print(f"       {problem}")


if __name__ == "__main__":
    sys.exit(main())
