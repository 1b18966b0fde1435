"""Rewards: of single decisions (metrics), of groups (judges, schedules, mixtures), and how a config names
one.

The family is the paper's [NOTES, methods 1.6]; bodies, weights and schedules are [INFERRED] and configurable
unless a docstring says otherwise.
"""

from proactor.rewards.group import GroupReward, Scored
from proactor.rewards.mixture import Mixture, Term
from proactor.rewards.options import RewardError
from proactor.rewards.registry import FAMILY, REGISTRY, Reward, load_reward
from proactor.rewards.replay import score_replay
from proactor.rewards.run import RewardFunction, run_reward
from proactor.rewards.schedule import adaptive_ruler, ruler_weight
from proactor.rewards.turn import Consistency, TurnReward, WeightedMetric, batch_parts, completion_text
from proactor.rewards.utility import Utility
from proactor.rewards.worker import RewardWorker

__all__ = [
    "RewardError",
    "TurnReward",
    "WeightedMetric",
    "Consistency",
    "Utility",
    "REGISTRY",
    "FAMILY",
    "Reward",
    "RewardFunction",
    "load_reward",
    "run_reward",
    "batch_parts",
    "completion_text",
    "score_replay",
    "GroupReward",
    "Scored",
    "RewardWorker",
    "Mixture",
    "Term",
    "adaptive_ruler",
    "ruler_weight",
]
