"""The same 4-bit model with transformers, bitsandbytes and PEFT: load, decode, one gradient; or how it ends.

    python -m bench.full_size_peer DIR [the options of bench.full_size]

Child processes do the work and say after each part what they found, so that what came before an end
without memory or time is kept. They decode greedily without an adapter; the engine's side has an adapter,
draws, and records log-probabilities. Each is ended above `MOST_MEMORY` of the machine's memory, and after
``--limit`` seconds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch

from bench.records import say
from bench.turns import peak_bytes

MOST_MEMORY = 0.9
"""Share of the machine's memory that the child may hold."""
LOOK = 0.2
"""Seconds between two looks at the child's memory."""
PROMPT = 32
"""Tokens of a prompt to decode after."""
PARTS = ("decode", "gradient")
NAMES = ("new", "rank", "context", "turns", "samples", "tokens")


def options_parser(prog: str) -> argparse.ArgumentParser:
    """What is decoded and trained, of both sides."""
    parser = argparse.ArgumentParser(prog=prog, description="a 4-bit model at full size")
    parser.add_argument("folder", type=Path, help="a checkpoint, as of proactor make-checkpoint")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--new", type=int, default=16, help="tokens drawn a sequence")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds of each part of transformers' side"
    )
    return parser


def peer(options: argparse.Namespace) -> dict[str, Any]:
    """For each of `PARTS` what its child found; bitsandbytes repacks weights to decode, and cannot train them
    then.
    """
    return {part: run(options, part) for part in PARTS}


def run(options: argparse.Namespace, part: str) -> dict[str, Any]:
    """What a child found, and ``ended``: why it did not get to its end (empty: it did)."""
    command = [sys.executable, "-m", "bench.full_size_peer", str(options.folder), "--child", part]
    command += [f"--{name}={getattr(options, name)}" for name in NAMES]
    command += ["--batches", *map(str, options.batches)]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    reasons: list[str] = []
    watch = threading.Thread(target=_watch, args=(child, options.limit, reasons))
    watch.start()
    found: dict[str, Any] = {}
    assert child.stdout is not None
    try:
        for line in child.stdout:
            say(f"transformers: {line.strip()}")
            found |= json.loads(line)
        child.wait()
    finally:
        child.kill()
        watch.join()
    ended = reasons[0] if reasons else f"exit status {child.returncode}" if child.returncode else ""
    if ended:
        say(f"transformers ended: {ended}")
    return {**found, "ended": ended}


def _watch(child: subprocess.Popen[str], limit: float, reasons: list[str]) -> None:
    """End the child where it passes its limits."""
    memory = int(Path("/proc/meminfo").read_text().split()[1]) * 1024
    until = time.monotonic() + limit
    while child.poll() is None:
        held = _resident(child.pid)
        if held > MOST_MEMORY * memory:
            reasons.append(f"memory: it held {held / 1e9:.1f} GB of {memory / 1e9:.1f}")
        elif time.monotonic() > until:
            reasons.append(f"time: {limit:.0f} s")
        if reasons:
            child.kill()
            return
        time.sleep(LOOK)


def _resident(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0  # it has ended
    own = ("RssAnon:", "RssShmem:")  # without the pages of the checkpoint's files
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(own))


def tell(name: str, began: float, **more: float) -> None:
    """A part's seconds and the most memory in it, as a line."""
    part = {"seconds": time.perf_counter() - began, "peak": peak_bytes(), **more}
    print(json.dumps({name: part}), flush=True)
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what is held


def work(options: argparse.Namespace) -> None:
    """The child."""
    from transformers import AutoModelForCausalLM

    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(options.folder, dtype=torch.bfloat16, device_map="cpu")
    tell("load", began)
    if options.child == "gradient":
        began = time.perf_counter()
        gradient(model, options)
        tell("gradient", began)
        return
    for count in options.batches:
        began = time.perf_counter()
        step = decode(model, count, options.new)
        tell(f"{count}", began, step=step, rate=count / step)


@torch.no_grad()
def decode(model: Any, count: int, new: int) -> float:
    """Seconds of a decode step of ``count`` sequences, median."""
    rng, seconds = random.Random(count), []
    ids = torch.tensor([[rng.randrange(100, 100_000) for _ in range(PROMPT)] for _ in range(count)])
    past = None
    for _ in range(new):
        began = time.perf_counter()
        out = model(input_ids=ids, past_key_values=past, use_cache=True, logits_to_keep=1)
        past, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])


def gradient(model: Any, options: argparse.Namespace) -> None:
    """The dialogue's gradient, a turn's samples as one padded batch at a time, with checkpointing."""
    from peft import LoraConfig, get_peft_model

    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=options.rank, lora_alpha=2 * options.rank, target_modules=targets)
    model = get_peft_model(model, lora)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    rng = random.Random(7)
    trunk = [rng.randrange(100, 100_000) for _ in range(options.context)]
    for turn in range(options.turns):
        context = trunk[: options.context * (turn + 1) // options.turns]
        answers = [
            [rng.randrange(100, 100_000) for _ in range(options.tokens)] for _ in range(options.samples)
        ]
        ids = torch.tensor([context + answer for answer in answers])
        logits = model(input_ids=ids, logits_to_keep=options.tokens + 1).logits[:, :-1]
        logp = logits.float().log_softmax(-1).gather(-1, ids[:, -options.tokens :, None])[..., 0]
        weight = torch.linspace(-1, 1, options.samples)[:, None]
        (-(logp - logp.detach()).exp() * weight).sum().backward()


def main() -> None:
    """Command line; see the module."""
    parser = options_parser("bench.full_size_peer")
    parser.add_argument("--child", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        work(options)
    else:
        print(json.dumps(peer(options)))


if __name__ == "__main__":
    main()
