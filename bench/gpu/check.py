"""Correctness on a GPU, each operation in its own process: ``python -m bench.gpu.check OP[:DTYPE]``.

Several run side by side, so that compiling uses all cores, those that compile most first. A kernel that
breaks the device's context or the process costs only its own operation. What is not done when the time is up
is unchecked, not failed; what had failed before then is.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from bench.gpu.task import CardLost, attempt
from bench.protocol import ROOT
from proactor.kernels.check import check
from proactor.kernels.op import Op

RECORD = "record: "
"""Begins a line with a result; other lines are what libraries say."""
OUT_OF_TIME = "out of time"
MOST_KERNELS = 100
"""Kernels to compile that one process takes: about a minute."""


def check_op(op: Op, device: torch.device, seed: int, dtype_name: str = "") -> Iterator[dict[str, Any]]:
    """Check every case in every dtype, or in one, on fresh inputs; yields the record before and after each.

    It has "op", "seed", "checks" (how many are done), "of", "worst" (by dtype: the largest error as a share
    of the allowed one), "failures" (one line each), "unchecked" (why some are not done; empty in the end) and
    "seconds".
    """
    begun = time.perf_counter()
    failures: list[str] = []
    worst: dict[str, float] = {}
    dtypes = [dtype for dtype in op.tolerance if dtype_name in ("", str(dtype)[6:])]
    runs = [(case, dtype) for case in op.cases for dtype in dtypes]

    def record(done: int, why: str) -> dict[str, Any]:
        seconds = round(time.perf_counter() - begun, 2)
        return {
            "op": op.name,
            "seed": seed,
            "checks": done,
            "of": len(runs),
            "worst": worst,
            "failures": failures,
            "unchecked": why,
            "seconds": seconds,
        }

    yield record(0, "not begun")
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

        try:
            problem = attempt(one)
        except CardLost as lost:
            failures.append(f"{name}: the card is lost: {lost}")
            yield record(i + 1, "the card is lost" if i + 1 < len(runs) else "")
            return
        if problem:
            failures.append(f"{name}: {problem}")
        yield record(i + 1, "running" if i + 1 < len(runs) else "")


def slowest_first(ops: Sequence[Op]) -> list[str]:
    """The parts to check, those with most kernels to compile first: the longest must not begin last.

    A part is an operation, or where that has many kernels one of its dtypes, as "span_attention:bfloat16".
    """
    parts: list[tuple[float, str]] = []
    for op in ops:
        passes = 2 if op.gradients else 1
        kernels = passes * len(op.cases) * len(op.tolerance) * len({w.kernel for w in op.launches})
        if kernels > MOST_KERNELS:
            parts += [(kernels / len(op.tolerance), f"{op.name}:{str(dtype)[6:]}") for dtype in op.tolerance]
        else:
            parts.append((kernels, op.name))
    return [name for _, name in sorted(parts, key=lambda part: -part[0])]


def merged(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The results of parts as one an operation."""
    whole: dict[str, dict[str, Any]] = {}
    for part in results:
        into = whole.setdefault(part["op"], {**_nothing(part["op"], part["seed"]), "of": 0})
        for name in ("checks", "of", "failures", "seconds"):
            into[name] += part[name]
        into["worst"] |= part["worst"]
        into["unchecked"] = into["unchecked"] or part["unchecked"]
    return list(whole.values())


def check_all(
    names: Sequence[str],
    device: str,
    seed: int,
    seconds: float,
    jobs: int,
    done: Callable[[dict[str, Any]], None],
) -> list[dict[str, Any]]:
    """Check parts in ``jobs`` processes at a time, in the order of ``names`` (`slowest_first`).

    Those that have not ended after ``seconds`` are stopped; what they have not checked is "unchecked".
    ``done`` gets each result.
    """
    end = time.monotonic() + seconds
    waiting = list(names)
    running: dict[str, tuple[subprocess.Popen[str], Any]] = {}
    results: dict[str, dict[str, Any]] = {}
    environment = {**os.environ, "PROACTOR_KERNELS": "triton", "PYTHONPATH": python_path()}
    while waiting or running:
        late = time.monotonic() >= end
        while waiting and len(running) < jobs and not late:
            name = waiting.pop(0)
            log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed when the process has ended)
            command = [sys.executable, "-m", "bench.gpu.check", name, "--device", device, "--seed", str(seed)]
            running[name] = (
                subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT, env=environment, text=True),
                log,
            )
        for name, (process, log) in list(running.items()):
            stopped = late and process.poll() is None
            if stopped:
                process.kill()
            if late or process.poll() is not None:
                results[name] = _result(name, seed, process.wait(), log, stopped)
                done(results[name])
                del running[name]
        if late:
            for name in waiting:
                results[name] = _nothing(name, seed) | {"unchecked": OUT_OF_TIME}
                done(results[name])
            waiting = []
        time.sleep(0.05)
    return [results[name] for name in names]


def python_path() -> str:
    """The checkout in front of what PYTHONPATH names: packages may have been brought along."""
    return os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))


def _nothing(name: str, seed: int) -> dict[str, Any]:
    """The result of an operation of which nothing is known."""
    return {
        "op": name,
        "seed": seed,
        "checks": 0,
        "worst": {},
        "failures": [],
        "unchecked": "",
        "seconds": 0.0,
    }


def _result(name: str, seed: int, code: int, log: Any, stopped: bool) -> dict[str, Any]:
    """The last result that a process printed, with how it ended."""
    log.seek(0)
    lines = [line for line in log.read().splitlines() if line.strip()]
    log.close()
    records = [line for line in lines if line.startswith(RECORD)]
    result: dict[str, Any] = json.loads(records[-1].removeprefix(RECORD)) if records else _nothing(name, seed)
    if stopped:  # perhaps only while it ended
        return result | {"unchecked": OUT_OF_TIME if result["checks"] < result["of"] or not records else ""}
    if code and not (code == 1 and result["failures"]):
        last = "" if not lines or lines[-1] in records else f": {lines[-1][:200]}"
        result["failures"].append(f"process ended with {code} after {result['checks']} checks{last}")
    return result


def main() -> None:
    """Check one part, and print its record after each check: exit code 1 where one failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", help="an operation, or one dtype of it: span_attention:bfloat16")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    from proactor.kernels.registry import OPS

    name, _, dtype = options.part.partition(":")
    (op,) = (op for op in OPS if op.name == name)
    for record in check_op(op, torch.device(options.device), options.seed, dtype):
        print(RECORD + json.dumps(record), flush=True)
    sys.exit(1 if record["failures"] else 0)


if __name__ == "__main__":
    main()
