"""A dialogue recomputed by turns: memory and time of one gradient, beside one pass and beside PEFT.

    python -m bench.turns [--turns 21] [--samples 8] [--tokens 100] [--context 4096] [--layers 8] [--hidden …]

The dialogue's context grows evenly to ``--context``; at each turn samples of ``--tokens`` hang off it. Sides,
each in a process of its own, on the same weights, adapter and samples, in float32:

- one pass: the engine, the whole tree's activations alive at once;
- by turns: the engine with ``chunk_rows`` of a turn and its samples;
- PEFT: transformers with gradient checkpointing, a padded batch per turn, which is how a trainer without
  trees holds memory down (off with ``--no-peft``: it computes each turn's context for each sample).

First every gradient is compared with that of one pass. Memory is the peak of the process above what it held
before the gradient (VmHWM, reset before it: Linux). Writes
``bench/results/<machine>/turns-<layers>x<hidden>.json``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.models import ALPHA, RANK, VOCAB, write_adapter, write_tiny_qwen2
from bench.records import RESULTS, say, stamp, write_record

SIDES = ("one pass", "by turns", "PEFT")
TOLERANCE = 1e-4
"""Largest difference of two gradients in float32, relative to the largest element."""


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="bench.turns", description="memory and time of a dialogue's gradient"
    )
    parser.add_argument("--turns", type=int, default=21)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=100)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-peft", dest="peft", action="store_false")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options)))
        return
    with tempfile.TemporaryDirectory() as name:
        options.folder = Path(name)
        write_tiny_qwen2(
            options.folder / "model",
            hidden_size=options.hidden,
            intermediate_size=3 * options.hidden,
            num_hidden_layers=options.layers,
            max_position_embeddings=options.context + options.tokens,
        )
        write_adapter(options.folder / "adapter", options.folder / "model")
        sides = {side: run(options, side) for side in SIDES if options.peft or side != "PEFT"}
    record = compare(options, sides)
    file = write_record(options.results, f"turns-{options.layers}x{options.hidden}", record)
    print(f"record: {file}")


def run(options: argparse.Namespace, side: str) -> dict[str, Any]:
    """One side in a process of its own."""
    names = ("turns", "samples", "tokens", "context", "layers", "hidden", "repeats", "folder")
    arguments = [f"--{name}={getattr(options, name)}" for name in names]
    command = [sys.executable, "-m", "bench.turns", "--side", side, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(f"{side}: {result['seconds']:.1f} s, {result['peak'] / 2**20:,.0f} MiB, {result['rows']:,} rows")
    return result


def compare(options: argparse.Namespace, sides: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The record: gradients checked, then each side beside one pass."""
    whole = torch.tensor(sides["one pass"].pop("gradient"), dtype=torch.float64)
    for side, result in sides.items():
        if side == "one pass":
            continue
        error = float((torch.tensor(result.pop("gradient")) - whole).abs().max() / whole.abs().max())
        if not error <= TOLERANCE:  # NaN is no agreement
            raise SystemExit(f"{side}: its gradient is off by {error:.1e} of the largest element")
        result["gradient_error"] = error
        result["time"] = result["seconds"] / sides["one pass"]["seconds"]
        result["memory"] = result["peak"] / sides["one pass"]["peak"]
    shape = {n: getattr(options, n) for n in ("turns", "samples", "tokens", "context", "layers", "hidden")}
    return {"shape": shape, "sides": sides, **stamp()}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds (median of the repeats), bytes, rows computed and gradient of one side."""
    make = peft_side if options.side == "PEFT" else engine_side
    gradient, rows = make(options)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held
    before = peak_bytes()
    seconds = []
    for _ in range(options.repeats):
        began = time.perf_counter()
        values = gradient()
        seconds.append(time.perf_counter() - began)
    return {
        "seconds": statistics.median(seconds),
        "spread": [min(seconds), max(seconds)],
        "peak": peak_bytes() - before,
        "rows": rows(),
        "gradient": values.double().tolist(),
    }


def peak_bytes() -> int:
    """Most bytes that this process held since its peak was reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024


def dialogue(options: argparse.Namespace) -> list[tuple[list[int], list[tuple[list[int], float]]]]:
    """(context, samples with their advantages) of each turn."""
    generator = torch.Generator().manual_seed(7)

    def draw(count: int) -> list[int]:
        ids: list[int] = torch.randint(3, VOCAB, (count,), generator=generator).tolist()
        return ids

    trunk = draw(options.context)
    ends = [options.context * (turn + 1) // options.turns for turn in range(options.turns)]
    advantages = [2 * i / max(1, options.samples - 1) - 1 for i in range(options.samples)]
    return [(trunk[:end], [(draw(options.tokens), a) for a in advantages]) for end in ends]


Side = tuple[Callable[[], torch.Tensor], Callable[[], int]]


def engine_side(options: argparse.Namespace) -> Side:
    """The engine's gradient in the order of the adapter's modules, and how to ask for its rows."""
    from proactor.engine import GRPO, Engine, Group, GRPOLoss, LoRA, Sample

    rows = options.context + options.turns * options.samples * options.tokens
    turn = options.context // options.turns + options.samples * options.tokens
    engine = Engine.load(
        options.folder / "model",
        dtype="float32",
        lora=LoRA(rank=RANK, alpha=ALPHA),
        token_budget=rows,
        chunk_rows=rows if options.side == "one pass" else turn,
    )
    engine.load_adapter(options.folder / "adapter")
    groups = [
        Group(context, [Sample(context, ids, advantage=a) for ids, a in samples], tree="dialogue")
        for context, samples in dialogue(options)
    ]
    ran: list[int] = []

    def gradient() -> torch.Tensor:
        before = engine.decoder.rows_computed
        engine.zero_grad()
        engine.forward_backward(groups, GRPOLoss(GRPO()))
        ran.append(engine.decoder.rows_computed - before)
        assert engine.trainer is not None
        lora, named = engine.trainer.lora, {}
        for factor, leaf in zip(lora.factors, lora.leaves, strict=True):
            assert leaf.grad is not None
            parts = leaf.grad.chunk(len(factor.names)) if factor.kind == "a" else [leaf.grad]
            for target, part in zip(factor.names, parts, strict=True):
                named[factor.layer, target, factor.kind] = part.flatten()
        return torch.cat([named[key] for key in sorted(named)])

    return gradient, lambda: ran[-1]


def peft_side(options: argparse.Namespace) -> Side:
    """The gradient of transformers and PEFT, a turn's samples at a time, in the same order."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(options.folder / "model", dtype=torch.float32)
    model = PeftModel.from_pretrained(base, options.folder / "adapter", is_trainable=True)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    model.train()
    turns = dialogue(options)
    rows = sum((len(context) + options.tokens) * len(samples) for context, samples in turns)

    def gradient() -> torch.Tensor:
        model.zero_grad()
        for context, samples in turns:
            ids = torch.tensor([context + answer for answer, _ in samples])
            logits = model(input_ids=ids, logits_to_keep=options.tokens + 1).logits[:, :-1]
            logp = logits.log_softmax(-1).gather(-1, ids[:, -options.tokens :, None])[..., 0]
            weight = torch.tensor([a for _, a in samples])
            (-(logp - logp.detach()).exp() * weight[:, None]).sum().backward()
        named = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parts = name.split(".")
                kind = "a" if "lora_A" in parts else "b"
                target = parts[parts.index(f"lora_{kind.upper()}") - 1].removesuffix("_proj")
                named[int(parts[parts.index("layers") + 1]), target, kind] = parameter.grad.flatten()
        return torch.cat([named[key] for key in sorted(named)])

    return gradient, lambda: rows


if __name__ == "__main__":
    main()
