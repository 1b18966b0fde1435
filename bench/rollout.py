"""Rollouts alone, without training: the sampler beside transformers' batching and TRL's generation.

    python -m bench.rollout --peer transformers --workload ragged
    python -m bench.rollout --peer transformers --workload lone --model FOLDER [--resident nf4]
    python -m bench.rollout --peer trl --workload group

ragged: 128 requests with prompts of 8-128 tokens and 8-128 new ones, beside continuous batching and beside
static batches (`generate`, padded on the left). Greedy. group: 8 prompts with one context of 600 tokens, 8
samples of 32 tokens each, with an adapter, beside what `GRPOTrainer` generates with, `generate` or continuous
batching. Drawn at temperature 1. lone: one prompt of 128 tokens, 128 new ones, beside `generate` with a cache
that grows and with one of fixed size.

Each side is a process with the same weights, dtype and threads. First greedy tokens are compared; then each
peer looks for its fastest size or way, by one rollout each; then the sides take turns. Lengths are forced, so
that all draw the same number of tokens. Without --model: the 5.2M-parameter Qwen2 of `bench.step`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import statistics
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.models import write_adapter, write_tiny_qwen2
from bench.protocol import Side, setting
from bench.records import add_results, say, stamp, write_record
from bench.workloads import GROUP, LONE, Workload, ragged
from proactor.training.origin import bfloat16_products

SIZES = (32, 64, 128)
"""Batch sizes that the peers try."""
TIE = {"float32": 1e-3, "bfloat16": 0.1}
"""Nats between two tokens that count as tied: there the sides may draw either one."""
WHOLE = {"float32": 0.9, "bfloat16": 0.0}
"""Least share of completions that are equal to their end."""


@dataclass
class Contender:
    """A side, and the commands that it can be given, of which ``more`` is the fastest."""

    name: str
    side: Side
    ways: list[dict[str, Any]] = field(default_factory=lambda: [{}])
    more: dict[str, Any] = field(default_factory=dict)

    def rollout(self, workload: Workload, step: int, greedy: bool, **more: Any) -> dict[str, Any]:
        """A rollout of a step's prompts. Exits where completions have other lengths than asked for."""
        reply = self.side.call(do="rollout", step=step, greedy=greedy, **(more or self.more))
        if (drawn := [len(ids) for ids in reply["tokens"]]) != workload.counts:
            raise SystemExit(f"{self.name}: completions of {drawn} tokens, {workload.counts} were asked for")
        return reply


def gate(workload: Workload, ours: Contender, peer: Contender, dtype: str) -> dict[str, Any]:
    """Greedy completions of both sides agree, or part at a tie of ours. Exits where they do not."""
    replies = [side.rollout(workload, -1, True, **side.ways[-1])["tokens"] for side in (ours, peer)]
    prompts = [ids for ids in workload.prompts(-1) for _ in range(workload.samples)]
    parted = [
        (row, next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=True)) if a != b))
        for row, (mine, theirs) in enumerate(zip(*replies, strict=True))
        if mine != theirs
    ]
    whole = 1 - len(parted) / len(prompts)
    batch = [
        {"prompt": prompts[row] + replies[0][row][:at], "completion": [tokens[row][at]]}
        for row, at in parted
        for tokens in replies
    ]
    scores = [row[0] for row in ours.side.call(do="gate", batch=batch)["logprobs"]] if batch else []
    gaps = [abs(a - b) for a, b in zip(scores[::2], scores[1::2], strict=True)]
    found = {"completions_equal": round(whole, 4), "largest_tie": max(gaps, default=0.0)}
    say(f"  {peer.name}: {whole:.0%} of the greedy completions equal, largest tie {found['largest_tie']:.1e}")
    least = WHOLE[dtype] if len(prompts) > 1 else 0.0  # one may part at a tie
    if whole < least or not all(gap <= TIE[dtype] for gap in gaps):  # NaN is no tie
        raise SystemExit(
            f"gate: {peer.name} and ours draw other tokens ({found}; allowed are ties of {TIE[dtype]} nats, "
            f"and {least:.0%} have to be equal): they do not compute the same, nothing was timed"
        )
    return found


def choose(workload: Workload, peers: list[Contender], greedy: bool) -> list[dict[str, Any]]:
    """Let each peer keep its fastest way, by one rollout each, and get ready for it; returns what it took."""
    found = []
    for peer in peers:
        seconds = [peer.rollout(workload, 0, greedy, **way)["seconds"] for way in peer.ways]
        peer.more = peer.ways[seconds.index(min(seconds))]
        peer.rollout(workload, 0, greedy)  # with another size it would build its cache in the first round
        tried = [
            {"name": peer.name, **way, "seconds": round(took, 3)}
            for way, took in zip(peer.ways, seconds, strict=True)
        ]
        by_way = (f"{took:.2f} s {json.dumps(way)}" for way, took in zip(peer.ways, seconds, strict=True))
        say(f"  {peer.name} took " + ", ".join(by_way))
        found += tried
    return found


def summary(contender: Contender, replies: Sequence[dict[str, Any]], drawn: int) -> dict[str, Any]:
    """A side's rounds: medians, and the range of seconds."""
    seconds = [reply["seconds"] for reply in replies]
    middle = statistics.median(seconds)
    return {
        "name": contender.name,
        **contender.more,
        "seconds": round(middle, 4),
        "fastest": round(min(seconds), 4),
        "slowest": round(max(seconds), 4),
        "cpu_seconds": round(statistics.median(reply["cpu_seconds"] for reply in replies), 3),
        "tokens_drawn": drawn,
        "tokens_a_second": round(drawn / middle, 1),
        "rows_computed": replies[-1]["rows"],
    }


def measure(
    workload: Workload, ours: Contender, peers: list[Contender], rounds: int, greedy: bool, dtype: str
) -> dict[str, Any]:
    """One dtype: agreement, the peers' fastest ways, then rounds."""
    agreement = {peer.name: gate(workload, ours, peer, dtype) for peer in peers}
    tried = choose(workload, peers, greedy)
    ours.rollout(workload, 0, greedy)
    sides = [ours, *peers]
    replies: list[list[dict[str, Any]]] = [[] for _ in sides]
    for index in range(rounds):
        for side, several in zip(sides, replies, strict=True):
            several.append(side.rollout(workload, index + 1, greedy))
        took = (f"{s.name} {r[-1]['seconds']:.2f} s" for s, r in zip(sides, replies, strict=True))
        say(f"  round {index + 1}: " + ", ".join(took))
    drawn = sum(workload.counts)
    rows = [summary(side, several, drawn) for side, several in zip(sides, replies, strict=True)]
    speedups = {}
    for peer, several, row in zip(peers, replies[1:], rows[1:], strict=True):
        by_round = [b["seconds"] / a["seconds"] for a, b in zip(replies[0], several, strict=True)]
        speedups[peer.name] = {
            "estimate": round(row["seconds"] / rows[0]["seconds"], 3),
            "low": round(min(by_round), 3),
            "high": round(max(by_round), 3),
        }
    return {
        "sides": {row["name"]: row for row in rows},
        "speedup": speedups,
        "agreement": agreement,
        "tried": tried,
    }


def contenders(
    options: argparse.Namespace, setup: dict[str, Any], scratch: Path, stack: contextlib.ExitStack
) -> list[Contender]:
    """Ours and the peers, each a process of its own."""

    def start(name: str, module: str, **more: Any) -> Side:
        side = Side(name, module, {**setup, **more}, scratch / f"{name} {setup['dtype']}.log")
        stack.callback(side.close)
        return side

    ours = Contender("ours", start("ours", "bench.engine_side"))
    if options.workload == "lone":
        ways: list[dict[str, Any]] = [{"size": 1, "cache": cache} for cache in ("dynamic", "static")]
        return [ours, Contender("generate", start("generate", "bench.transformers_side", way="static"), ways)]
    if options.peer == "transformers":
        sizes: list[dict[str, Any]] = [{"size": size} for size in options.sizes]
        return [
            ours,
            *(
                Contender(way, start(way, "bench.transformers_side", way=way), sizes, sizes[-1])
                for way in ("continuous", "static")
            ),
        ]
    return [
        ours,
        Contender("generate", start("generate", "bench.trl_side")),
        Contender("continuous", start("continuous", "bench.trl_side", continuous=True)),
    ]


def run(options: argparse.Namespace, workload: Workload, scratch: Path) -> dict[str, Any]:
    """All dtypes, one after the other."""
    model = options.model or write_tiny_qwen2(scratch / "model")
    adapter = str(write_adapter(scratch / "adapter", model)) if options.peer == "trl" else None
    cells = {}
    for dtype in options.dtypes:
        say(f"{workload.name}, {dtype}")
        setup = {
            "model": str(model),
            "adapter": adapter,
            "dtype": dtype,
            "resident": options.resident,
            "workload": workload.to_json(),
            "micro": len(workload.counts),
        }
        with contextlib.ExitStack() as stack:
            ours, *peers = contenders(options, setup, scratch, stack)
            greedy = options.peer == "transformers"
            cells[dtype] = measure(workload, ours, peers, options.rounds, greedy, dtype)
    return cells


def main(argv: list[str] | None = None) -> None:
    """Measure, print a line for each side, and write the record."""
    parser = argparse.ArgumentParser(prog="python -m bench.rollout", description=__doc__.split("\n")[0])
    parser.add_argument("--peer", choices=("transformers", "trl"), default="transformers")
    parser.add_argument("--workload", choices=("ragged", "group", "lone"), default="ragged")
    parser.add_argument("--model", type=Path, help="folder of a model; default: 5.2M random weights")
    parser.add_argument("--dtypes", nargs="+", choices=tuple(TIE), help="default: those with fast products")
    parser.add_argument(
        "--resident", choices=("auto", "dense", "nf4"), default="auto", help="as the engine's"
    )
    parser.add_argument("--requests", type=int, default=128, help="of the ragged workload")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES), help="batches that peers try")
    parser.add_argument("--rounds", type=int, default=3)
    add_results(parser)
    options = parser.parse_args(argv)
    if (options.peer == "trl") != (options.workload == "group"):
        parser.error("--peer trl and --workload group: one goes with the other")
    options.dtypes = options.dtypes or list(TIE)[: 1 + bool(bfloat16_products())]
    workload = {"ragged": ragged(options.requests), "group": GROUP, "lone": LONE}[options.workload]
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # remarks of other libraries; real problems raise
    with tempfile.TemporaryDirectory() as scratch:
        cells = run(options, workload, Path(scratch))
    for dtype, cell in cells.items():
        for name, row in cell["sides"].items():
            ratio = cell["speedup"].get(name)
            faster = (
                f", ours {ratio['estimate']:.2f} x ({ratio['low']:.2f} - {ratio['high']:.2f})"
                if ratio
                else ""
            )
            print(
                f"{dtype}, {name:<11} {row['seconds']:8.3f} s ({row['fastest']:.3f} - {row['slowest']:.3f}), "
                f"{row['tokens_a_second']:,.0f} tokens a second, {row['rows_computed']:,} rows{faster}"
            )
    record = {
        **stamp(),
        **setting("torch", "transformers", *(("trl", "peft") if options.peer == "trl" else ())),
        "peer": options.peer,
        "resident": options.resident,
        "model": options.model.name if options.model else "5.2M-parameter Qwen2, random weights",
        "rounds": options.rounds,
        "workload": workload.to_json(),
        "cells": cells,
    }
    parts = ["rollout", workload.name, options.model.name if options.model else ""]
    name = "-".join([*filter(None, parts), *({options.resident} - {"auto"})])
    say(f"record: {write_record(options.results, name, record)}")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
