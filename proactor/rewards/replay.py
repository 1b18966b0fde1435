"""A dialogue played through, scored turn by turn on the agent's own board."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proactor.dialogue import Action, Dialogue
from proactor.dialogue.board import EMPTY
from proactor.dialogue.matching import EXACT, MatchRule
from proactor.dialogue.parse import Parsed
from proactor.rewards.turn import TurnReward
from proactor.rewards.weighted_metric import WeightedMetric
from proactor.scoring.metrics import Contribution, score_dialogue


def score_replay(
    dialogue: Dialogue,
    outputs: Mapping[int, Parsed | Sequence[Action]],
    reward: TurnReward | None = None,
    rule: MatchRule = EXACT,
) -> tuple[Contribution, dict[int, float]]:
    """(the sums of all metrics, the reward of each turn) of a dialogue played through.

    ``outputs``: what was proposed at each decision turn; a turn that is absent is a wait. ``reward`` gives
    the turn rewards (default `WeightedMetric`). ``rule``: as in `score_dialogue`; rewards and board are by
    similarity, at its ``theta``.
    """
    reward = reward or WeightedMetric(theta=rule.theta)
    board, rewards, unparsed = EMPTY, {}, 0
    actions: dict[int, tuple[Action, ...]] = {}
    for turn in sorted({*dialogue.decision_turns, *outputs}):
        output = outputs.get(turn, ())
        parsed = output if isinstance(output, Parsed) else Parsed(tuple(output))
        rewards[turn] = reward.parts(dialogue, turn, parsed, board)["reward"]
        board = board.after(dialogue, turn, parsed.actions, rule.theta)
        actions[turn] = parsed.actions
        unparsed += not parsed.ok
    return score_dialogue(dialogue, actions, rewards=rewards, unparsed=unparsed, rule=rule), rewards
