"""Our side of a comparison; uses only the engine's public names."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from bench.models import ALPHA, RANK
from bench.protocol import Channel
from bench.workloads import Workload, reward
from proactor.engine import GRPO, Engine, Group, GRPOLoss, LoRA, Sample, Sampling

LOSS = GRPO(lr=1e-5, epsilon=0.2, normalizer="tokens", advantages="verl", max_norm=1.0)


def gate(engine: Engine, command: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities of the batch; with old ones in it, loss and gradients, written as an adapter."""
    batch = command["batch"]
    if "old" not in batch[0]:
        spans = [(len(s["prompt"]), len(s["prompt"]) + len(s["completion"])) for s in batch]
        return {
            "logprobs": [
                t.tolist() for t in engine.logprobs([s["prompt"] + s["completion"] for s in batch], spans)
            ]
        }
    groups: dict[tuple[int, ...], Group] = {}
    for s in batch:
        sample = Sample(
            s["prompt"],
            s["completion"],
            logprobs=s["old"],
            policy_logprobs=s["old"],
            advantage=s["advantage"],
        )
        groups.setdefault(tuple(s["prompt"]), Group(s["prompt"], [], tree="gate")).samples.append(sample)
    engine.zero_grad()
    stats = engine.forward_backward(list(groups.values()), GRPOLoss(LOSS))
    normalizer = engine.reduce_gradients()
    with torch.no_grad():
        for parameter in engine.parameters():
            assert parameter.grad is not None
            parameter.copy_(parameter.grad)
    engine.save_adapter(command["out"])
    engine.zero_grad()
    engine.load_adapter(command["adapter"])
    return {"loss": stats["loss"] / normalizer}


def step(engine: Engine, workload: Workload, index: int) -> dict[str, Any]:
    """One GRPO step, as a user would write it."""
    before, start = engine.counters(), time.perf_counter()
    sampling = Sampling(n=workload.samples, temperature=1.0, max_tokens=workload.max_tokens, ignore_eos=True)
    groups = engine.sample(workload.prompts(index), sampling)
    sampled = time.perf_counter()
    for group in groups:
        group.rewards = [reward(sample.token_ids) for sample in group.samples]
        if workload.nested:
            group.tree = "dialogue"
    stats = engine.train(groups, LOSS)
    end = time.perf_counter()
    assert all(len(s.token_ids) == workload.max_tokens for g in groups for s in g.samples)
    rows = engine.counters()["rows_computed"] - before.get("rows_computed", 0)
    trained = int(stats["tokens_computed"])
    return {
        "phases": {"generate": sampled - start, "forward, backward, step": end - sampled},
        "tokens": {"generate": rows - trained, "train": trained},
        "stats": stats,
    }


def rollout(engine: Engine, workload: Workload, command: dict[str, Any]) -> dict[str, Any]:
    """The completions of a step's prompts, and the rows that entered the model for them."""
    before, counts = engine.counters()["rows_computed"], workload.counts[:: workload.samples]
    settings = [
        Sampling(n=workload.samples, temperature=float(not command["greedy"]), max_tokens=n, ignore_eos=True)
        for n in counts
    ]
    groups = engine.sample(workload.prompts(command["step"]), settings)
    return {
        "tokens": [sample.token_ids for group in groups for sample in group.samples],
        "rows": engine.counters()["rows_computed"] - before,
    }


def main() -> None:
    """Answer commands until the parent goes away."""
    channel = Channel()
    setup = channel.receive()
    workload = Workload.from_json(setup["workload"])
    lora = LoRA(rank=RANK, alpha=ALPHA) if setup["adapter"] else None
    engine = Engine.load(Path(setup["model"]), lora=lora, device="cpu", dtype=setup.get("dtype", "float32"))
    if lora is not None:
        engine.load_adapter(setup["adapter"])
    channel.send(ready=True)
    while True:
        command = channel.receive()
        if command["do"] == "gate":
            channel.send(**gate(engine, command))
        elif command["do"] == "rollout":
            channel.send(**rollout(engine, workload, command))
        else:
            channel.send(**step(engine, workload, command["step"]))


if __name__ == "__main__":
    main()
