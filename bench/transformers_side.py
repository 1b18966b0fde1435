"""transformers' side of a rollout: `generate` on left-padded batches, or its continuous batching.

One process keeps one model and one way. The continuous manager stays up from rollout to rollout.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation import ContinuousBatchingConfig

from bench.models import PAD
from bench.protocol import Channel
from bench.workloads import Workload

PAGE, CHUNK = 16, 256
"""Tokens of a page and of a step of continuous batching. Its attention is dense over all that a step holds,
so that large chunks of prompts are slow on a CPU.
"""
PATIENCE = 600.0
"""Seconds after which a rollout without a result has failed."""


def continuous_options(workload: Workload, size: int) -> dict[str, Any]:
    """`ContinuousBatchingConfig` for at most ``size`` requests at once.

    Enough pages for twice as many, because it keeps a margin free; by default it takes most of the memory.
    """
    length = max(workload.lengths) + max(*workload.counts, len(workload.mask))
    return {
        "page_size": PAGE,
        "num_blocks": 2 * size * -(-length // PAGE),
        "max_batch_tokens": max(CHUNK, size),
        "max_requests_per_batch": size,
    }


class Static:
    """Batches of ``size`` requests in their order, each as long as its longest."""

    def __init__(self, model: Any, workload: Workload) -> None:
        self.model, self.workload = model, workload

    def rollout(
        self, prompts: list[list[int]], counts: list[int], size: int, cache: str = "dynamic"
    ) -> list[list[int]]:
        """The completions of ``prompts``; ``cache``: whether it grows (dynamic) or has one size (static)."""
        tokens: list[list[int]] = []
        for start in range(0, len(prompts), size):
            part, wanted = prompts[start : start + size], counts[start : start + size]
            width = max(map(len, part))
            ids = torch.tensor([[PAD] * (width - len(p)) + p for p in part])
            mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in part])
            out = self.model.generate(
                ids,
                attention_mask=mask,
                max_new_tokens=max(wanted),
                do_sample=False,
                eos_token_id=None,
                pad_token_id=PAD,
                cache_implementation=cache,
            )
            tokens += [row[width : width + n].tolist() for row, n in zip(out, wanted, strict=True)]
        return tokens


class Continuous:
    """`ContinuousBatchingManager` with at most ``size`` requests at once."""

    def __init__(self, model: Any, workload: Workload) -> None:
        self.model, self.workload, self.size = model, workload, 0
        self.manager: Any = None

    def rollout(self, prompts: list[list[int]], counts: list[int], size: int) -> list[list[int]]:
        """The completions of ``prompts``. Exits where the manager's thread has ended."""
        manager = self._open(size)
        names = [manager.add_request(p, max_new_tokens=n) for p, n in zip(prompts, counts, strict=True)]
        found: dict[str, list[int]] = {}
        until = time.monotonic() + PATIENCE
        while len(found) < len(names):
            result = manager.get_result(timeout=1)
            if result is not None and result.is_finished():
                found[result.request_id] = list(result.generated_tokens)
            elif not manager.is_running() or time.monotonic() > until:
                raise SystemExit("transformers' continuous batching has ended without its results")
        return [found[name] for name in names]

    def _open(self, size: int) -> Any:
        if self.manager is None or size != self.size:
            if self.manager is not None:
                self.manager.stop()
            most = max(self.workload.counts)
            greedy = GenerationConfig(do_sample=False, max_new_tokens=most, eos_token_id=-1, pad_token_id=PAD)
            options = ContinuousBatchingConfig(**continuous_options(self.workload, size))
            self.manager = self.model.init_continuous_batching(
                generation_config=greedy, continuous_batching_config=options
            )
            self.manager.start()
            self.size = size
        return self.manager


WAYS: dict[str, Callable[[Any, Workload], Static | Continuous]] = {"static": Static, "continuous": Continuous}


def main() -> None:
    """Answer rollouts until the parent goes away."""
    channel = Channel()
    setup = channel.receive()
    workload = Workload.from_json(setup["workload"])
    model = AutoModelForCausalLM.from_pretrained(  # nosec B615 # a local folder
        setup["model"], dtype=getattr(torch, setup["dtype"])
    )
    way, rows = WAYS[setup["way"]](model, workload), 0

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        nonlocal rows
        rows += args[0].shape[0] * args[0].shape[1]

    model.model.layers[0].mlp.register_forward_pre_hook(count)
    channel.send(ready=True)
    while True:
        command = channel.receive()
        prompts = [ids for ids in workload.prompts(command["step"]) for _ in range(workload.samples)]
        rows = 0
        chosen = {key: command[key] for key in ("size", "cache") if key in command}
        tokens = way.rollout(prompts, workload.counts, **chosen)
        channel.send(tokens=tokens, rows=rows)


if __name__ == "__main__":
    main()
