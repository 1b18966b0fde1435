"""Rewards: of single decisions (metrics), and of groups (judges and mixtures, with weights by schedule).

Which rewards there are is the paper's [NOTES, methods 1.6]. Formulas, weights and schedules are [INFERRED]
and configurable unless a docstring says otherwise.
"""

from proactor.rewards.call import RewardFunction, run_reward
from proactor.rewards.group import GroupReward, GroupScores
from proactor.rewards.mixture import Mixture, Term
from proactor.rewards.options import RewardError
from proactor.rewards.registry import FAMILY, REGISTRY, Reward, load_reward
from proactor.rewards.replay import score_replay
from proactor.rewards.schedule import TrainingProgress, adaptive_ruler, ruler_weight
from proactor.rewards.turn import TurnReward, batch_parts, completion_text
from proactor.rewards.utility import Utility
from proactor.rewards.weighted_metric import Consistency, WeightedMetric
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
    "GroupScores",
    "TrainingProgress",
    "RewardWorker",
    "Mixture",
    "Term",
    "adaptive_ruler",
    "ruler_weight",
]
