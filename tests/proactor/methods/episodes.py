"""Episodes from a few numbers."""

from __future__ import annotations

from collections.abc import Sequence

from proactor.engine import Sample
from proactor.environments.episode import Ending, Episode, Turn
from proactor.environments.protocol import Call


def episode(
    rewards: Sequence[float],
    users: str = "",
    *,
    lengths: Sequence[int] = (),
    observation: int = 2,
    ending: Ending = "terminated",
    horizon: int = 15,
    calls: Sequence[Call] = (),
    task: str = "a task",
) -> Episode:
    """One turn a reward: of two tokens where ``lengths`` does not say otherwise, involving the user where
    ``users`` has a "u"; then an observation, except after the last.
    """
    users = users or "e" * len(rewards)
    sample = Sample([1, 2, 3], [], mask=[])
    turns = []
    for t, (reward, kind) in enumerate(zip(rewards, users, strict=True)):
        start = len(sample.token_ids)
        sample.token_ids += range(10 + t, 10 + t + (lengths[t] if lengths else 2))
        end = len(sample.token_ids)
        sample.mask = [*(sample.mask or []), *[True] * (end - start)]
        if t + 1 < len(rewards):
            sample.extend([5] * observation)
        call = calls[t] if calls else Call("answer" if kind == "u" else "action", f"content {t}")
        after = (end, len(sample.token_ids))
        turns.append(Turn((call,), (start, end), after, f"feedback {t}", reward, kind == "u"))
    return Episode("function", task, 7, sample, turns, ending, horizon)


def failed(ending: Ending) -> Episode:
    """An episode with another ending."""
    one = episode([0.0, 1.0])
    one.ending = ending
    return one
