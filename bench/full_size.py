"""A 4-bit model at its full size on a CPU: load, decode, and one GRPO step on a small dialogue by turns.

    proactor make-checkpoint --shape qwen2.5-14b --format bnb-nf4 --out DIR
    python -m bench.full_size DIR [--batches 1 8] [--new 16] [--turns 3] [--samples 4] [--tokens 16]
        [--peer]

Decode steps stand beside a bound measured in the same process: every base linear and the head on as many
rows, and nothing else. A step of the engine lasts from one plan of the scheduler to the next: model, adapter,
attention, log-probabilities and draw. The dialogue's context grows evenly to ``--context`` tokens; at each
turn ``--samples`` samples are drawn, rewarded at random, and the tree is recomputed by turns, ``--chunk``
rows with gradient at a time. ``--peer``: transformers, bitsandbytes and PEFT on the same folder first
(`bench.full_size_peer`). Peaks are the process's resident memory (VmHWM, reset before each part: Linux).
For a quiet machine only: the numbers are memory bandwidth. Prints the record as JSON on the last line, and
writes it to ``bench/results/<machine>/full-size-<name of DIR>.json``.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.full_size_peer import PROMPT, options_parser, peer
from bench.records import add_results, say, stamp, write_record
from bench.turns import peak_bytes
from proactor.engine import GRPO, Engine, Group, LoRA, Sampling
from proactor.kernels.lora import lora_linear

ROUNDS = 3
"""Times that the linears and the head are measured; the median counts."""


def main() -> None:
    """Command line; see the module."""
    parser = options_parser("bench.full_size")
    parser.add_argument("--chunk", type=int, default=128)
    parser.add_argument("--resident", choices=("auto", "dense", "nf4"), default="nf4")
    parser.add_argument("--peer", action="store_true", help="transformers, bitsandbytes and PEFT first")
    add_results(parser)
    options = parser.parse_args()
    beside = {"peer": peer(options)} if options.peer else {}
    record = {**measure(options), **beside}
    write_record(options.results, f"full-size-{options.folder.name.lstrip('.')}", record)
    print(json.dumps(record))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The record."""
    with part() as loading:
        engine = Engine.load(
            options.folder,
            dtype="bfloat16",
            resident=options.resident,
            lora=LoRA(rank=options.rank, alpha=2 * options.rank),
            chunk_rows=options.chunk,
        )
    say(f"loaded in {loading['seconds']:.0f} s, peak {loading['peak'] / 1e9:.1f} GB")
    say("; ".join(engine.linear_forms))
    decode = {str(count): decoding(engine, count, options.new) for count in options.batches}
    step = grpo_step(engine, options)
    return {
        "shape": {"layers": engine.config.num_layers, "hidden": engine.config.hidden_size},
        "options": {k: v for k, v in vars(options).items() if k not in ("folder", "results")},
        "disk": sum(file.stat().st_size for file in options.folder.iterdir()),
        "load": loading,
        "memory": engine.memory(),
        "linears": engine.linear_forms,
        "decode": decode,
        "step": step,
        "threads": torch.get_num_threads(),
        **stamp(),
    }


@contextmanager
def part() -> Iterator[dict[str, float]]:
    """Seconds of a part, and the most memory that was resident in it."""
    found: dict[str, float] = {}
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    began = time.perf_counter()
    yield found
    found |= {"seconds": time.perf_counter() - began, "peak": peak_bytes()}


def decoding(engine: Engine, count: int, new: int) -> dict[str, Any]:
    """Tokens a second of ``count`` sequences, those of the bound, and the share of it that is reached."""
    bound = bound_seconds(engine, count)
    rng = random.Random(count)
    prompts = [[rng.randrange(100, engine.config.vocab_size) for _ in range(PROMPT)] for _ in range(count)]
    with part() as found, timed_steps(engine) as steps:
        engine.sample(prompts, Sampling(max_tokens=new, ignore_eos=True))
    step = statistics.median(steps)
    result = {"step": step, "bound": bound, "rate": count / step, "share": bound / step, **found}
    say(
        f"B = {count}: {result['rate']:.2f} tok/s, {100 * result['share']:.0f}% of the linears and head alone"
    )
    return result


@contextmanager
def timed_steps(engine: Engine) -> Iterator[list[float]]:
    """Seconds of each step that only decodes."""
    scheduler, seconds = engine._policy.ready_sampler().scheduler, []
    plan, began = scheduler.plan, 0.0

    def timed_plan() -> Any:
        nonlocal began
        now = time.perf_counter()
        if began:
            seconds.append(now - began)
        step = plan()
        began = now if step is not None and not step.prefills else 0.0
        return step

    scheduler.plan = timed_plan  # type: ignore[method-assign]
    try:
        yield seconds
    finally:
        del scheduler.plan


@torch.no_grad()
def bound_seconds(engine: Engine, rows: int) -> float:
    """Seconds that every base linear and the head take for so many rows, one after the other."""
    decoder = engine.decoder
    linear = decoder.form.linear
    inputs: dict[int, torch.Tensor] = {}

    def rows_of(width: int) -> torch.Tensor:
        return inputs.setdefault(width, torch.randn(rows, width).to(decoder.dtype))

    seconds = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for layer in decoder.layers:
            for base in layer.linears.values():
                width = base.weight().shape[1]
                lora_linear(rows_of(width), base.weight, base.bias, linear=linear)
        decoder.head_linear(rows_of(decoder.head.shape[1]), decoder.head)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def grpo_step(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """One update on one dialogue, sampled by the engine itself."""
    rng = random.Random(7)
    trunk = [rng.randrange(100, engine.config.vocab_size) for _ in range(options.context)]
    ends = [options.context * (turn + 1) // options.turns for turn in range(options.turns)]
    sampling = Sampling(n=options.samples, max_tokens=options.tokens, ignore_eos=True)
    with part() as sampled:
        groups: list[Group] = engine.sample([trunk[:end] for end in ends], sampling)
    for group in groups:
        group.tree = "dialogue"
        group.rewards = [rng.random() for _ in group.samples]
    before = engine.decoder.rows_computed
    with part() as trained:
        metrics = engine.train(groups, GRPO(lr=1e-5))
    say(f"GRPO step: {trained['seconds']:.0f} s, peak {trained['peak'] / 1e9:.1f} GB")
    rows = engine.decoder.rows_computed - before
    return {"sample": sampled, "train": trained, "rows": rows, "metrics": metrics}


if __name__ == "__main__":
    main()
