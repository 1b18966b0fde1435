"""How far the trainer's log-probabilities lie from those that the sampler recorded, by dtype and mode.

    python -m bench.gap MODEL [--samples 8] [--tokens 32] [--repeats 3]

Eight continuations each of four beginnings are drawn in each mode. Their log-probabilities, at temperature 1,
come from the sampler (token by token, in batches), from the trainer (trees) and from the trainer in float32.
Per token, in nats: the gap between sampler and trainer, and how far each is from float32. Then the seconds to
draw the groups and to get a GRPO gradient of them, median of ``--repeats`` interleaved rounds.
MODEL is a folder with a tokenizer, of real weights: random ones are far less sure of a token.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.records import add_results, say, stamp, write_record
from proactor.engine import GRPO, Engine, Group, GRPOLoss, LoRA, Sampling
from proactor.kernels.linear import onednn_available

PROMPTS = (
    "The engineer looked at the figures of the night and said that the pump in the north hall had to be",
    "Yesterday I wanted to book a table for four people in the old town, but the restaurant told me that",
    "A short history of the compass begins in China, where a spoon of lodestone on a plate of bronze",
    "To bake a simple bread you need flour, water, salt and yeast. First, mix the",
)
MODES = {"float32": ("float32", False), "bfloat16": ("bfloat16", False)}
DETERMINISTIC = {"float32, deterministic": ("float32", True), "bfloat16, deterministic": ("bfloat16", True)}


def drawn(engine: Engine, options: argparse.Namespace) -> list[Group]:
    """The groups of a mode."""
    ids = [engine.tokenizer.encode(text) for text in PROMPTS]
    sampling = Sampling(n=options.samples, max_tokens=options.tokens, ignore_eos=True)
    groups = engine.sample(ids, sampling)
    for group in groups:
        for i, sample in enumerate(group.samples):
            sample.advantage = 1.0 if i % 2 else -1.0
    return groups


def scored(engine: Engine, groups: list[Group]) -> Tensor:
    """The trainer's log-probabilities of all sampled tokens, float32 [N]."""
    samples = [(group.prompt_ids, sample) for group in groups for sample in group.samples]
    sequences = [[*prompt, *sample.token_ids] for prompt, sample in samples]
    spans = [(len(prompt), len(ids)) for (prompt, _), ids in zip(samples, sequences, strict=True)]
    return torch.cat(engine.logprobs(sequences, spans, adapter=False))


def distance(a: Tensor, b: Tensor) -> dict[str, float]:
    """Mean and largest absolute difference."""
    gap = (a - b).abs()
    return {"mean": float(gap.mean()), "max": float(gap.max())}


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The record's part of each mode."""
    modes = MODES | {k: v for k, v in DETERMINISTIC.items() if onednn_available(getattr(torch, v[0]))}
    seconds: dict[str, dict[str, list[float]]] = defaultdict(lambda: {"sample": [], "gradient": []})
    gaps: dict[str, dict[str, Any]] = {}
    plain = Engine.load(folder, dtype="float32", lora=LoRA(rank=8))
    for round_ in range(options.repeats):
        for name, (dtype, deterministic) in modes.items():
            engine = Engine.load(folder, dtype=dtype, deterministic=deterministic, lora=LoRA(rank=8))
            drawn(engine, argparse.Namespace(samples=1, tokens=2))  # products are chosen, kernels compiled
            start = time.perf_counter()
            groups = drawn(engine, options)
            middle = time.perf_counter()
            engine.forward_backward(groups, GRPOLoss(GRPO()))
            seconds[name]["sample"].append(middle - start)
            seconds[name]["gradient"].append(time.perf_counter() - middle)
            if not round_:
                recorded = torch.tensor([p for g in groups for s in g.samples for p in s.policy_logprobs])
                trainer, truth = scored(engine, groups), scored(plain, groups)
                gaps[name] = {
                    "gap": distance(recorded, trainer),
                    "sampler": distance(recorded, truth),
                    "trainer": distance(trainer, truth),
                }
            engine.release()
            say(f"  round {round_ + 1}, {name}: {seconds[name]['sample'][-1]:.1f} s to sample")
    medians = {name: {k: statistics.median(v) for k, v in parts.items()} for name, parts in seconds.items()}
    return {name: {**gaps[name], "seconds": medians[name], "rounds": seconds[name]} for name in modes}


def main(argv: list[str] | None = None) -> int:
    """Measure each mode, print a table, write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench.gap", description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    add_results(parser)
    options = parser.parse_args(argv)
    modes = measure(options.model, options)
    for name, mode in modes.items():
        shown = "  ".join(f"{k} {mode[k]['mean']:.5f} (max {mode[k]['max']:.3f})" for k in list(mode)[:3])
        print(f"{name:<24} {shown}  {mode['seconds']['sample']:.2f} s + {mode['seconds']['gradient']:.2f} s")
    record = {
        **stamp(),
        "model": options.model.name,
        "threads": torch.get_num_threads(),
        "sequences": len(PROMPTS) * options.samples,
        "tokens": options.tokens,
        "modes": modes,
    }
    say(f"record: {write_record(options.results, 'gap', record)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
