"""Sweeps of tile sizes: the kernels that decide a step, each with a few settings in turns.

A kernel reads its sizes from a table by device at every launch; a sweep puts other rows into it. Every
setting's result is compared with that of the present one before it is timed. What wins goes into the table by
hand, with the record's name.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch

from bench.gpu.rows import cases, difference, form_of, run_of, values
from bench.gpu.task import BOTH, FORWARD, Job, Row, Setting, Task, attempt, figure
from bench.gpu.timing import Run, Stopwatch, copies, copy_arguments, measure, nbytes
from proactor.kernels import attention_sizes, nf4_linear_kernels
from proactor.kernels.op import Case, Op, device_name
from proactor.kernels.registry import OPS

Sizes = dict[str, int]


@dataclass(frozen=True, slots=True)
class Sweep:
    """Settings of one ``table`` (device name -> sizes) for one case of an operation."""

    op: str
    start: str
    """How the case's name begins; the first such case is taken, in a dry run the smallest of all."""
    label: str
    table: Mapping[str, Mapping[str, int]]
    settings: tuple[Sizes, ...]
    passes: str = FORWARD


def _nf4(*settings: tuple[int, int, int]) -> tuple[Sizes, ...]:
    return tuple({"block_n": n, "warps": w, "stages": s} for n, w, s in settings)


def _attention(*settings: tuple[int, int, int, int]) -> tuple[Sizes, ...]:
    return tuple({"M": m, "N": n, "warps": w, "stages": s} for m, n, w, s in settings)


NF4 = nf4_linear_kernels.TILES
SWEEPS = (
    Sweep(
        "nf4_linear", "1x27648", "16 rows", NF4[16], _nf4((64, 4, 3), (64, 4, 5), (128, 4, 4), (128, 8, 4))
    ),
    Sweep(
        "nf4_linear", "16x27648", "16 rows", NF4[16], _nf4((64, 4, 3), (64, 8, 4), (128, 4, 3), (128, 8, 4))
    ),
    Sweep(
        "nf4_linear", "64x27648", "64 rows", NF4[64], _nf4((64, 4, 3), (64, 8, 3), (128, 8, 2), (128, 8, 4))
    ),
    Sweep(
        "span_attention",
        "causal",
        "forward",
        attention_sizes.FORWARD,
        _attention((128, 64, 8, 2), (128, 64, 8, 3), (64, 64, 4, 3), (64, 32, 4, 3)),
    ),
    Sweep(
        "span_attention",
        "causal",
        "query gradient",
        attention_sizes.QUERY_GRADIENT,
        _attention((64, 32, 4, 2), (64, 64, 4, 2), (128, 32, 8, 2)),
        BOTH,
    ),
    Sweep(
        "span_attention",
        "causal",
        "key gradient",
        attention_sizes.KEY_GRADIENT,
        _attention((64, 64, 8, 2), (32, 64, 4, 2), (32, 64, 8, 3)),
        BOTH,
    ),
    Sweep(
        "paged_attention",
        "64",
        "decode",
        attention_sizes.DECODE,
        _attention((16, 32, 4, 3), (16, 64, 4, 2), (16, 64, 8, 3), (16, 128, 4, 2)),
    ),
)


def tasks(job: Job, setting: Setting) -> list[Task]:
    """One task a sweep."""
    return [
        Task(f"tiles of {s.op}, {s.label}, {s.start}…", partial(_measure, s, job, setting), 60.0)
        for s in SWEEPS
    ]


def case_of(sweep: Sweep, op: Op, job: Job, setting: Setting) -> Case:
    """The case that a sweep names."""
    known = cases(op, job.shape, setting.dry)
    return known[0] if setting.dry else next(c for c in known if c.name.startswith(sweep.start))


@contextmanager
def replaced(table: Mapping[str, Mapping[str, int]], name: str, sizes: Sizes) -> Iterator[None]:
    """Let ``table`` have ``sizes`` for the device ``name`` inside the block."""
    rows = cast(dict[str, Any], table)
    before = rows.get(name)
    rows[name] = sizes
    try:
        yield
    finally:
        if before is None:
            del rows[name]
        else:
            rows[name] = before


def _measure(sweep: Sweep, job: Job, setting: Setting, watch: Stopwatch) -> list[Row]:
    (op,) = (op for op in OPS if op.name == sweep.op)
    device, dtype, backward = setting.torch_device, torch.bfloat16, sweep.passes == BOTH
    case = case_of(sweep, op, job, setting)
    arguments = case.make(torch.Generator(device=device).manual_seed(setting.seed), device, dtype)
    name = device_name(device)
    present = dict(sweep.table.get(name, sweep.table["default"]))
    read = nbytes(arguments)
    sets = copy_arguments(arguments, copies(read, 4 * read, setting.cache, setting.free // 2))

    def outcome() -> list[torch.Tensor]:
        """The result, or the gradients, always of the same output gradients."""
        torch.manual_seed(setting.seed)
        return values(run_of(form_of(op, copy.deepcopy(arguments), backward), backward)())

    expected = outcome()
    forms: dict[str, list[Run]] = {}
    rows: dict[str, Row] = {}

    def prepare(sizes: Sizes) -> None:
        def under(run: Run) -> object:
            with replaced(sweep.table, name, sizes):
                return run()

        error = difference(cast(list[torch.Tensor], under(outcome)), expected)
        if not error <= 2 * op.tolerance[dtype]:
            raise ValueError(f"differs from the present sizes by {error:.1e}")
        runs: list[Run] = [partial(under, run_of(form_of(op, one, backward), backward)) for one in sets]
        runs[0]()
        forms[_label(sizes)] = runs

    for sizes in (present, *(s for s in sweep.settings if s != present)):
        problem = attempt(partial(prepare, sizes))
        rows[_label(sizes)] = {"sizes": _label(sizes), "failed": problem} if problem else {}
    timings = measure(watch, forms, setting.seconds)
    floor, bound = setting.ceilings.floor(op.bytes(**arguments), op.flops(**arguments))
    if backward:  # the operation counts its forward pass; attention's backward has 2.5 times its operations
        floor, bound = 3.5 * op.flops(**arguments) / setting.ceilings.product, "arithmetic"
    for label, timing in timings.items():
        rows[label] = figure(
            timing.median * 1e6,
            "µs",
            floor * 1e6,
            f"{bound} at the measured rate",
            sizes=label + (" (present)" if label == _label(present) else ""),
            **dataclasses.asdict(timing),
            speedup=timings[_label(present)].median / timing.median,
        )
    return list(rows.values())


def _label(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{key} {value}" for key, value in sizes.items())
