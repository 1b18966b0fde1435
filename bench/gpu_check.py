"""Correctness on a GPU, each operation in its own process: ``python -m bench.gpu_check OP``.

Several run side by side, so that compiling uses all cores. A kernel that breaks the device's context or the
process costs only its own operation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from bench.gpu_jobs import CardLost, attempt
from bench.protocol import ROOT
from proactor.kernels.check import check
from proactor.kernels.op import Op


def check_op(op: Op, device: torch.device, seed: int) -> dict[str, Any]:
    """Check every case in every dtype on fresh inputs.

    Returns "op", "seed", "checks" (their number), "worst" (by dtype: the largest error as a share of the
    allowed one), "failures" (one line each) and "seconds".
    """
    begun = time.perf_counter()
    failures: list[str] = []
    worst: dict[str, float] = {}
    done = 0
    runs = [(case, dtype) for case in op.cases for dtype in op.tolerance]
    try:
        for i, (case, dtype) in enumerate(runs):
            name = f"{case.name} {str(dtype)[6:]} seed {seed + i}"

            def one(i: int = i, case: Any = case, dtype: torch.dtype = dtype, name: str = name) -> None:
                for error in check(op, case, dtype, device, seed + i):
                    share = error.value / error.limit if error.limit else float(error.value > 0)
                    worst[str(dtype)[6:]] = max(worst.get(str(dtype)[6:], 0.0), share)
                    if not error.passed:
                        failures.append(
                            f"{name}: {error.what} is off by {error.value:.2e}, allowed are {error.limit:.1e}"
                        )

            problem = attempt(one)
            if problem:
                failures.append(f"{name}: {problem}")
            done += 1
    except CardLost as lost:
        failures.append(f"the card is lost, {len(runs) - done} checks not done: {lost}")
    return {
        "op": op.name,
        "seed": seed,
        "checks": done,
        "worst": worst,
        "failures": failures,
        "seconds": round(time.perf_counter() - begun, 2),
    }


def check_all(
    names: Sequence[str],
    device: str,
    seed: int,
    seconds: float,
    jobs: int,
    done: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Check operations in ``jobs`` processes at a time.

    Those that have not ended after ``seconds`` are stopped and count as failed. ``done`` gets each result.
    """
    end = time.monotonic() + seconds
    waiting = list(names)
    running: dict[str, tuple[subprocess.Popen[str], Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    environment = {**os.environ, "PROACTOR_KERNELS": "triton", "PYTHONPATH": str(ROOT)}
    while waiting or running:
        while waiting and len(running) < jobs and time.monotonic() < end:
            name = waiting.pop(0)
            log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when the process has ended)
            command = [sys.executable, "-m", "bench.gpu_check", name, "--device", device, "--seed", str(seed)]
            running[name] = (
                subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment, text=True),
                log,
            )
        late = time.monotonic() >= end
        for name, (process, log) in list(running.items()):
            if late and process.poll() is None:
                process.kill()
            if late or process.poll() is not None:
                results[name] = _result(name, seed, process.wait(), log, late)
                done(results[name])
                del running[name]
        if late:
            for name in waiting:
                results[name] = _failure(name, seed, "not checked: out of time")
                done(results[name])
            waiting = []
        time.sleep(0.05)
    return [results[name] for name in names]


def _failure(name: str, seed: int, why: str) -> dict[str, Any]:
    """The result of an operation that was not checked."""
    return {"op": name, "seed": seed, "checks": 0, "worst": {}, "failures": [why], "seconds": 0.0}


def _result(name: str, seed: int, code: int, log: Any, late: bool) -> dict[str, Any]:
    """The result that a process printed, or why there is none."""
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()]
    log.close()
    if code == 0:
        result: dict[str, Any] = json.loads(lines[-1])
        return result
    if late:
        return _failure(name, seed, "out of time")
    return _failure(name, seed, f"process ended with {code}: {lines[-1] if lines else 'no message'}")


def main() -> None:
    """Check one operation and print its record as the last line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("op")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from proactor.kernels.registry import OPS

    (op,) = (op for op in OPS if op.name == options.op)
    print(json.dumps(check_op(op, torch.device(options.device), options.seed)))


if __name__ == "__main__":
    main()
