"""Our side of a comparison: a step as a user would write it, by the engine's public names; with turns, a step
of the training loop for environments.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bench.models import ALPHA, RANK
from bench.probes import MESSAGES, TOOL, Probes, arguments, episode_config
from bench.protocol import Channel
from bench.workloads import Workload, reward
from proactor.engine import (
    GRPO,
    Engine,
    Group,
    GRPOLoss,
    LoRA,
    Reply,
    Sample,
    Sampling,
    ToolCall,
    ToolChat,
)
from proactor.environments.calls import INTERACT
from proactor.progress import Quiet
from proactor.training.episodes import Arena, TaskParts
from proactor.training.episodes_loop import EpisodeTraining
from proactor.training.method_credit import Credit
from proactor.training.runs import Run

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
            mask=s["mask"],
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
    drawn = sum(len(sample.token_ids) for group in groups for sample in group.samples)
    return {
        "phases": {"generate": sampled - start, "forward, backward, step": end - sampled},
        "tokens": {"generate": rows - trained, "train": trained},
        "work": {
            "prompt": sum(len(sample.prompt_ids) for group in groups for sample in group.samples),
            "completion": drawn,
            "drawn": drawn,
        },
        "stats": stats,
    }


class ProbeChat(ToolChat):
    """Reads every reply as a probe."""

    def read(self, sampled_ids: Sequence[int], stop: Sequence[str] = ()) -> Reply:
        """The probe that the ids are."""
        return Reply("", (ToolCall(TOOL, arguments(sampled_ids)),))


def open_training(engine: Engine, workload: Workload) -> EpisodeTraining:
    """The training loop for environments, on the probes; its folder is never written."""
    assert engine.chat is not None, "the model has a tokenizer"
    config, gym = episode_config(workload), Probes(workload.turns)
    parts, credit = TaskParts.of(gym, config), Credit.of(config.method)
    arena = Arena(config, engine, ProbeChat(engine.chat), gym, parts, credit)
    return EpisodeTraining(arena, Run(config.folder, writer=False), [], Quiet())


def episode_step(training: EpisodeTraining, index: int) -> dict[str, Any]:
    """One step of that loop: play, credit, update."""
    engine, start = training.engine, time.perf_counter()
    before = engine.counters().get("rows_computed", 0)
    row, _ = training.grpo_row(index)
    seconds = time.perf_counter() - start
    trained = int(row["tokens_computed"])
    opening = training.arena.chat.opening(MESSAGES, (INTERACT,))
    return {
        "phases": {
            "generate": row["seconds_sampling"],
            "forward, backward, step": seconds - row["seconds_sampling"],
        },
        "tokens": {"generate": engine.counters()["rows_computed"] - before - trained, "train": trained},
        "work": {
            "prompt": len(opening) * int(row["episodes"]),
            "completion": int(row["tokens_of_episodes"]),
            "drawn": int(row["tokens_sampled"]),
        },
        "stats": row,
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
    options = {"dtype": setup.get("dtype", "float32"), "resident": setup.get("resident", "auto")}
    engine = Engine.load(Path(setup["model"]), lora=lora, device="cpu", **options)
    if lora is not None:
        engine.load_adapter(setup["adapter"])
    training = open_training(engine, workload) if workload.turns > 1 else None
    channel.send(ready=True)
    while True:
        command = channel.receive()
        if command["do"] == "gate":
            channel.send(**gate(engine, command))
        elif command["do"] == "rollout":
            channel.send(**rollout(engine, workload, command))
        elif training is not None:
            channel.send(**episode_step(training, command["step"]))
        else:
            channel.send(**step(engine, workload, command["step"]))


if __name__ == "__main__":
    main()
