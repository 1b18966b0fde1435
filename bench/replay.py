"""Where a shared segment is too short to be worth a branch: sharing it beside replaying it in every sample.

    python -m bench.replay [--layers 2] [--hidden 128] [--repeats 5] [--lengths 1 2 …] [--counts 2 4 …]

At each turn of a dialogue (a caterpillar tree) a segment of so many tokens stands between the trunk and the
turn's samples, as a board does. Branched, it is a node of the tree, computed once; replayed, each sample
begins with a copy of it, untrained. Both give one gradient, which is compared first. Time is processor time
of one thread, so that other processes on the machine count less. Small models have cheap rows, so that a
branch is worth least there.

Writes ``bench/results/<machine>/replay-<layers>x<hidden>.json``: median seconds of both ways, and the first
over the second.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from bench.models import ALPHA, RANK, VOCAB, write_tiny_qwen2
from bench.records import add_results, say, stamp, write_record
from proactor.engine import GRPO, Engine, Group, GRPOLoss, LoRA, Sample

LENGTHS = (1, 2, 4, 8, 16, 32)
COUNTS = (2, 4, 8)
CONTEXT, TURNS, TOKENS = 512, 12, 16
TOLERANCE = 1e-4
"""Largest difference of the two gradients, relative to the largest element."""


def dialogue(length: int, count: int, replayed: bool) -> list[Group]:
    """``count`` samples a turn behind a segment of ``length`` tokens."""
    generator = torch.Generator().manual_seed(length)

    def draw(size: int) -> list[int]:
        ids: list[int] = torch.randint(3, VOCAB, (size,), generator=generator).tolist()
        return ids

    trunk, groups = draw(CONTEXT), []
    for turn in range(TURNS):
        context, segment = trunk[: CONTEXT * (turn + 1) // TURNS], draw(length)
        answers = [(draw(TOKENS), 2 * i / (count - 1) - 1) for i in range(count)]
        if replayed:
            mask = [False] * length + [True] * TOKENS
            samples = [Sample(context, segment + ids, mask=mask, advantage=a) for ids, a in answers]
            groups.append(Group(context, samples, tree="dialogue"))
        else:
            prompt = context + segment
            samples = [Sample(prompt, ids, advantage=a) for ids, a in answers]
            groups.append(Group(prompt, samples, tree="dialogue"))
    return groups


def gradient(engine: Engine, groups: list[Group]) -> tuple[float, torch.Tensor]:
    """(processor seconds, the adapter's gradient)."""
    assert engine.trainer is not None
    engine.zero_grad()
    began = time.process_time()
    engine.forward_backward(groups, GRPOLoss(GRPO()))
    return time.process_time() - began, engine.trainer.lora.grad.clone()


def compare(engine: Engine, length: int, count: int, repeats: int) -> dict[str, Any]:
    """Both ways, in turns."""
    forms = {name: dialogue(length, count, name == "replayed") for name in ("branched", "replayed")}
    first, second = (gradient(engine, groups)[1] for groups in forms.values())
    error = float((first - second).abs().max() / first.abs().max())
    if not error <= TOLERANCE:  # NaN is no agreement
        raise SystemExit(f"{length} tokens, {count} samples: gradients differ by {error:.1e}")
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(repeats):
        for name, groups in forms.items():
            seconds[name].append(gradient(engine, groups)[0])
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = {f"rows {name}": engine.plan(groups).tokens for name, groups in forms.items()}
    ratio = medians["branched"] / medians["replayed"]
    pairs = zip(seconds["branched"], seconds["replayed"], strict=True)
    spread = sorted(branched / replayed for branched, replayed in pairs)
    return {**medians, **rows, "ratio": ratio, "spread": [spread[0], spread[-1]]}


def main() -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(prog="bench.replay", description="branches beside replayed segments")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens of a segment")
    parser.add_argument("--counts", type=int, nargs="+", default=COUNTS, help="samples behind it")
    add_results(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = write_tiny_qwen2(
            Path(place) / "model",
            hidden_size=options.hidden,
            intermediate_size=3 * options.hidden,
            num_hidden_layers=options.layers,
        )
        lora = LoRA(rank=RANK, alpha=ALPHA)
        engine = Engine.load(folder, dtype="float32", lora=lora, token_budget=65536)
        assert engine.trainer is not None
        engine.trainer.lora.flat.normal_(0, 0.02, generator=torch.Generator().manual_seed(1))
        found: dict[str, Any] = {}
        for count in options.counts:
            for length in options.lengths:
                name = f"{length} tokens, {count} samples"
                found[name] = one = compare(engine, length, count, options.repeats)
                say(f"{name}: branched / replayed {one['ratio']:.3f} {one['spread']}")
    shape = {"layers": options.layers, "hidden": options.hidden, "repeats": options.repeats}
    record = {"shape": shape, "segments": found, **stamp()}
    name = f"replay-{options.layers}x{options.hidden}"
    print(f"record: {write_record(options.results, name, record)}")


if __name__ == "__main__":
    main()
