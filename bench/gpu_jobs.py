"""One row of `bench.gpu`: an operation on one case, checked at that size and timed beside its peers."""

from __future__ import annotations

import copy
import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.gpu_peers import Form, Peer, peers_of
from bench.gpu_timing import Ceilings, Run, Stopwatch, copies, copy_arguments, measure, nbytes, tensors
from proactor.kernels.op import QWEN25, Arguments, Case, ModelShape, Op

FORWARD, BOTH = "forward", "forward+backward"
FIRST = (
    "nf4_linear",
    "span_attention",
    "paged_attention",
    "shared_prefix_attention",
    "logprob_loss",
    "logprob",
    "lora_linear",
    "lora_add",
    "sample",
    "swiglu",
    "add_rms_norm",
    "rms_norm",
    "rope_into_pages",
    "rope",
    "adamw",
)
"""Operations by their share of a training step; the others follow in the order of the registry."""
SLOWEST_PEER = 1.0
"""A peer whose call takes longer, in seconds, is not timed."""
PEER_SLACK = 4
"""A peer in the same dtype may differ from the operation by this multiple of its tolerance."""

FLIPS = 0.05
"""Largest share of integer outputs that may differ at full size. Small cases are checked exactly."""


class CardLost(RuntimeError):
    """The device no longer answers: a kernel has broken its context."""


@dataclass(frozen=True, slots=True)
class Machine:
    """The device, bytes of its cache, and bytes of memory for the benchmark's inputs."""

    device: torch.device
    cache: int
    free: int


@dataclass(frozen=True, slots=True)
class Job:
    """A row to measure."""

    op: Op
    model: ModelShape
    case: Case
    passes: str

    @property
    def name(self) -> str:
        """The row's name for a reader."""
        return f"{self.op.name} {self.case.name} ({self.model.name}, {self.passes})"


def plan(ops: Sequence[Op], models: Sequence[ModelShape] = QWEN25, quick: bool = False) -> list[Job]:
    """The rows, most important first: by model, forward before backward, large cases before small ones.

    ``quick``: the first model, forward, one case each.
    """
    rank = {
        op.name: (FIRST.index(op.name) if op.name in FIRST else len(FIRST) + i) for i, op in enumerate(ops)
    }
    keyed = []
    for m, model in enumerate(models[:1] if quick else models):
        for op in ops:
            cases = list(op.timed(model)) if op.timed else []
            largest_first = cases[-1:] if quick else cases[::-1]
            for c, case in enumerate(largest_first):
                keyed.append(((m, 0, c, rank[op.name]), Job(op, model, case, FORWARD)))
                if op.gradients and not quick:
                    keyed.append(((m, 1, c, rank[op.name]), Job(op, model, case, BOTH)))
    return [job for _, job in sorted(keyed, key=lambda pair: pair[0])]


def run_job(
    job: Job, watch: Stopwatch, ceiling: Ceilings, machine: Machine, seconds: float, seed: int
) -> dict[str, Any]:
    """Measure one row for about ``seconds``. A failure is in the row ("failed"). Raises CardLost."""
    dtype = torch.bfloat16 if torch.bfloat16 in job.op.tolerance else next(iter(job.op.tolerance))
    row: dict[str, Any] = {
        "op": job.op.name,
        "model": job.model.name,
        "case": job.case.name,
        "pass": job.passes,
        "dtype": str(dtype)[6:],
        "seed": seed,
    }
    problem = attempt(lambda: _measure(job, watch, ceiling, machine, seconds, dtype, row))
    if problem:
        row["failed"] = problem
    return row


def attempt(work: Callable[[], object]) -> str:
    """Run ``work``; returns the reason of a failure, else "". Raises CardLost when the device is lost."""
    try:
        work()
    except CardLost:
        raise
    except Exception as error:  # noqa: BLE001 (a broken form must not cost the other rows)
        if torch.cuda.is_available():
            try:
                torch.cuda.synchronize()
            except RuntimeError as gone:
                raise CardLost(f"{type(error).__name__}: {error}") from gone
        first = (str(error).strip().splitlines() or [""])[0]
        return f"{type(error).__name__}: {first}"[:300]
    return ""


def _measure(
    job: Job,
    watch: Stopwatch,
    ceiling: Ceilings,
    machine: Machine,
    seconds: float,
    dtype: torch.dtype,
    row: dict[str, Any],
) -> None:
    op = job.op
    arguments = job.case.make(
        torch.Generator(device=machine.device).manual_seed(row["seed"]), machine.device, dtype
    )
    count, work = op.bytes(**arguments), op.flops(**arguments)
    ours = op.function
    result = _values(ours(**copy.deepcopy(arguments)))
    _check_size(op, arguments, result, op.tolerance[dtype], row)
    read = nbytes(arguments)
    held = 4 * max(read, count)  # arguments, results, and the peers' layouts
    row["copies"] = copies(read, held, machine.cache, machine.free)
    sets = copy_arguments(arguments, row["copies"])
    backward = job.passes == BOTH
    if backward:
        for name in op.gradients:
            for one in sets:
                if isinstance(one.get(name), Tensor):
                    one[name].requires_grad_()
    forms: dict[str, list[Run]] = {"ours": [_run(_our_form(op, one), backward) for one in sets]}
    peers: list[dict[str, Any]] = []
    for peer in peers_of(op):
        runs, note = _peer_runs(peer, arguments, sets, result, PEER_SLACK * op.tolerance[dtype], backward)
        peers.append({"name": peer.name, **({"skipped": note} if note else {})})
        if runs:
            forms[peer.name] = runs
    timings = measure(watch, forms, seconds)
    floor, bound = ceiling.floor(count, work)
    row.update(dataclasses.asdict(timings["ours"]))
    if not backward:  # the record counts bytes and operations of the forward pass alone
        row |= {
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
    row["peers"] = peers


def _our_form(op: Op, arguments: Arguments) -> Form:
    leaves = [arguments[name] for name in op.gradients if arguments.get(name) is not None]
    return Form(lambda: op.function(**arguments), leaves)


def _run(form: Form, backward: bool) -> Run:
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


def _check_size(op: Op, arguments: Arguments, ours: list[Tensor], limit: float, row: dict[str, Any]) -> None:
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
            row["size_error"] = difference(ours, _values(op.reference(**wide)))
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
            error = difference(_values(trial.view(trial.call())), ours)
            if not error <= max(limit, 1e-6):
                notes.append(f"differs by {error:.1e}")
                return
            _wait()
            begun = time.perf_counter()
            trial.call()
            _wait()
        if time.perf_counter() - begun > SLOWEST_PEER:
            notes.append(f"{time.perf_counter() - begun:.1f} s a call")
            return
        forms = [peer.build(one) for one in sets]
        runs.extend(_run(form, backward) for form in forms if form is not None)
        if backward:
            runs[0]()

    problem = attempt(prepare)
    note = problem or "".join(notes)
    return (None, note) if note else (runs, "")


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _values(outputs: Any) -> list[Tensor]:
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
