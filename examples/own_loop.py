"""A training loop of one's own: any reward, any loss on per-token log-probabilities, any torch optimizer.

python examples/own_loop.py path/or/hub-id
"""

from __future__ import annotations

import sys

import torch

from proactor.engine import Engine, LoRA, Sampling, TokenBatch

PROMPTS = ("The weather today is", "My favourite animal is", "On Monday we will", "The soup tastes")


def score(text: str) -> float:
    """Whatever you want more of; here the share of the letter e."""
    return text.count("e") / max(1, len(text))


def reinforce(logprobs: torch.Tensor, batch: TokenBatch) -> torch.Tensor:
    """Plain policy gradient, summed; the engine divides by the number of trained tokens over all ranks."""
    return -(logprobs * batch.advantage).sum()


def main(path: str, prompts: tuple[str, ...] = PROMPTS, steps: int = 10, out: str = "own-adapter") -> list[float]:
    """Sample, score, update, repeat; returns the mean reward of each step."""
    engine = Engine.load(path, lora=LoRA(rank=8, alpha=16))
    optimizer = torch.optim.AdamW(engine.parameters(), lr=2e-3, weight_decay=0.0)
    means: list[float] = []
    for step in range(steps):
        groups = engine.sample(prompts, Sampling(n=16, max_tokens=24))
        rewards = torch.tensor([[score(sample.text) for sample in group.samples] for group in groups])
        for group, row in zip(groups, rewards - rewards.mean(1, keepdim=True), strict=True):
            for sample, advantage in zip(group.samples, row.tolist(), strict=True):
                sample.advantage = advantage
        engine.forward_backward(groups, reinforce)
        engine.reduce_gradients()
        optimizer.step()
        engine.zero_grad()
        engine.weights_changed()  # the next token is sampled from the new weights
        means.append(float(rewards.mean()))
        print(f"step {step}: reward {means[-1]:.3f}")
    engine.save_adapter(out)
    return means


if __name__ == "__main__":
    main(sys.argv[1])
