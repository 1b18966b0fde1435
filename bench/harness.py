"""The comparison with TRL: agreement first, then alternating timed steps, then a summary and the record.

Both sides are processes with the same environment, timed from outside, from the command to the reply. Nothing
is timed before log-probabilities, loss and every LoRA gradient agree on the same ids. TRL runs with the
faster of two layouts, measured in the same run: one micro-batch of all sequences, or micro-batches of 8.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import statistics
import tempfile
import warnings
from pathlib import Path
from typing import Any

from bench.models import write_adapter, write_tiny_qwen2
from bench.protocol import Side, setting
from bench.records import add_results, say, stamp, write_record
from bench.workloads import Workload, gate_batch

LOGPROB_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 1e-4
"""Largest difference of a gradient, relative to the largest element of its tensor; also of the loss."""
WORK_TOLERANCE = 1e-3
"""Largest difference of a step's tokens from the workload's."""


def compare(workload: Workload, argv: list[str] | None = None, tokenizer: Any = None) -> dict[str, Any]:
    """Run the comparison, print and write its record, and return it. ``tokenizer``: the model's, where it
    takes another than one word per id.
    """
    parser = argparse.ArgumentParser(description=f"the {workload.name} workload beside a peer")
    parser.add_argument("--peer", choices=("trl", "none"), default="trl")
    parser.add_argument("--workload", choices=(workload.name,), default=workload.name)
    parser.add_argument("--repeats", type=int, default=5, help="timed steps of each side")
    parser.add_argument("--warmup", type=int, default=1, help="steps of each side before that")
    parser.add_argument(
        "--continuous", action="store_true", help="let TRL try continuous batching too, slow on a CPU"
    )
    add_results(parser)
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # remarks of other libraries; real problems raise
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        model = write_tiny_qwen2(Path(scratch) / "model", tokenizer=tokenizer)
        return _run(workload, options, model, Path(scratch), stack)


def _run(
    workload: Workload, options: argparse.Namespace, model: Path, scratch: Path, stack: contextlib.ExitStack
) -> dict[str, Any]:
    say(
        f"workload {workload.name}: {len(workload.lengths)} prompts of "
        f"{min(workload.lengths)}-{max(workload.lengths)} tokens, "
        f"{workload.samples} samples of {len(workload.mask)} tokens each, {workload.turns} turns; "
        "5.2M-parameter Qwen2, float32, LoRA r=16"
    )
    adapter = write_adapter(scratch / "adapter", model)
    setup = {"model": str(model), "adapter": str(adapter), "workload": workload.to_json()}

    def start(name: str, module: str, **more: Any) -> Side:
        side = Side(name, module, {**setup, **more}, scratch / f"{name}.log")
        stack.callback(side.close)
        return side

    sides = [start("ours", "bench.engine_side")]
    agreement = {}
    if options.peer == "trl":
        total = len(workload.lengths) * workload.samples
        sides += [
            start(f"trl {total // m} x {m}", "bench.trl_side", micro=m)
            for m in sorted({total, 8}, reverse=True)
        ]
        if options.continuous:
            sides.append(start("trl continuous", "bench.trl_side", micro=8, continuous=True))
        agreement = gate(sides[0], sides[1], workload, adapter, scratch)
    for side in sides:
        for _ in range(options.warmup):
            check_work(workload, side.name, side.call(do="step", step=0)["work"])
    sides[1:] = _fastest(sides[1:])
    rounds: list[list[dict[str, Any]]] = [[] for _ in sides]
    for i in range(options.repeats):
        for side, replies in zip(sides, rounds, strict=True):
            replies.append(side.call(do="step", step=i + 2))
        say(
            f"  round {i + 1}: "
            + ", ".join(f"{s.name} {r[-1]['seconds']:.2f} s" for s, r in zip(sides, rounds, strict=True))
        )
    record = _record(workload, [side.name for side in sides], rounds, agreement)
    _print_summary(record)
    write_record(options.results, workload.name, record)
    print(json.dumps(record))
    return record


def gate(ours: Side, peer: Side, workload: Workload, adapter: Path, scratch: Path) -> dict[str, float]:
    """The differences of both sides on the same ids; exits when one exceeds its tolerance.

    Compares log-probabilities, loss and gradients. Old log-probabilities are the peer's plus noise, so that
    ratios leave 1 and some are clipped.
    """
    import torch
    from safetensors.torch import load_file

    batch = gate_batch(workload)
    theirs = torch.tensor(peer.call(do="gate", batch=batch)["logprobs"])
    mine = torch.tensor(ours.call(do="gate", batch=batch)["logprobs"])
    for sample, row in zip(batch, theirs.tolist(), strict=True):
        sample["old"] = [a + b for a, b in zip(row, sample["noise"], strict=True)]
    losses, grads = [], []
    for side in (ours, peer):
        out = scratch / f"gradient {side.name}"
        losses.append(side.call(do="gate", batch=batch, out=str(out), adapter=str(adapter))["loss"])
        grads.append(load_file(out / "adapter_model.safetensors"))
    if grads[0].keys() != grads[1].keys():
        raise SystemExit(
            f"gate: gradients of different tensors: {sorted(grads[0].keys() ^ grads[1].keys())[:4]}"
        )
    worst = max(float((g - grads[1][n]).abs().max() / grads[1][n].abs().max()) for n, g in grads[0].items())
    differences = {
        "logprob_max_difference": float((mine - theirs).abs().max()),
        "loss_relative_difference": abs(losses[0] - losses[1]) / abs(losses[1]),
        "gradient_max_relative_difference": worst,
    }
    limits = (LOGPROB_TOLERANCE, GRADIENT_TOLERANCE, GRADIENT_TOLERANCE)
    say("agreement on the same ids: " + ", ".join(f"{k} {v:.1e}" for k, v in differences.items()))
    for (name, value), limit in zip(differences.items(), limits, strict=True):
        if not value <= limit:
            raise SystemExit(
                f"gate: {name} is {value:.2e}, allowed are {limit:.0e}: the sides do not compute the same, "
                "nothing was timed"
            )
    return differences


def check_work(workload: Workload, name: str, work: dict[str, int]) -> None:
    """Exit where a side's step had other prompts or completions than the workload says.

    An end token that happens to be drawn last saves us the one that closes a reply.
    """
    for what, tokens in workload.work.items():
        if not math.isclose(work[what], tokens, rel_tol=WORK_TOLERANCE):
            raise SystemExit(
                f"{name}: {work[what]} {what} tokens in a step, {tokens} were asked for: nothing was timed"
            )


def _fastest(peers: list[Side]) -> list[Side]:
    """The peer with the faster layout, by one step each after the warm-up; the other is closed."""
    if not peers:
        return []
    seconds = {peer.name: peer.call(do="step", step=1)["seconds"] for peer in peers}
    say("layouts of the peer: " + ", ".join(f"{name} {value:.2f} s" for name, value in seconds.items()))
    best = min(peers, key=lambda peer: seconds[peer.name])
    for peer in peers:
        if peer is not best:
            peer.close()
    return [best]


def _record(
    workload: Workload, names: list[str], rounds: list[list[dict[str, Any]]], agreement: dict[str, float]
) -> dict[str, Any]:
    sides = []
    for name, replies in zip(names, rounds, strict=True):
        seconds = [reply["seconds"] for reply in replies]
        phases = {
            p: statistics.median(r["phases"].get(p, 0.0) for r in replies) for p in replies[0]["phases"]
        }
        phases["rest"] = max(0.0, statistics.median(seconds) - sum(phases.values()))
        sides.append(
            {
                "name": name,
                "seconds": statistics.median(seconds),
                "fastest": min(seconds),
                "slowest": max(seconds),
                "steps_an_hour": 3600 / statistics.median(seconds),
                "cpu_seconds": statistics.median(reply["cpu_seconds"] for reply in replies),
                "phases": phases,
                "tokens_computed": replies[-1]["tokens"],
            }
        )
    tokens = [side["tokens_computed"] for side in sides]
    speedups = [b["seconds"] / a["seconds"] for a, b in zip(rounds[0], rounds[-1], strict=True)]
    return {
        "workload": workload.to_json(),
        "sides": sides,
        "agreement": agreement,
        "repeats": len(rounds[0]),
        **stamp(),
        **setting("torch", "transformers", "trl", "peft"),
        "speedup": round(sides[-1]["seconds"] / sides[0]["seconds"], 3) if len(sides) > 1 else None,
        "speedup_range": [round(min(speedups), 3), round(max(speedups), 3)] if len(sides) > 1 else None,
        "tokens_ratio": {what: round(tokens[-1][what] / count, 3) for what, count in tokens[0].items()},
    }


def _print_summary(record: dict[str, Any]) -> None:
    print(
        f"\n{record['workload']['name']} on {record['machine']}: median of {record['repeats']} alternating "
        "steps"
    )
    for side in record["sides"]:
        print(
            f"  {side['name']:<12} {side['seconds']:7.3f} s   ({side['fastest']:.3f} to "
            f"{side['slowest']:.3f}), {side['cpu_seconds']:.2f} s of processor time, "
            f"{side['steps_an_hour']:.0f} steps an hour"
        )
        print("               " + ", ".join(f"{name} {value:.3f}" for name, value in side["phases"].items()))
        print(
            "               tokens through the model: "
            + ", ".join(f"{name} {value:,}" for name, value in side["tokens_computed"].items())
        )
    if record["speedup"]:
        low, high = record["speedup_range"]
        print(f"  speed-up     {record['speedup']:.2f} x   ({low:.2f} to {high:.2f} by round)\n")
