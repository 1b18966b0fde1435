"""Every kernel compiled ahead of time for every target, on a machine that needs no GPU: ``python -m
proactor.kernels.compile_check``.

A kernel fails when the compiler refuses it, when it spills registers to memory, or when it needs more shared
memory than the device has. Each launch is compiled as the just-in-time compiler specialises it where sizes
are multiples of 16, as those of models are (wide loads, deep pipelines), and once more for odd sizes. Spills
of the odd form are shown without failing: it serves shapes that no model has. A tile known to be too large
for the registers goes along for each target: where it passes, the check itself is broken and fails.
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
    """One launch on one target: what it needs where sizes are multiples of 16, and for odd ones; ``reason``
    is empty where it is fit to run.
    """

    op: str
    kernel: str
    target: str
    needs: Compiled | None
    odd: Compiled | None
    reason: str


# --- the positive control ---


@jit
def oversized_kernel(a_ptr, b_ptr, c_ptr, depth, TILE: tl.constexpr, STEP: tl.constexpr):
    """A product whose float32 accumulator alone takes 512 registers of each of 128 threads."""
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


# --- many, each in a process of its own: a compiler that aborts takes nothing else with it ---

Task = tuple[str, Launch, str]
"""Operation, launch, target."""


def tasks(ops: Iterable[Op], targets: Sequence[str]) -> list[Task]:
    """Every launch of every operation on every target that it names."""
    return [
        (o.name, w, t) for o in ops for w in o.launches for t in targets if not w.targets or t in w.targets
    ]


def check_all(
    work: Sequence[Task], quick: bool = False, jobs: int = 1, done: Callable[[Result], None] | None = None
) -> list[Result]:
    """Compile ``work`` in ``jobs`` processes at a time; results in the order of ``work``, each given to
    ``done`` as it comes.
    """
    if interpreted():
        raise KernelError("TRITON_INTERPRET is set: kernels defined under it cannot be compiled")
    found: dict[int, Result] = {}
    running: dict[Any, tuple[int, Any, Any]] = {}  # by the connection that its answer comes through
    context = multiprocessing.get_context("fork")
    waiting = list(enumerate(work))
    while waiting or running:
        while waiting and len(running) < jobs:
            index, task = waiting.pop(0)
            ours, theirs = context.Pipe(duplex=False)
            log = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the process has ended)
            process = context.Process(target=_work, args=(theirs, log.fileno(), task, quick), daemon=True)
            process.start()
            theirs.close()
            running[ours] = (index, process, log)
        for answered in wait(list(running)):
            index, process, log = running.pop(answered)
            found[index] = _collect(answered, process, log, work[index])
            if done:
                done(found[index])
    return [found[i] for i in range(len(work))]


def _work(out: Any, log: int, task: Task, quick: bool) -> None:
    os.dup2(log, 1)  # the compiler prints whole programs when it fails
    os.dup2(log, 2)
    _, launch, target = task
    needs = compile_launch(launch, target, aligned=True)
    out.send((needs, None if quick else compile_launch(launch, target, aligned=False)))


def _collect(connection: Any, process: Any, log: Any, task: Task) -> Result:
    name, launch, target = task
    try:
        needs, odd = connection.recv()
    except EOFError:  # it ended without an answer; its log says why
        needs = odd = None
    process.join()
    log.seek(0)
    said = [line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()]
    log.close()
    if needs is None:
        telling = [line for line in said if "error" in line.lower()] or said or ["no message"]
        return Result(
            name, launch.name, target, None, None, f"compiler: {telling[-1]} (exit code {process.exitcode})"
        )
    return Result(
        name,
        launch.name,
        target,
        needs,
        odd,
        problem(needs, target) or (problem(odd, target, False) if odd else ""),
    )


def controls(targets: Sequence[str], jobs: int) -> list[str]:
    """Targets on which the control did not show as spilling: there the check cannot be trusted."""
    found = check_all([("control", CONTROL, t) for t in targets], True, jobs)
    return [f"{r.target}: {r.reason or 'fit'}" for r in found if not r.reason.startswith("spills")]


# --- what a person sees ---


def table(results: Sequence[Result], every: bool) -> Any:
    """A row for each operation and target, the worst of its launches; with ``every`` a row for each
    launch.
    """
    from rich.table import Table

    groups: dict[tuple[str, str], list[Result]] = {}
    for r in results:
        groups.setdefault((r.kernel if every else r.op, r.target), []).append(r)
    shown = Table(
        "kernel" if every else "operation",
        "target",
        "launches",
        "registers",
        "spills",
        "odd spills",
        "shared KiB",
        "",
    )
    for (name, target), rows in groups.items():
        needs, odd = [r.needs for r in rows if r.needs], [r.odd for r in rows if r.odd]
        bad = sum(bool(r.reason) for r in rows)
        cells = [
            _most(n.registers for n in needs),
            _most(n.spills for n in needs),
            _most(n.spills for n in odd),
            f"{_most(n.shared / KIB for n in [*needs, *odd])} of {SHARED[target] // KIB}",
        ]
        verdict = f"[red]FAILED ({bad})[/red]" if bad else "[green]ok[/green]"
        shown.add_row(name.replace("[", r"\["), target, str(len(rows)), *cells, verdict)
    return shown


def _most(values: Iterable[float]) -> str:
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
    """Run the check. Exit code 1 when a launch or the control fails, 2 where nothing can be compiled."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(prog="python -m proactor.kernels.compile_check", description=__doc__)
    parser.add_argument("--targets", default="", help=f"some of {','.join(TARGETS)}")
    parser.add_argument("--ops", default="", help="names of operations, with commas between")
    parser.add_argument(
        "--quick", action="store_true", help=f"only {', '.join(QUICK)}, aligned arguments only"
    )
    parser.add_argument("--all", action="store_true", help="a row for each launch")
    parser.add_argument(
        "--sass", metavar="OP", default="", help="count SASS opcodes of these operations on sm_90 instead"
    )
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    options = parser.parse_args(arguments)
    if not HAS_TRITON:
        print("compile check: triton is not installed on this machine", file=sys.stderr)
        return 2
    if interpreted():  # kernels are already defined for the interpreter: start over without it
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
