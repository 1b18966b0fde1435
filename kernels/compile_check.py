"""Compile every kernel for every target, without a GPU: ``python -m proactor.kernels.compile_check``.

A kernel fails when the compiler rejects it, when it spills registers to memory, or when it needs more shared
memory than the device has. Each launch is compiled twice: for sizes that are multiples of 16, as those of
models are (wide loads, deep pipelines), and for other sizes. Spills of the second form are shown but do not
fail, since no model has such shapes. A control kernel that must spill is compiled for each target: if it
passes, the check itself is broken, and fails.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

from proactor.kernels.compile_launch import KIB, SHARED, TARGETS, Compiled, compile_launch, opcodes, problem
from proactor.kernels.errors import KernelError
from proactor.kernels.jit import HAS_TRITON, interpreted, jit, tl, triton
from proactor.kernels.op import Launch, Op

QUICK = ("sm_80", "sm_90", "gfx942")


@dataclass(frozen=True, slots=True)
class Result:
    """One launch on one target: its needs for sizes that are multiples of 16 and for others (``unaligned``).

    ``reason``: why it does not fit; empty if it does.
    """

    op: str
    kernel: str
    target: str
    needs: Compiled | None
    unaligned: Compiled | None
    reason: str


# --- the positive control ---


@jit
def oversized_kernel(a_ptr, b_ptr, c_ptr, depth, TILE: tl.constexpr, STEP: tl.constexpr):
    """One program, tile [TILE, TILE]: its float32 accumulator alone needs 512 registers per thread."""
    row, k = tl.arange(0, TILE), tl.arange(0, STEP)
    total = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, depth, STEP):
        a = tl.load(a_ptr + row[:, None] * depth + start + k[None, :])
        b = tl.load(b_ptr + row[None, :] * depth + start + k[:, None])
        total = tl.dot(a, b, total)
    tl.store(c_ptr + row[:, None] * TILE + row[None, :], total)


CONTROL = Launch(
    oversized_kernel,
    {"a_ptr": "*bf16", "b_ptr": "*bf16", "c_ptr": "*fp32", "depth": "i32"},
    {"TILE": 256, "STEP": 64},
)


# --- many launches, one process each: a compiler that aborts must not stop the check ---

Task = tuple[str, Launch, str]
"""(operation, launch, target)."""


def tasks(ops: Iterable[Op], targets: Sequence[str]) -> list[Task]:
    """Every launch of every operation, on each of ``targets`` that the launch is meant for."""
    return [
        (o.name, w, t) for o in ops for w in o.launches for t in targets if not w.targets or t in w.targets
    ]


def check_all(
    work: Sequence[Task], quick: bool = False, jobs: int = 1, done: Callable[[Result], None] | None = None
) -> list[Result]:
    """Compile ``work`` in ``jobs`` processes at a time; results in the order of ``work``.

    ``quick`` skips unaligned sizes. ``done`` gets each result. Raises KernelError under TRITON_INTERPRET.
    """
    if interpreted():
        raise KernelError("TRITON_INTERPRET is set: kernels defined under it cannot be compiled")
    results: dict[int, Result] = {}
    running: dict[Any, tuple[int, Any, Any]] = {}  # connection -> (index, process, log)
    context = multiprocessing.get_context("fork")
    waiting = list(enumerate(work))
    while waiting or running:
        while waiting and len(running) < jobs:
            index, task = waiting.pop(0)
            receiver, sender = context.Pipe(duplex=False)
            log = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the process has ended)
            process = context.Process(target=_work, args=(sender, log.fileno(), task, quick), daemon=True)
            process.start()
            sender.close()
            running[receiver] = (index, process, log)
        for answered in wait(list(running)):
            index, process, log = running.pop(answered)
            results[index] = _collect(answered, process, log, work[index])
            if done:
                done(results[index])
    return [results[i] for i in range(len(work))]


def _work(out: Any, log: int, task: Task, quick: bool) -> None:
    os.dup2(log, 1)  # a failing compiler prints whole programs
    os.dup2(log, 2)
    _, launch, target = task
    needs = compile_launch(launch, target, aligned=True)
    out.send((needs, None if quick else compile_launch(launch, target, aligned=False)))


def _collect(connection: Any, process: Any, log: Any, task: Task) -> Result:
    name, launch, target = task
    try:
        needs, unaligned = connection.recv()
    except EOFError:  # the process ended without an answer; its log says why
        needs = unaligned = None
    process.join()
    log.seek(0)
    lines = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    log.close()
    if needs is None:
        errors = [line for line in lines if "error" in line.lower()] or lines or ["no message"]
        reason = f"compiler: {errors[-1]} (exit code {process.exitcode})"
        return Result(name, launch.name, target, None, None, reason)
    reason = problem(needs, target)
    if not reason and unaligned:
        reason = problem(unaligned, target, spills=False)
    return Result(name, launch.name, target, needs, unaligned, reason)


def controls(targets: Sequence[str], jobs: int) -> list[str]:
    """Targets on which the control kernel did not spill: the check cannot be trusted there."""
    results = check_all([("control", CONTROL, t) for t in targets], True, jobs)
    return [f"{r.target}: {r.reason or 'fit'}" for r in results if not r.reason.startswith("spills")]


# --- command line ---


def table(results: Sequence[Result], every: bool) -> Any:
    """A rich table: the worst launch per operation and target; with ``every``, one row per launch."""
    from rich.table import Table

    groups: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.kernel if every else r.op, r.target), []).append(r)
    first = "kernel" if every else "operation"
    summary = Table(first, "target", "launches", "registers", "spills", "unaligned spills", "shared KiB", "")
    for (name, target), rows in groups.items():
        needs = [r.needs for r in rows if r.needs]
        unaligned = [r.unaligned for r in rows if r.unaligned]
        bad = sum(bool(r.reason) for r in rows)
        cells = [
            _largest(n.registers for n in needs),
            _largest(n.spills for n in needs),
            _largest(n.spills for n in unaligned),
            f"{_largest(n.shared / KIB for n in [*needs, *unaligned])} of {SHARED[target] // KIB}",
        ]
        verdict = f"[red]FAILED ({bad})[/red]" if bad else "[green]ok[/green]"
        summary.add_row(name.replace("[", r"\["), target, str(len(rows)), *cells, verdict)
    return summary


def _largest(values: Iterable[float]) -> str:
    return f"{max(values, default=float('nan')):.3g}".replace("nan", "-")


def _show_sass(ops: Sequence[Op], target: str) -> int:
    for op in ops:
        for launch in op.launches:
            counts = opcodes(launch, target)
            print(f"{op.name} {launch.name} on {target}: {counts.total()} instructions")
            print("  " + ", ".join(f"{name} {n}" for name, n in counts.most_common()))
    return 0


def _choose(names: str, known: Sequence[str], what: str) -> list[str]:
    chosen = [n for n in names.split(",") if n]
    for name in chosen:
        if name not in known:
            raise SystemExit(f"{what} {name!r}: not one of {', '.join(known)}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check. Exit code: 1 if a launch or the control fails, 2 if triton is not installed."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m proactor.kernels.compile_check", description=__doc__)
    parser.add_argument("--targets", default="", help=f"some of {','.join(TARGETS)}")
    parser.add_argument("--ops", default="", help="operations, separated by commas")
    parser.add_argument(
        "--quick", action="store_true", help=f"only {', '.join(QUICK)}, aligned arguments only"
    )
    parser.add_argument("--all", action="store_true", help="one row per launch")
    parser.add_argument(
        "--sass", metavar="OP", default="", help="count SASS opcodes of these operations on sm_90 instead"
    )
    parser.add_argument("--jobs", type=int, help="processes at a time [default: one a core]")
    options = parser.parse_args(arguments)
    if not HAS_TRITON:
        print("compile check: triton is not installed on this machine", file=sys.stderr)
        return 2
    options.jobs = options.jobs or len(os.sched_getaffinity(0))
    if interpreted():  # kernels are already defined for the interpreter: restart without it
        clean = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        os.execve(sys.executable, [sys.executable, "-m", "proactor.kernels.compile_check", *arguments], clean)
    os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # unset, its meaning changes between versions
    from proactor.kernels.registry import OPS

    known = [op.name for op in OPS]
    targets = _choose(options.targets, TARGETS, "--targets") or list(QUICK if options.quick else TARGETS)
    chosen = _choose(options.sass or options.ops, known, "--ops") or known
    ops = [op for op in OPS if op.name in chosen]
    if options.sass:
        return _show_sass(ops, next((t for t in targets if options.targets), "sm_90"))
    return _report(ops, targets, options)


def _report(ops: Sequence[Op], targets: Sequence[str], options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    blind = controls(targets, options.jobs)
    for one in blind:
        console.print(f"[red]control passed, the check sees no spills[/red] on {one}")
    work = tasks(ops, targets)
    console.print(
        f"compiling {len(work)} launches of {len(ops)} operations for {', '.join(targets)} (triton "
        f"{triton.__version__})"
    )
    results = check_all(work, options.quick, options.jobs)
    console.print(table(results, options.all))
    for r in results:
        if r.reason:
            console.print(
                f"FAILED {r.op} on {r.target}: {r.kernel}: {r.reason}",
                style="red",
                markup=False,
                soft_wrap=True,
            )
    empty = [op.name for op in ops if not op.launches]
    if empty:
        console.print(f"nothing to compile: {', '.join(empty)}")
    failed = sum(bool(r.reason) for r in results)
    console.print(
        f"{len(results) - failed} ok, {failed} failed; control spills on {len(targets) - len(blind)} of "
        f"{len(targets)} targets"
    )
    return 1 if failed or blind else 0


if __name__ == "__main__":
    sys.exit(main())
