"""One row of `bench.gpu`: an operation on one case, checked at that size and timed beside its peers."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from bench.gpu.form import Form, Peer
from bench.gpu.peers import peers_of
from bench.gpu.task import BOTH, FORWARD, Job, Row, Setting, Task, attempt
from bench.gpu.timing import Run, Stopwatch, copies, copy_arguments, measure, nbytes, tensors, wait
from proactor.kernels.op import Arguments, Case, ModelShape, Op
from proactor.kernels.registry import OPS

SLOWEST_PEER = 1.0
"""A peer whose call takes longer, in seconds, is not timed."""
PEER_SLACK = 4
"""A peer in the same dtype may differ from the operation by this multiple of its tolerance."""
FLIPS = 0.05
"""Largest share of integer outputs that may differ at full size. Small cases are checked exactly."""


@dataclasses.dataclass(frozen=True, slots=True)
class OpRow:
    """A row to measure. ``peers`` None: those of `peers_of`."""

    op: Op
    model: str
    case: Case
    passes: str
    peers: tuple[Peer, ...] | None = None

    @property
    def name(self) -> str:
        """The row's name for a reader."""
        return f"{self.op.name} {self.case.name} ({self.model}, {self.passes})"


def cases(op: Op, shape: ModelShape, dry: bool) -> list[Case]:
    """The cases to time, largest first; of a dry run the smallest test case that is not empty."""
    if op.timed is None:
        return []
    if not dry:
        return list(op.timed(shape))[::-1]
    generator, cpu = torch.Generator().manual_seed(1), torch.device("cpu")
    drawn = [c.make(generator, cpu, torch.float32) for c in op.cases]
    full = [
        (nbytes(a), i) for i, a in enumerate(drawn) if nbytes(a) > 64 and all(map(torch.numel, tensors(a)))
    ]
    return [op.cases[min(full)[1]]]


def tasks(job: Job, setting: Setting) -> list[Task]:
    """The rows of the job's operations: forward before backward, large cases before small ones.

    A quick job: the largest case of each.
    """
    named = {op.name: op for op in OPS}
    rows: list[OpRow] = []
    for op in (named[name] for name in job.ops):
        chosen = cases(op, job.shape, setting.dry)
        for passes in job.passes if op.gradients else {FORWARD} & set(job.passes):
            rows += [OpRow(op, job.model, case, passes) for case in (chosen[:1] if job.quick else chosen)]
    return [Task(row.name, partial(run_row, row, setting)) for row in rows]


def run_row(row: OpRow, setting: Setting, watch: Stopwatch) -> list[Row]:
    """Measure one row for about ``setting.seconds``. A failure is in the row ("failed"). Raises CardLost."""
    # float32 in a dry run: not every torch form takes half types as the kernels do
    half = torch.bfloat16 in row.op.tolerance and not setting.dry
    dtype = torch.bfloat16 if half else next(iter(row.op.tolerance))
    record: Row = {
        "op": row.op.name,
        "model": row.model,
        "case": row.case.name,
        "pass": row.passes,
        "dtype": str(dtype)[6:],
        "seed": setting.seed,
    }
    problem = attempt(lambda: _measure(row, setting, watch, dtype, record))
    if problem:
        record["failed"] = problem
    return [record]


def _measure(row: OpRow, setting: Setting, watch: Stopwatch, dtype: torch.dtype, record: Row) -> None:
    op, device = row.op, setting.torch_device
    arguments = row.case.make(torch.Generator(device=device).manual_seed(setting.seed), device, dtype)
    count, work = op.bytes(**arguments), op.flops(**arguments)
    ours = op.function
    result = values(ours(**copy.deepcopy(arguments)))
    _check_size(op, arguments, result, op.tolerance[dtype], record)
    read = nbytes(arguments)
    held = 4 * max(read, count)  # arguments, results, and the peers' layouts
    record["copies"] = copies(read, held, setting.cache, setting.free // 2)
    sets = copy_arguments(arguments, record["copies"])
    backward = row.passes == BOTH
    forms: dict[str, list[Run]] = {"ours": [run_of(form_of(op, one, backward), backward) for one in sets]}
    peers: list[dict[str, Any]] = []
    beside = (peers_of(op) if row.peers is None else row.peers) if setting.peers else ()
    for peer in beside:
        runs, note = _peer_runs(peer, arguments, sets, result, PEER_SLACK * op.tolerance[dtype], backward)
        peers.append({"name": peer.name, **({"skipped": note} if note else {})})
        if runs:
            forms[peer.name] = runs
    timings = measure(watch, forms, setting.seconds)
    floor, bound = setting.ceilings.floor(count, work)
    record.update(dataclasses.asdict(timings["ours"]))
    if not backward:  # the operation counts bytes and operations of the forward pass alone
        record |= {
            "bytes": count,
            "flops": work,
            "bound": bound,
            "floor": floor,
            "share": floor / timings["ours"].median,
        }
    for entry in peers:
        if "skipped" not in entry:
            timing = timings[str(entry["name"])]
            entry |= dataclasses.asdict(timing) | {"speedup": timing.median / timings["ours"].median}
    record["peers"] = peers


def form_of(op: Op, arguments: Arguments, backward: bool) -> Form:
    """The operation on ``arguments``, whose differentiable ones become leaves for a ``backward`` pass."""
    leaves = [arguments[name] for name in op.gradients if isinstance(arguments.get(name), Tensor)]
    if backward:
        for leaf in leaves:
            leaf.requires_grad_()
    return Form(lambda: op.function(**arguments), leaves)


def run_of(form: Form, backward: bool) -> Run:
    """The form as one call: without gradients, or with a backward pass from random output gradients."""
    if not backward:
        return torch.no_grad()(form.call)
    gradients: list[Tensor] = []

    def both() -> tuple[Tensor, ...]:
        out = [t for t in tensors(form.call()) if t.requires_grad]
        if not gradients:  # drawn once
            gradients.extend(torch.randn_like(t) for t in out)
        return torch.autograd.grad(out, list(form.leaves), gradients)

    return both


def _check_size(op: Op, arguments: Arguments, ours: list[Tensor], limit: float, row: Row) -> None:
    """Compare with the float32 reference at this size. Raises ValueError beyond twice the tolerance.

    ``size_error`` is None where the reference does not fit in memory.
    """
    wide = {
        k: v.detach().float().clone() if isinstance(v, Tensor) and v.is_floating_point() else copy.deepcopy(v)
        for k, v in arguments.items()
    }
    row["size_limit"] = 2 * limit
    try:
        with torch.no_grad():
            row["size_error"] = difference(ours, values(op.reference(**wide)))
    except torch.OutOfMemoryError:
        row["size_error"] = None
        return
    if not row["size_error"] <= row["size_limit"]:
        raise ValueError(
            f"wrong at this size: error {row['size_error']:.2e}, allowed are {row['size_limit']:.1e}"
        )


def _peer_runs(
    peer: Peer,
    arguments: Arguments,
    sets: Sequence[Arguments],
    ours: list[Tensor],
    limit: float,
    backward: bool,
) -> tuple[list[Run] | None, str]:
    """(the peer's calls on every set of arguments, ""), or (None, why it is not timed)."""
    if peer.absent:
        return None, peer.absent
    if backward and not peer.gradients:
        return None, "forward only"
    runs: list[Run] = []
    notes: list[str] = []

    def prepare() -> None:
        trial = peer.build(
            copy.deepcopy({k: v.detach() if isinstance(v, Tensor) else v for k, v in arguments.items()})
        )
        if trial is None:
            notes.append("no such form for this case")
            return
        with torch.no_grad():
            error = difference(values(trial.view(trial.call())), ours)
            if not error <= max(limit, 1e-6):
                notes.append(f"differs by {error:.1e}")
                return
            wait(ours[0].device)
            begun = time.perf_counter()
            trial.call()
            wait(ours[0].device)
        if time.perf_counter() - begun > SLOWEST_PEER:
            notes.append(f"{time.perf_counter() - begun:.1f} s a call")
            return
        forms = [peer.build(one) for one in sets]
        runs.extend(run_of(form, backward) for form in forms if form is not None)
        if backward:
            runs[0]()

    problem = attempt(prepare)
    note = problem or "".join(notes)
    return (None, note) if note else (runs, "")


def values(outputs: Any) -> list[Tensor]:
    """Copies of all tensors of an operation's result."""
    return [t.detach().clone() for t in tensors(outputs)]


def difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Largest difference over all outputs, relative to the largest element of ``theirs``.

    Infinite where shapes differ or a value is NaN. Integers, such as sampled tokens, may differ in a share of
    `FLIPS`, where rounding decides between two tokens; rows where they differ are left out.
    """
    if not ours or len(ours) < len(theirs):
        return float("inf")
    pairs = list(zip(ours, theirs, strict=False))
    if any(a.shape != b.shape for a, b in pairs):
        return float("inf")
    same = [a == b for a, b in pairs if not a.is_floating_point() and a.numel()]
    if any(float(s.double().mean()) < 1 - FLIPS for s in same):
        return float("inf")
    rows = next((s for s in same if s.dim() == 1), None)
    worst = 0.0
    for a, b in pairs:
        if not a.is_floating_point() or not a.numel():
            continue
        if rows is not None and a.shape[:1] == rows.shape:
            a, b = a[rows], b[rows]
        error = (a.double() - b.double()).abs().max() / (b.double().abs().max() or 1.0)
        worst = max(worst, float(error.nan_to_num(float("inf"), float("inf"))))
    return worst
