"""Whether the rewards of two runs are one measure. Where they are not, no chart or difference joins them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from proactor.training.record import RunRecord

_TRAINING = re.compile(r"reward(_.*|/.*)?|parts?[/_.].*|coef[/_].*|judge[/_]spread|advantage.*|pull/.*")
_EVALUATION = re.compile(r"eval[/_](turn_)?reward.*")
"""Keys of metrics.jsonl, without ``train/``, whose values are in units of a reward."""


@dataclass(frozen=True, slots=True)
class RewardsApart:
    """Why two runs' rewards of training, and those of evaluations, are not one measure; "" where they are."""

    training: str = ""
    evaluation: str = ""

    @classmethod
    def of_runs(cls, first: RunRecord, second: RunRecord) -> RewardsApart:
        """By name and options, as their configs say. A run without a config is apart from any other."""
        return cls(
            _reason("trained by", first.name, first.training_reward, second.name, second.training_reward),
            _reason(
                "evaluated by", first.name, first.evaluation_reward, second.name, second.evaluation_reward
            ),
        )

    def reason(self, key: str) -> str:
        """Why the numbers under a key of metrics.jsonl are not one measure; "" where they are."""
        bare = key.removeprefix("train/")
        if _EVALUATION.fullmatch(bare):
            return self.evaluation
        return self.training if _TRAINING.fullmatch(bare) else ""


def _reason(verb: str, first: str, one: str | None, second: str, other: str | None) -> str:
    if one is not None and one == other:
        return ""
    rewards = [
        f"{name} is {verb} {reward or 'a reward that no config names'}"
        for name, reward in ((first, one), (second, other))
    ]
    return ", ".join(rewards)
