"""Every operation on this GPU: correctness, ceilings, times beside peers.

    python -m bench.gpu            8 minutes
    python -m bench.gpu --quick    correctness and a few rows, in under 90 seconds

Correctness comes first: all cases of every record, in all dtypes, on fresh inputs. Then the ceilings of the
card in this run, then rows, most important first, until the budget is spent. An operation that failed is not
timed. Exit code 0: all right; 1: something failed; 2: no GPU.

The record, ``<results>/<card>/<date>-<commit>.json``, is written again after every step:

    finished      whether the run came to its end; "skipped" names the rows that did not fit
    commit, date, quick, budget, seconds, seed
    card          name, capability, multiprocessors, memory, cache (bytes); before and after: driver,
                  clocks (MHz), power, temperature, where readable
    versions      of torch, CUDA or ROCm, triton and every peer; null where not installed
    correctness   for each operation: seed, checks, failures, worst error by dtype as a share of the
                  allowed error
    ceilings      copy {bytes_per_second, …}, product N {flop_per_second, …}
    rows          op, model, case, pass ("forward" or "forward+backward"), dtype, seed, copies (sets of
                  inputs in rotation), size_error (relative, against the reference in float32 at this size;
                  null: too large for memory) and size_limit; median, low, high (seconds on the device, 20th
                  and 80th percentile), samples, calls (in a sample), host (seconds to queue a call). Forward
                  rows also have bytes, flops, bound ("memory" or "arithmetic"), floor (seconds at the
                  ceilings) and share (floor over median). peers: name, and either the same times with
                  speedup (theirs over ours) or "skipped" with the reason. Or only "failed", with the reason.
"""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

from bench.gpu_check import check_all
from bench.gpu_jobs import CardLost, Job, Machine, plan, run_job
from bench.gpu_report import Report, failures, print_report
from bench.gpu_timing import Budget, Ceilings, DeviceStopwatch, Stopwatch, ceilings
from bench.protocol import ROOT
from bench.records import add_results, say, today
from proactor.kernels.jit import HAS_TRITON
from proactor.kernels.op import Op

BUDGET, QUICK_BUDGET = 480.0, 85.0
CORRECTNESS_SHARE = 0.55
"""Largest share of the budget for correctness."""
ROW_SECONDS, QUICK_ROW_SECONDS = 1.5, 0.5
LEAST_ROW = 4.0
"""No row begins with less time left, in seconds."""
RESERVE = 3.0
"""The run is stopped this many seconds before the end of the budget, even inside a call."""
PACKAGES = ("torch", "triton", "transformers", "bitsandbytes", "trl", "liger-kernel", "peft")


def commit() -> str:
    """The checkout's commit, "-dirty" with changes, "no-git" outside of git."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude", "*"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return "no-git"
    return done.stdout.strip() or "no-git"


def versions() -> dict[str, str | None]:
    """Versions of everything that is timed; None where it is not installed."""
    installed: dict[str, str | None] = dict.fromkeys(PACKAGES)
    for name in PACKAGES:
        try:
            installed[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return {
        **installed,
        "cuda": torch.version.cuda,
        "rocm": torch.version.hip,
        "python": sys.version.split()[0],
    }


def readings() -> dict[str, str] | None:
    """Driver, clocks, power and temperature from nvidia-smi; None without it."""
    queries = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "temperature.gpu")
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(queries)}", "--format=csv,noheader", "-i", "0"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    values = [v.strip() for v in done.stdout.strip().split(",")]
    return dict(zip(queries, values, strict=True)) if len(values) == len(queries) else None


def card(device: torch.device) -> tuple[dict[str, Any], Machine]:
    """The record's facts about the device, and the memory and cache that the benchmark may use."""
    properties = torch.cuda.get_device_properties(device)
    free, total = torch.cuda.mem_get_info(device)
    facts = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory": total,
        "cache": properties.L2_cache_size,
        "before": readings(),
        "after": None,
    }
    return facts, Machine(device, properties.L2_cache_size, free // 2)


def time_rows(
    jobs: Sequence[Job],
    watch: Stopwatch,
    ceiling: Ceilings,
    machine: Machine,
    budget: Budget,
    seconds: float,
    report: Report,
) -> None:
    """Run jobs in order while they fit in the budget; saves after every row. Raises CardLost."""
    for i, job in enumerate(jobs):
        if not budget.allows(LEAST_ROW):
            report.save(skipped=[j.name for j in jobs[i:]])
            say(f"out of time: {len(jobs) - i} of {len(jobs)} rows left out")
            return
        say(f"  [{budget.spent:4.0f} s] {job.name}")
        report.record["running"] = job.name
        begun = budget.spent
        row = run_job(job, watch, ceiling, machine, seconds, report.record["seed"])
        budget.took(budget.spent - begun)
        report.record["rows"].append(row)
        report.save()
        if machine.device.type == "cuda":
            torch.cuda.empty_cache()


def finish(report: Report) -> int:
    """Print the report; returns the exit code."""
    print_report(report)
    return 1 if failures(report.record) else 0


def _watch_out(report: Report, budget: Budget) -> threading.Timer:
    """A timer that ends the process just before the budget does: a hanging call must not cost the record."""

    def stop() -> None:
        report.save(stopped=f"out of time during {report.record.get('running')}", seconds=budget.spent)
        code = finish(report)
        sys.stdout.flush()
        os._exit(code)

    timer = threading.Timer(max(0.1, budget.left), stop)
    timer.daemon = True
    timer.start()
    return timer


def run(ops: Sequence[Op], options: argparse.Namespace, budget: Budget) -> int:
    """The whole benchmark on the device of this process."""
    device = torch.device("cuda", torch.cuda.current_device())
    facts, machine = card(device)
    seed = secrets.randbelow(2**31) if options.seed is None else options.seed
    report = Report(
        options.results,
        {
            "finished": False,
            "commit": commit(),
            "date": today(),
            "quick": options.quick,
            "budget": budget.seconds,
            "seconds": 0.0,
            "seed": seed,
            "card": facts,
            "versions": versions(),
            "correctness": [],
            "ceilings": {},
            "rows": [],
            "skipped": [],
            "running": "correctness",
        },
    )
    guard = _watch_out(report, budget)
    say(f"{facts['name']}: correctness of {len(ops)} operations, seed {seed}")
    checks = check_all(
        [op.name for op in ops],
        "cuda",
        seed,
        CORRECTNESS_SHARE * budget.seconds,
        min(8, max(1, (os.cpu_count() or 2) // 2)),
        lambda c: say(
            f"  [{budget.spent:4.0f} s] {c['op']}: {c['checks']} checks, {len(c['failures'])} failed, worst "
            f"{c['worst']}"
        ),
    )
    report.save(correctness=checks)
    right = [op for op, check in zip(ops, checks, strict=True) if not check["failures"]]
    try:
        watch = DeviceStopwatch()
        report.record["running"] = "ceilings"
        ceiling, measured = ceilings(watch, device, machine.free, options.quick)
        report.save(ceilings=measured)
        seconds = QUICK_ROW_SECONDS if options.quick else ROW_SECONDS
        time_rows(plan(right, quick=options.quick), watch, ceiling, machine, budget, seconds, report)
    except CardLost as lost:
        report.save(stopped=f"the card is lost during {report.record['running']}: {lost}")
    guard.cancel()
    report.record.pop("running", None)
    facts["after"] = readings()
    report.save(finished="stopped" not in report.record, seconds=round(budget.spent, 1))
    return finish(report)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line and run; see the module for exit codes."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description="every operation on this card: correctness, ceilings, times"
    )
    parser.add_argument(
        "--quick", action="store_true", help="correctness of all and a few rows, under 90 seconds"
    )
    parser.add_argument(
        "--budget",
        type=float,
        default=None,
        help=f"seconds for everything ({BUDGET:.0f}; with --quick {QUICK_BUDGET:.0f})",
    )
    parser.add_argument("--ops", default="", help="names of operations, with commas between")
    add_results(parser)
    parser.add_argument(
        "--seed",
        type=int,
        default=None,
        help="seed of all inputs; default: a fresh one, named in the record",
    )
    options = parser.parse_args(argv)
    budget = Budget(options.budget or (QUICK_BUDGET if options.quick else BUDGET), time.monotonic, RESERVE)
    if not HAS_TRITON or not torch.cuda.is_available():
        missing = "a CUDA or ROCm card that torch sees" if HAS_TRITON else "triton"
        say(
            f"bench.gpu needs {missing}; here is torch {torch.__version__} without. On a CPU: make bench, "
            "make compile-check"
        )
        return 2
    from proactor.kernels.registry import OPS

    chosen = [name for name in options.ops.split(",") if name]
    unknown = set(chosen) - {op.name for op in OPS}
    if unknown:
        parser.error(f"--ops {', '.join(sorted(unknown))}: not one of {', '.join(op.name for op in OPS)}")
    return run([op for op in OPS if not chosen or op.name in chosen], options, budget)


if __name__ == "__main__":
    sys.exit(main())
