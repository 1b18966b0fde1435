"""A two-turn environment: the model guesses, is answered, and guesses again; each turn has its own credit.

    python examples/environment.py path/or/hub-id

The model's own tokens stay in the sample exactly as they were drawn. The environment's answer is added as
observation ids: context for the second turn, never trained. Nothing is encoded again from text, so sampler
and trainer agree on every token (`ratio_max_error` shows it).
"""

from __future__ import annotations

import re
import sys

from proactor.engine import GRPO, Engine, Group, LoRA, Sample, Sampling

ASK = "I think of a number between 1 and 9. Your guess:"
SECRET = 7


def guess(text: str) -> int | None:
    """The first digit of an answer, None without one."""
    digit = re.search(r"\d", text)
    return int(digit[0]) if digit else None


def answer(text: str) -> str:
    """The environment's answer to a guess."""
    number = guess(text)
    if number is None:
        return "\nThat is no number. Your guess:"
    if number == SECRET:
        return "\nRight! Once more:"
    return f"\nToo {'low' if number < SECRET else 'high'}. Your guess:"


def score(text: str) -> float:
    """Closeness of a guess, 0 to 1; 0 without one."""
    number = guess(text)
    return 0.0 if number is None else 1.0 - abs(number - SECRET) / 9


def rollout(engine: Engine, sampling: Sampling) -> Group:
    """Samples of two turns, with an advantage for each turn."""
    chat = engine.chat
    if chat is None:
        raise SystemExit(f"{engine.base_name}: the environment speaks text, and this model has no tokenizer")
    [group] = engine.sample([ASK], sampling)
    scores = [[score(s.text)] for s in group.samples]
    for sample in group.samples:
        sample.extend(chat.encode_continuation(answer(sample.text)))
    again = engine.sample(
        [s.prompt_ids + s.token_ids for s in group.samples], sampling.model_copy(update={"n": 1})
    )
    for sample, second, row in zip(group.samples, again, scores, strict=True):
        row.append(score(second.samples[0].text))
        sample.append(second.samples[0])
        sample.reward = sum(row)
    set_credit(group.samples, scores)
    return group


def set_credit(samples: list[Sample], scores: list[list[float]]) -> None:
    """One advantage a turn: its score minus the group's mean at that turn."""
    means = [sum(column) / len(samples) for column in zip(*scores, strict=True)]
    for sample, row in zip(samples, scores, strict=True):
        sample.advantage = [value - mean for value, mean in zip(row, means, strict=True)]


def train(model: str, steps: int = 20, n: int = 16, max_tokens: int = 4) -> dict[str, float]:
    """Train on the environment; returns the last step's statistics."""
    engine = Engine.load(model, lora=LoRA(rank=8, alpha=16))
    stats: dict[str, float] = {}
    for step in range(steps):
        group = rollout(engine, Sampling(n=n, max_tokens=max_tokens))
        stats = engine.train([group], GRPO(lr=1e-3))
        print(f"step {step}: reward {stats['reward_mean']:.3f}, ratio error {stats['ratio_max_error']:.1e}")
    return stats


if __name__ == "__main__":
    train(sys.argv[1])
