"""Your own training loop on the engine's primitives: loss, optimizer and schedule are yours.

python examples/own_loop.py path/or/hub-id
"""

from __future__ import annotations

import sys

import torch

from proactor.engine import Engine, LoRA, Sampling, TokenBatch

PROMPTS = ["Name a colour:", "Say hello:", "Count to three:", "What is the capital of France?"]


def reinforce(logprobs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Policy gradient; any function of log-probabilities [N] and the batch's columns is a loss."""
    return -((logprobs - batch.old).exp() * batch.advantage).sum()


def train(model: str, steps: int = 20, n: int = 8, max_tokens: int = 24) -> list[float]:
    """Teach ``model`` to answer briefly; returns the mean reward of each step."""
    engine = Engine.load(model, lora=LoRA(rank=8, alpha=16))
    optimizer = torch.optim.AdamW(engine.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    means = []
    for step in range(steps):
        groups = engine.sample(PROMPTS, Sampling(n=n, max_tokens=max_tokens))
        for group in groups:
            group.rewards = [-len(s.token_ids) / max_tokens for s in group.samples]
            mean = sum(s.reward for s in group.samples) / n
            for sample in group.samples:
                sample.advantage = sample.reward - mean
        engine.forward_backward(groups, reinforce)  # adds to the gradient: call it as often as you like
        engine.reduce_gradients()  # sums over ranks and divides by the number of trained tokens
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        engine.weights_changed()  # the next sample() uses the new adapter
        means.append(sum(s.reward for g in groups for s in g.samples) / (n * len(groups)))
        print(f"step {step}: reward {means[-1]:.3f}")
    engine.save_adapter("runs/own-loop")
    return means


if __name__ == "__main__":
    train(sys.argv[1])
