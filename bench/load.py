"""The load controller against every fixed batch size, in a simulator of the scheduler.

    python -m bench.load [--table recorded|computed]    # steady loads, and a trace that changes: two records
    python -m bench.load --log controller.jsonl         # also writes the controller's decisions on the trace
    python -m bench.load --replay controller.jsonl      # exit code 1 where today's code decides differently
    python -m bench.load --wall                         # the real sampler instead: `bench.wall`

Steady: Poisson arrivals at shares of the throughput of the best fixed size. Changing: phases of chats,
long documents and groups of samples, quiet and overloaded. Two measures on the trace: the share of requests
that end in time, within `SLOWDOWN` times what they would take alone on the machine; and p99 latency, beside
fixed sizes of at least 95% of the best throughput. Tight: chats that are there from the start, in a pool of
eight times the largest one's worst case.

Fixed sizes (`FixedLimits`) keep each sample's worst case free and fill steps with prompts up to 8,192 rows,
as the sampler does with ``batching="fixed"``. ``fixed N, rows``: the same with at most 2,048 rows of prompts
a step, which is the controller's limit.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.load_settings import Setting, capacity, settings, trace
from bench.records import add_results, say, stamp, write_record
from bench.simulated import PAGE, Arrival, Outcome
from bench.simulator import Simulator
from bench.step_times import SIZES, StepTimes
from proactor.engine import atomic_file
from proactor.engine.controller import Controller, ControllerConfig, log_lines, replay
from proactor.engine.load import FixedLimits, LoadPolicy

SLOWDOWN = 5.0
LOADS = (0.1, 0.3, 0.5, 0.7, 0.9, 1.0, 1.2)
TIE = 0.99
"""Fixed sizes with this share of the highest throughput are equals: the one with the lowest p99 counts."""


def policies() -> dict[str, Callable[[], LoadPolicy]]:
    """What is compared."""
    fixed: dict[str, Callable[[], LoadPolicy]] = {
        f"fixed {size}": partial(FixedLimits, size) for size in SIZES
    }
    return {**fixed, "controller": Controller}


def simulate(setting: Setting, policy: LoadPolicy, arrivals: Sequence[Arrival]) -> tuple[Simulator, Outcome]:
    """A run until all have ended, or for three times the span of the arrivals."""
    simulator = Simulator(setting.times, policy, setting.pages)
    span = arrivals[-1].time
    return simulator, simulator.run(arrivals, window=span, until=3 * span + 1)


def alone(times: StepTimes, arrival: Arrival) -> float:
    """Seconds of a request that has the machine for itself."""
    prompt, samples, tokens = arrival.prompt, len(arrival.lengths), max(arrival.lengths)
    first = times.seconds(0, 0, prompt, prompt * prompt // 2)
    return first + (tokens - 1) * times.seconds(samples, samples * (prompt + tokens // 2), 0, 0)


def quantile(latency: Sequence[float | None], share: float) -> float | None:
    """A quantile of latencies; None where it falls on a request that did not finish."""
    known = sorted(math.inf if x is None else x for x in latency)
    value = known[min(len(known) - 1, math.ceil(share * len(known)) - 1)]
    return None if value == math.inf else round(value, 4)


def measure(setting: Setting, arrivals: Sequence[Arrival], outcome: Outcome) -> dict[str, Any]:
    """The figures of one run. Throughput: tokens drawn until the last arrival, a second of that span."""
    in_time = sum(
        latency is not None and latency <= SLOWDOWN * alone(setting.times, arrival)
        for arrival, latency in zip(arrivals, outcome.latency, strict=True)
    )
    return {
        "throughput": round(outcome.window_drawn / arrivals[-1].time, 2),
        "p50": quantile(outcome.latency, 0.50),
        "p99": quantile(outcome.latency, 0.99),
        "in_time": round(in_time / len(arrivals), 4),
        "finished": sum(latency is not None for latency in outcome.latency),
        "batch": round(outcome.sequences / outcome.steps, 1),
        "preempted": outcome.preempted,
        "recomputed": round(outcome.recomputed / outcome.prompt_rows, 4),
    }


def best_fixed(rows: dict[str, dict[str, Any]]) -> str:
    """The fixed size with the highest throughput; the lowest p99 decides between equals (`TIE`)."""
    fixed = {name: row for name, row in rows.items() if name != "controller"}
    most = max(row["throughput"] for row in fixed.values())
    equal = [name for name, row in fixed.items() if row["throughput"] >= TIE * most]
    return min(equal, key=lambda name: math.inf if fixed[name]["p99"] is None else fixed[name]["p99"])


def steady(setting: Setting, requests: int, loads: Sequence[float] | None = None) -> list[dict[str, Any]]:
    """Every policy at every load of chats."""
    mix, limit, result = setting.mixes["chat"], capacity(setting, setting.mixes["chat"]), []
    for load in loads or LOADS:
        rng, time = random.Random(f"steady {load}"), 0.0
        arrivals = []
        for _ in range(requests):
            time += rng.expovariate(load * limit)
            arrivals.append(mix.arrival(rng, time))
        rows = {}
        for name, make in policies().items():
            rows[name] = measure(setting, arrivals, simulate(setting, make(), arrivals)[1])
        best = best_fixed(rows)
        ours, theirs = rows["controller"], rows[best]
        result.append(
            {
                "load": load,
                "requests_a_second": round(load * limit, 3),
                "best": best,
                "throughput_ratio": round(ours["throughput"] / theirs["throughput"], 3),
                "p99_ratio": ratio(ours["p99"], theirs["p99"]),
                "policies": rows,
            }
        )
        say(
            f"  load {load}: {best}, throughput x{result[-1]['throughput_ratio']}, "
            f"p99 x{result[-1]['p99_ratio']}"
        )
    return result


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """A ratio of latencies; None where one is not known."""
    return round(ours / theirs, 3) if ours and theirs else None


def changing(setting: Setting, scale: float, seeds: int, log: Path | None) -> dict[str, Any]:
    """Every policy on each of the traces; the figures are means over them."""
    more: dict[str, Callable[[], LoadPolicy]] = {
        f"fixed {size}, rows": partial(FixedLimits, size, 2048) for size in (32, 64, 128, 256)
    }
    rows: dict[str, list[dict[str, Any]]] = {}
    for seed in range(seeds):
        arrivals = trace(setting, scale, seed)
        for name, make in {**policies(), **more}.items():
            simulator, outcome = simulate(setting, make(), arrivals)
            rows.setdefault(name, []).append(measure(setting, arrivals, outcome))
            if name == "controller" and log is not None and seed == 0:
                text = "\n".join(log_lines(ControllerConfig(), simulator.log)) + "\n"
                atomic_file(log, text.encode())
    means = {name: mean_row(several) for name, several in rows.items()}
    for name, row in means.items():
        say(f"  trace, {name}: in time {row['in_time']}, p99 {row['p99']} s, {row['throughput']} tokens/s")
    fixed = [f"fixed {size}" for size in SIZES]
    most = max(means[name]["throughput"] or 0.0 for name in fixed)
    keeping_up = [name for name in fixed if (means[name]["throughput"] or 0.0) >= 0.95 * most]
    return {
        "seeds": seeds,
        "requests": len(arrivals),
        "best_in_time": max(fixed, key=lambda name: means[name]["in_time"] or 0.0),
        "best_p99": min(keeping_up, key=lambda name: means[name]["p99"] or math.inf),
        "in_time": {name: [row["in_time"] for row in several] for name, several in rows.items()},
        "policies": means,
    }


def tight(setting: Setting, requests: int = 200) -> dict[str, Any]:
    """Chats that are all there from the start, in a pool of eight times the largest one's worst case."""
    rng, mix = random.Random("tight"), setting.mixes["chat"]
    arrivals = [mix.arrival(rng, 0.0) for _ in range(requests)]
    pages = 8 * max(a.prompt // PAGE + a.own_pages(a.max_tokens - 1) for a in arrivals)
    outcomes = {
        name: Simulator(setting.times, make(), pages).run(arrivals) for name, make in policies().items()
    }
    seconds = {name: round(outcome.seconds, 2) for name, outcome in outcomes.items()}
    best = min((name for name in seconds if name != "controller"), key=lambda name: seconds[name])
    say(f"  tight pool of {pages} pages: {best} {seconds[best]} s, controller {seconds['controller']} s")
    preempted = outcomes["controller"].preempted
    return {"requests": requests, "pages": pages, "best": best, "seconds": seconds, "preempted": preempted}


def mean_row(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The means of several runs' figures; None where one is not known."""
    values = {key: [row[key] for row in rows] for key in rows[0]}
    return {key: None if None in row else round(sum(row) / len(row), 4) for key, row in values.items()}


def check_log(file: Path) -> int:
    """Replay a log; prints the first decisions that differ. Returns the exit code."""
    differing = 0
    with file.open(encoding="utf-8") as lines:
        for number, logged, decided in replay(lines):
            differing += 1
            if differing <= 5:
                changed = {
                    key: (logged.get(key), decided[key]) for key in decided if logged.get(key) != decided[key]
                }
                print(f"line {number}: (logged, decided now) {changed}")
    print(f"{file}: {differing} decisions differ")
    return 1 if differing else 0


def wall(options: argparse.Namespace) -> int:
    """Measure the real sampler and write a record."""
    from bench.wall import compare

    requests = options.requests or 100
    record = {
        **stamp(),
        "command": f"python -m bench.load --wall --requests {requests} --repeats {options.repeats}",
        "model": "5.2M-parameter Qwen2, float32, LoRA r=16, one thread",
        "requests": requests,
        "repeats": options.repeats,
        **compare(requests, options.repeats),
    }
    say(f"record: {write_record(options.results, 'load-wall', record)}")
    print(json.dumps(record))
    return 0


def main(argv: list[str] | None = None) -> int:
    """Run the comparison and write a record for each table, or replay a log."""
    parser = argparse.ArgumentParser(prog="python -m bench.load", description=__doc__.split("\n")[0])
    parser.add_argument("--table", choices=("computed", "recorded"), action="append")
    parser.add_argument("--wall", action="store_true", help="the engine itself, in wall-clock time")
    parser.add_argument("--repeats", type=int, default=3, help="with --wall: runs of each load")
    parser.add_argument("--requests", type=int, help="requests of each load (600; 100 with --wall)")
    parser.add_argument("--scale", type=float, default=0.6, help="times the requests of a changing trace")
    parser.add_argument("--seeds", type=int, default=3, help="traces whose figures are averaged")
    parser.add_argument("--log", type=Path, help="write the controller's decisions on the trace, JSON lines")
    parser.add_argument("--replay", type=Path, help="decide a log again and compare")
    add_results(parser)
    options = parser.parse_args(argv)
    if options.replay:
        return check_log(options.replay)
    if options.wall:
        return wall(options)
    found = settings(stamp()["machine"])
    for name in options.table or found:
        if name not in found:
            parser.error("no step-times.json of this processor: run python -m bench.step_times")
        say(found[name].times.name)
        record = {
            **stamp(),
            "times": found[name].times.name,
            "slowdown": SLOWDOWN,
            "steady": steady(found[name], options.requests or 600),
            "tight": tight(found[name]),
            "trace": changing(found[name], options.scale, options.seeds, options.log),
        }
        say(f"record: {write_record(options.results, f'load-{name}', record)}")
        print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
