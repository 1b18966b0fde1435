"""The launches of a decode step and of a training layer of Qwen2.5-14B, and the host time of a layer.

    python -m tests.card.launches              a table of launches by name, and milliseconds
    python -m tests.card.launches --all        each launch: grid, warps, shared memory

The model is NF4 with LoRA (rank 16) on all linears. A layer is half the difference between models of three
layers and of one. Nothing is launched (`tests.card.driver`): the time is what Python, torch and Triton need
before a launch, and the launch itself comes on top. An operation of torch counts as one launch. Time depends
on the machine; what is held to a budget in its place is the calls of Python functions that it goes to.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from bench.shapes import model_config
from proactor.engine import Group, LoRA, Sample, Sampling
from proactor.engine.forward import tree_view
from proactor.engine.jobs import Job
from proactor.engine.layout import layout
from proactor.engine.model import AttentionView, Decoder
from proactor.engine.sampler import Sampler
from proactor.engine.tree import Tree
from proactor.kernels.compile_launch import KIB
from proactor.kernels.op import QWEN25
from tests.card.driver import META, Counts, Driver, Launched, Recorder, empty_model, pretend

LAYERS = 3
BATCHES = (1, 16, 64)
PROMPT, SAMPLES, NEW = 1024, 8, 128
"""Tokens of a prompt, samples behind it (decoding and training alike), tokens of a sample that is trained."""
PAGE = 16

Rows = tuple[Tensor, Tensor, AttentionView]
"""(ids, positions, view): what `Decoder.hidden` takes."""
Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Phase:
    """``layer``: launches of a layer. ``rest``: those of a decode step outside its layers, None in training.

    ``launched``: Triton's, of the model of one layer, in order. ``seconds``, ``calls``: host time of a layer,
    and calls of Python functions.
    """

    layer: Counts
    rest: Counts | None
    launched: list[Launched]
    seconds: float
    calls: float


def model(layers: int) -> Decoder:
    """Qwen2.5-14B with so few layers, without memory."""
    config = model_config(QWEN25[0], num_hidden_layers=layers, max_position_embeddings=4096)
    return empty_model(config, LoRA(rank=16))


# --- decoding ---


def decode_step(log: Recorder, decoder: Decoder, batch: int) -> tuple[Counts, Rows]:
    """(launches of the last decode step of ``batch`` samples, its rows).

    The samples come in groups of up to `SAMPLES` behind prompts of `PROMPT` tokens.
    """
    n = min(batch, SAMPLES)
    pages = batch // n * PROMPT // PAGE + batch
    sampler = Sampler(decoder, None, pages, PAGE, max_rows=8192, max_seqs=256)
    build, rows = sampler.rows.build, []

    def watched(step: object) -> Rows:
        log.clear()
        rows.append(build(step))
        return rows[-1]

    sampler.rows.build = watched
    sampling = Sampling(n=n, max_tokens=4)
    for i in range(batch // n):
        sampler.add(Job([i] * PROMPT, sampling, (0, 0, i), 4, frozenset(), i, lora=decoder.lora))
    while not sampler.scheduler.idle:
        for ended in sampler.step():
            sampler.finish(ended)
    assert len(rows[-1][0]) == batch, "the last step decodes them all"
    return log.counts(), rows[-1]


def decode(driver: Driver, models: dict[int, Decoder], batch: int, repeats: int) -> Phase:
    """A decode step of ``batch`` rows."""
    with Recorder(driver) as log:
        many, deep = decode_step(log, models[LAYERS], batch)
        one, flat = decode_step(log, models[1], batch)
        launched = driver.launched[log.first :]
    layer = per_layer(many, one)

    @torch.no_grad()
    def spent(layers: int, clock: Clock) -> float:
        start = clock()
        models[layers].hidden(*(flat if layers == 1 else deep))
        return clock() - start

    return Phase(layer, one - layer, launched, *host_work(spent, repeats))


# --- training ---


def training_rows(decoder: Decoder) -> Rows:
    """A tree of one group."""
    prompt = [1] * PROMPT
    samples = [Sample(prompt, [i] * NEW, advantage=0.0) for i in range(SAMPLES)]
    tree = Tree([Group(prompt, samples)])
    flat = layout(tree).to(META)
    return flat.ids, flat.positions, tree_view(decoder, tree, flat.start)


def train(driver: Driver, models: dict[int, Decoder], repeats: int) -> dict[str, Phase]:
    """Forward and backward of a layer."""
    rows = {layers: training_rows(decoder) for layers, decoder in models.items()}
    counts: dict[tuple[str, int], Counts] = {}
    launched: dict[str, list[Launched]] = {}

    def step(layers: int) -> Iterator[str]:
        out = models[layers].hidden(*rows[layers])
        yield "forward"
        out.backward(torch.empty_like(out))
        yield "backward"

    with Recorder(driver) as log:
        for layers in (LAYERS, 1):
            for phase in step(layers):
                counts[phase, layers] = log.counts()
                launched[phase] = driver.launched[log.first :]
                log.clear()

    def spent(wanted: str, layers: int, clock: Clock) -> float:
        start = clock()
        for phase in step(layers):
            if phase == wanted:
                return clock() - start
            start = clock()
        raise AssertionError(wanted)

    return {
        f"training {phase}": Phase(
            per_layer(counts[phase, LAYERS], counts[phase, 1]),
            None,
            launched[phase],
            *host_work(partial(spent, phase), repeats),
        )
        for phase in ("forward", "backward")
    }


# --- both ---


def per_layer(many: Counts, one: Counts) -> Counts:
    """Launches of one layer of those that ``many`` has beyond ``one``."""
    beyond = Counts(many)
    beyond.subtract(one)
    return Counts({name: n // (LAYERS - 1) for name, n in beyond.items() if n})


def host_work(spent: Callable[[int, Clock], float], repeats: int) -> tuple[float, float]:
    """(seconds, calls) of a layer, from what so many layers spend by a clock.

    Of the repeats the least counts, since what disturbs them only adds.
    """

    def of_a_layer(clock: Clock, repeats: int) -> float:
        many, one = (min(spent(layers, clock) for _ in range(repeats)) for layers in (LAYERS, 1))
        return (many - one) / (LAYERS - 1)

    with calls_of_python() as calls:
        counted = of_a_layer(calls, 1)
    return of_a_layer(time.thread_time, repeats), counted


@contextmanager
def calls_of_python() -> Iterator[Clock]:
    """A clock that ticks with every call of a Python function in the block."""
    ticks = 0

    def tick(frame: object, event: str, argument: object) -> None:
        nonlocal ticks
        ticks += event == "call"

    sys.setprofile(tick)
    try:
        yield lambda: ticks
    finally:
        sys.setprofile(None)


def measure(driver: Driver, repeats: int = 30) -> dict[str, Phase]:
    """Every phase of `BUDGET` by name, timed ``repeats`` times."""
    torch.set_num_threads(1)
    with Recorder(driver):
        models = {layers: model(layers) for layers in (1, LAYERS)}
    phases = {f"decode {batch}": decode(driver, models, batch, repeats) for batch in BATCHES}
    return phases | train(driver, models, repeats)


# --- the budget ---

BUDGET = {
    "decode 1": {"triton": 21, "calls": 1850},
    "decode 16": {"triton": 22, "calls": 1900},
    "decode 64": {"triton": 22, "calls": 1900},
    "training forward": {"triton": 13, "product": 8, "torch": 5, "calls": 2300},
    "training backward": {"triton": 15, "product": 26, "torch": 43, "calls": 6600},
}
"""Most launches of a layer, by phase and kind, and calls of Python functions, which differ a little between
versions. A change that needs fewer lowers it.
"""
REST = {"triton": 3, "product": 1, "torch": 9}
"""Most launches of a decode step outside its layers."""


def over_budget(phases: dict[str, Phase]) -> list[str]:
    """One line for each kind of launch that a phase has too many of, and for too many calls."""
    held = [(f"{name}, a layer", phase.layer, BUDGET[name]) for name, phase in phases.items()]
    held += [
        (f"{name}, outside the layers", p.rest, REST) for name, p in phases.items() if p.rest is not None
    ]
    lines = [
        f"{name}, a layer: {phase.calls:.0f} calls of Python functions, the budget is {BUDGET[name]['calls']}"
        for name, phase in phases.items()
        if phase.calls > BUDGET[name]["calls"]
    ]
    for where, counts, budget in held:
        for kind in KINDS:
            names = {name: n for (k, name), n in counts.items() if k == kind}
            if sum(names.values()) > budget.get(kind, 0):
                listed = ", ".join(f"{name} {n}" for name, n in sorted(names.items()))
                lines.append(
                    f"{where}: {sum(names.values())} launches of kind {kind}, the budget is "
                    f"{budget.get(kind, 0)}: {listed}"
                )
    return lines


# --- command line ---

KINDS = {"triton": "Triton", "product": "products (cuBLAS)", "torch": "other torch"}


def table(phases: dict[str, Phase]) -> list[str]:
    """Lines of Markdown: launches of a layer by name, sums by kind, the rest of a step, and the host time."""
    lines = [f"| a layer of {QWEN25[0].name} | {' | '.join(phases)} |", "|---" * (len(phases) + 1) + "|"]

    def row(name: str, cells: Iterable[object]) -> None:
        lines.append(f"| {name} | {' | '.join(str(cell) for cell in cells)} |")

    names = {name for phase in phases.values() for name in phase.layer}
    for kind, title in KINDS.items():
        for key in sorted(key for key in names if key[0] == kind):
            row(f"`{key[1]}`", (phase.layer[key] or "" for phase in phases.values()))
        row(f"**{title}**", (f"**{total(phase.layer, kind)}**" for phase in phases.values()))
    row(
        "a step outside its layers: Triton, products, other",
        (
            "" if p.rest is None else ", ".join(str(total(p.rest, kind)) for kind in KINDS)
            for p in phases.values()
        ),
    )
    row("calls of Python functions", (f"{phase.calls:.0f}" for phase in phases.values()))
    row("host time of a layer, ms", (f"{1e3 * phase.seconds:.2f}" for phase in phases.values()))
    return lines


def total(counts: Counts, kind: str) -> int:
    """Launches of one kind."""
    return sum(n for (k, _), n in counts.items() if k == kind)


def main() -> int:
    """Print the table. Exit code: 1 if a phase is over its budget."""
    parser = argparse.ArgumentParser(prog="python -m tests.card.launches", description=__doc__)
    parser.add_argument("--all", action="store_true", help="each launch of the model of one layer")
    options = parser.parse_args()
    phases = measure(pretend())
    if options.all:
        for name, phase in phases.items():
            print(name)
            for one in phase.launched:
                grid, shared = " x ".join(map(str, one.grid)), f"{one.shared / KIB:.3g} KiB"
                print(f"  {one.kernel:28} grid {grid:16} {one.warps:2} warps, {shared} of shared memory")
        print()
    print("\n".join(table(phases)))
    problems = over_budget(phases)
    print("\n".join(f"over budget: {line}" for line in problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
