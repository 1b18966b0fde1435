"""Decode steps beside a bare loop of the same layers in plain torch, and beside transformers' generate.

    python -m bench.bare [--model FOLDER] [--batches 1 8 32] [--dtypes float32 bfloat16]

Greedy, prompts of random tokens, nothing shared. First the tokens of all sides are compared. Then each
round runs one step of the bare loop (`bench.bare_loop`) before each step of the engine, so that both meet the
same machine, and generate after them. A step of the engine lasts from one plan to the next: scheduler, model,
log-probabilities and draw. The bare loop runs twice: with torch's products, and with those of the engine,
which measures what product suits the processor.

Without --model: random weights in the shape of SmolLM2-135M. `bench.smollm2` makes a folder of the real ones.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from bench.bare_loop import BareLoop
from bench.protocol import ALLOCATOR, environment
from bench.records import add_results, record_file, say, stamp, write_record
from bench.smollm2 import write_random
from proactor.engine import Engine, LoRA, Sampling
from proactor.kernels.linear import library_linear

TIE = {"float32": 1e-3, "bfloat16": 0.5}
"""Largest gap of two logits of the bare loop that count as tied: there the sides may draw either token."""
Times = defaultdict[str, list[float]]


class Cell:
    """One dtype and batch size: the sides on the same prompts."""

    def __init__(self, engine: Engine, peer: Any, count: int, length: int, new: int) -> None:
        self.engine, self.peer, self.length, self.new = engine, peer, length, new
        rng, decoder = random.Random(count), engine.decoder
        vocabulary = engine.config.vocab_size
        self.prompts = [[rng.randrange(100, vocabulary) for _ in range(length)] for _ in range(count)]
        linears = {"bare": library_linear, "bare_our_products": decoder.form.linear}
        self.loops = {name: BareLoop(decoder, linear) for name, linear in linears.items()}

    def ours(self, times: Times) -> list[list[int]]:
        """The engine's tokens; seconds of its decode steps, and of the bare steps before each, to ``times``.

        The bare loops have drawn all their tokens then.
        """
        for loop in self.loops.values():
            loop.begin(self.prompts, self.new)
        scheduler = self.engine._policy.ready_sampler().scheduler
        plan, began = scheduler.plan, 0.0

        def timed_plan() -> Any:
            nonlocal began
            if began:
                times["ours"].append(time.perf_counter() - began)
            spent = {name: _seconds(loop.step) for name, loop in self.loops.items()}
            start = time.perf_counter()
            step = plan()
            decodes = step is not None and not step.prefills
            began = start if decodes else 0.0
            for name, seconds in spent.items() if decodes else ():
                times[name].append(seconds)
            return step

        scheduler.plan = timed_plan  # type: ignore[method-assign]
        try:
            sampling = Sampling(max_tokens=self.new, temperature=0, ignore_eos=True)
            groups = self.engine.sample(self.prompts, sampling)
        finally:
            del scheduler.plan
        times["ours"].append(time.perf_counter() - began)
        return [group.samples[0].token_ids for group in groups]

    def theirs(self, times: Times) -> list[list[int]]:
        """The peer's tokens; seconds from each of its tokens to the next to ``times``."""
        marks: list[float] = []

        def mark(ids: Any, scores: Any, **rest: Any) -> Any:
            marks.append(time.perf_counter())
            return torch.zeros(len(ids), dtype=torch.bool)

        ids = torch.tensor(self.prompts)
        out = self.peer.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=self.new,
            do_sample=False,
            eos_token_id=None,
            stopping_criteria=[mark],
        )
        times["transformers"] += [b - a for a, b in pairwise(marks)]
        return out[:, self.length :].tolist()  # type: ignore[no-any-return]

    def check(self, tie: float) -> int:
        """Compare all sides' tokens with the plain loop's; returns how many rows part at a tie.

        Exits where one parts elsewhere.
        """
        ours, theirs = self.ours(Times(list)), self.theirs(Times(list))
        plain = self.loops["bare"]
        wanted, ties = plain.tokens(self.new), 0
        sides = {"ours": ours, "transformers": theirs}
        sides["bare_our_products"] = self.loops["bare_our_products"].tokens(self.new)
        for name, rows in sides.items():
            for row, (got, want) in enumerate(zip(rows, wanted, strict=True)):
                at = next((i for i in range(self.new) if got[i] != want[i]), None)
                if at is None:
                    continue
                gap = float(plain.logits[at][row, want[at]] - plain.logits[at][row, got[at]])
                if not gap <= tie:  # NaN is no tie
                    raise SystemExit(
                        f"bench.bare: {name} draws {got[at]} where the bare loop draws {want[at]} (row "
                        f"{row}, token {at}, {gap:.2g} apart): they do not compute the same, nothing was "
                        "timed"
                    )
                ties += 1
        return ties


def _seconds(call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(cell: Cell, rounds: int, tie: float) -> dict[str, Any]:
    """Milliseconds of a step of each side: median with the 10% and 90% points; ratios of the medians."""
    ties, times = cell.check(tie), Times(list)
    for _ in range(rounds):
        cell.ours(times)
        cell.theirs(times)
    sides = {}
    for name, seconds in times.items():
        low, *_, high = statistics.quantiles(seconds, n=10)
        sides[name] = {
            "estimate": 1e3 * statistics.median(seconds),
            "low": 1e3 * low,
            "high": 1e3 * high,
            "steps": len(seconds),
        }
    ours = sides["ours"]["estimate"]
    return {
        "prompt_tokens": cell.length,
        "tokens": cell.new,
        "rounds": rounds,
        "ms": sides,
        "ratio": {name: ours / side["estimate"] for name, side in sides.items() if name != "ours"},
        "rows_that_part_at_a_tie": ties,
    }


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Cells by dtype and batch size."""
    from transformers import AutoModelForCausalLM

    cells: dict[str, Any] = {}
    for dtype in options.dtypes:
        lora = LoRA(rank=options.rank) if options.rank else None
        engine = Engine.load(folder, lora=lora, device="cpu", dtype=dtype)
        peer = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype))  # nosec B615 # local
        for count in options.batches:
            cell = measure(
                Cell(engine, peer, count, options.prompt, options.tokens), options.rounds, TIE[dtype]
            )
            cells.setdefault(dtype, {})[str(count)] = cell
            line = ", ".join(f"{name} {side['estimate']:.1f} ms" for name, side in cell["ms"].items())
            say(f"  {dtype}, {count}: {line}")
    return cells


def main(argv: list[str] | None = None) -> None:
    """Measure, print and write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench.bare", description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, help="folder of a Llama; default: random weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--dtypes", nargs="+", choices=tuple(TIE), default=list(TIE))
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt")
    parser.add_argument("--tokens", type=int, default=32, help="tokens of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rank", type=int, default=0, help="rank of the engine's LoRA adapter; 0: none")
    add_results(parser)
    options = parser.parse_args(argv)
    if any(os.environ.get(name) != value for name, value in ALLOCATOR.items()):
        command = [sys.executable, "-m", "bench.bare", *(sys.argv[1:] if argv is None else argv)]
        raise SystemExit(subprocess.run(command, env=environment(), check=False).returncode)
    from transformers.utils import logging

    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model or write_random(Path(scratch) / "model")
        cells = run(options, folder)
    fixed = {
        **stamp(),
        "command": "python -m bench.bare",
        "model": options.model.name if options.model else "random weights in the shape of SmolLM2-135M",
        "lora_rank": options.rank,
        "threads": torch.get_num_threads(),
        "versions": {name: metadata.version(name) for name in ("torch", "transformers")},
    }
    name = f"bare-lora-{options.rank}" if options.rank else "bare"
    file = record_file(options.results, fixed["machine"], name)
    if file.exists():  # cells that were not measured again stay, if they were measured alike
        before = json.loads(file.read_text())
        if all(before.get(key) == value for key, value in fixed.items() if key != "date"):
            cells = {
                d: {**before["cells"].get(d, {}), **cells.get(d, {})} for d in {**before["cells"], **cells}
            }
    record = {**fixed, "cells": cells}
    say(f"record: {write_record(options.results, name, record)}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
