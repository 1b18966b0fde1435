"""Self-test: learn a few training dialogues to their maximum. If this fails, nothing larger will work.

The goal is the score of the wanted answers (`prompt.target`), played through on their own board. Each stage
of the config runs until the greedy policy reaches it. GRPO makes at least a few updates: after a supervised
stage it must keep the score, on its own it must reach it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY
from proactor.dialogue.matching import EXACT, MatchRule
from proactor.dialogue.parse import Parsed
from proactor.dialogue.prompt import target
from proactor.evaluation.play import Evaluation
from proactor.progress import Progress, Quiet
from proactor.rewards import TurnReward, score_replay
from proactor.scoring.metrics import aggregate
from proactor.training.steps import grpo_step, reset_optimizer, sft_step
from proactor.training.workspace import Workspace

CHECK_EVERY = 5
"""Updates between two plays."""
TOLERANCE = 1e-6
GOALS = ("reward", "first_fire_f1")
"""Metrics in which the goal must be reached."""

Metrics = dict[str, float | None]


@dataclass(frozen=True, slots=True)
class Overfit:
    """The scores reached beside the goal's, and the number of updates."""

    passed: bool
    reward: float
    goal_reward: float
    first_fire_f1: float
    goal_first_fire_f1: float
    updates: int

    def __str__(self) -> str:
        return (
            f"{'PASS' if self.passed else 'FAIL'}: turn reward {self.reward:.3f} of {self.goal_reward:.3f}, "
            f"first-fire F1 {self.first_fire_f1:.3f} of {self.goal_first_fire_f1:.3f}, {self.updates} updates"
        )


def overfit(config: RunConfig, count: int = 1, ui: Progress | None = None) -> Overfit:
    """Train on ``count`` dialogues that ask for an action, within the steps of the config's stages.

    Writes nothing. Dialogues whose logged agent acted at the first ready turn come first: there, training
    draws the boards of a perfect agent. Raises ConfigError when there are too few dialogues, or when the
    token limits cut a wanted answer.
    """
    if config.sft is None and config.grpo is None:
        raise ConfigError(f"{config.name}: the config has neither sft nor grpo: nothing to train")
    if count < 1:
        raise ConfigError(f"--overfit {count}: needs at least 1 dialogue")
    ui = ui or Quiet()
    workspace = Workspace.open(config, ui)
    if config.start is not None:
        workspace.engine.load_adapter(config.start)
    asking = [d for d in workspace.train if any(r.ready for r in d.references)]
    chosen = tuple(sorted(asking, key=lambda d: not _acts_at_once(d)))[:count]
    if len(chosen) < count:
        raise ConfigError(
            f"data.train: --overfit {count} needs {count} dialogues with a known window, there are "
            f"{len(chosen)}"
        )
    if cut := workspace.cut_answers(chosen):
        raise ConfigError(cut)
    workspace.train = workspace.dev = workspace.test = chosen
    test = _Test(workspace, ui)
    if config.sft is not None:
        test.supervise()
    if config.grpo is not None:
        test.reinforce()
    workspace.close()
    return test.result()


def _acts_at_once(dialogue: Dialogue) -> bool:
    """Whether the logged agent acted at the first ready turn of every reference."""
    return all(r.ready is not None and r.observed_trigger == r.ready[0] for r in dialogue.references)


class _Test:
    """The state of a self-test: how the greedy policy plays, against the goal."""

    def __init__(self, workspace: Workspace, ui: Progress) -> None:
        self.workspace, self.ui, self.updates = workspace, ui, 0
        pending = workspace.config.sft is not None and workspace.config.sft.pending
        self.goal = goal(workspace.train, workspace.turn_reward, pending, workspace.rule)
        self.played: Evaluation = workspace.play(workspace.train, "playing")

    def supervise(self) -> None:
        stage = self.workspace.config.sft
        assert stage is not None
        self.ui.phase("overfit, SFT", stage.max_steps)
        for step in range(stage.max_steps):
            row = sft_step(self.workspace, stage, step)
            checked = self.check(step + 1, stage.max_steps, f"loss {row['loss']:.3f}")
            if checked and self.reached():
                break

    def reinforce(self) -> None:
        stage = self.workspace.config.grpo
        assert stage is not None
        reset_optimizer(self.workspace.engine)
        self.ui.phase("overfit, GRPO", stage.steps)
        for step in range(stage.steps):
            row, _ = grpo_step(self.workspace, stage, step)
            checked = self.check(step + 1, stage.steps, f"sampled reward {row['reward_mean']:.3f}")
            if checked and self.reached():
                break

    def check(self, step: int, last: int, text: str) -> bool:
        """Count an update; every `CHECK_EVERY` steps, and at the last, play again and return True."""
        self.updates += 1
        due = step % CHECK_EVERY == 0 or step == last
        if due:
            self.played = self.workspace.play(self.workspace.train, "playing")
        reward, goal_reward = (_metric(m, "reward") for m in (self.played.metrics, self.goal))
        self.ui.step(f"{text}, played {reward:.3f} of {goal_reward:.3f}")
        return due

    def reached(self) -> bool:
        return all(_metric(self.played.metrics, k) >= _metric(self.goal, k) - TOLERANCE for k in GOALS)

    def result(self) -> Overfit:
        return Overfit(
            passed=self.reached(),
            reward=_metric(self.played.metrics, "reward"),
            goal_reward=_metric(self.goal, "reward"),
            first_fire_f1=_metric(self.played.metrics, "first_fire_f1"),
            goal_first_fire_f1=_metric(self.goal, "first_fire_f1"),
            updates=self.updates,
        )


def _metric(metrics: Metrics, key: str) -> float:
    """A metric; undefined counts as 0."""
    return metrics[key] or 0.0


def goal(
    dialogues: Sequence[Dialogue], reward: TurnReward | None, pending: bool, rule: MatchRule = EXACT
) -> Metrics:
    """Metrics of the wanted answers, played through on their own board; ``rule``: what counts as right."""
    scored = []
    for dialogue in dialogues:
        board, outputs = EMPTY, {}
        for turn in dialogue.decision_turns:
            actions = target(dialogue, turn, board, pending=pending)
            outputs[turn], board = Parsed(actions), board.after(dialogue, turn, actions)
        scored.append(score_replay(dialogue, outputs, reward, rule)[0])
    return aggregate(scored)
