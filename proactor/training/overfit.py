"""Self-test: a few training dialogues, learnt to their maximum. If this fails, nothing larger will work.

The goal is what the wanted answers (`prompt.target`) earn when played through on their own board. Each stage
of the config runs until the greedy policy earns it, GRPO for a few updates at least: after a supervised stage
it must keep what was learnt, by itself it must get there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from proactor.config import ConfigError, RunConfig
from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY
from proactor.dialogue.parse import Parsed
from proactor.dialogue.prompt import target
from proactor.evaluation.play import Evaluation
from proactor.progress import Progress, Quiet
from proactor.rewards import TurnReward, score_replay
from proactor.scoring.metrics import aggregate
from proactor.training.loop import grpo_step, reset_optimizer, sft_step
from proactor.training.workspace import Workspace

CHECK_EVERY = 5
TOLERANCE = 1e-6


@dataclass(frozen=True, slots=True)
class Overfit:
    """What was reached against the goal, after how many updates."""

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
    """Train on ``count`` training dialogues that ask for an action, within the steps of the config's stages.
    Writes nothing.

    Dialogues whose logged agent acted at the first ready turn come first: there the boards that training
    draws are those of a perfect agent. Raises ConfigError when there are too few dialogues, or when the token
    limits cut a wanted answer.
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
    chosen = tuple(sorted(asking, key=lambda d: not _prompt_log(d)))[:count]
    if len(chosen) < count:
        raise ConfigError(
            f"data.train: --overfit {count} needs as many dialogues with a known window, there are "
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


def _prompt_log(dialogue: Dialogue) -> bool:
    return all(r.ready is not None and r.observed_trigger == r.ready[0] for r in dialogue.references)


class _Test:
    def __init__(self, workspace: Workspace, ui: Progress) -> None:
        self.workspace, self.ui, self.updates = workspace, ui, 0
        pending = workspace.config.sft is not None and workspace.config.sft.pending
        self.goal = goal(workspace.train, workspace.turn_reward, pending)
        self.found: Evaluation = workspace.play(workspace.train, "playing")

    def supervise(self) -> None:
        stage = self.workspace.config.sft
        assert stage is not None
        self.ui.phase("overfit, SFT", stage.max_steps)
        for step in range(stage.max_steps):
            row = sft_step(self.workspace, stage, step)
            if self.check(step + 1, stage.max_steps, f"loss {row['loss']:.3f}") and self.reached():
                break

    def reinforce(self) -> None:
        stage = self.workspace.config.grpo
        assert stage is not None
        reset_optimizer(self.workspace.engine)
        self.ui.phase("overfit, GRPO", stage.steps)
        for step in range(stage.steps):
            row, _ = grpo_step(self.workspace, stage, step)
            if (
                self.check(step + 1, stage.steps, f"sampled reward {row['reward_mean']:.3f}")
                and self.reached()
            ):
                break

    def check(self, step: int, last: int, text: str) -> bool:
        self.updates += 1
        due = step % CHECK_EVERY == 0 or step == last
        if due:
            self.found = self.workspace.play(self.workspace.train, "playing")
        self.ui.step(
            f"{text}, played {_of(self.found.metrics, 'reward'):.3f} of {_of(self.goal, 'reward'):.3f}"
        )
        return due

    def reached(self) -> bool:
        return all(
            _of(self.found.metrics, k) >= _of(self.goal, k) - TOLERANCE for k in ("reward", "first_fire_f1")
        )

    def result(self) -> Overfit:
        reward, f1 = (_of(self.found.metrics, k) for k in ("reward", "first_fire_f1"))
        return Overfit(
            self.reached(),
            reward,
            _of(self.goal, "reward"),
            f1,
            _of(self.goal, "first_fire_f1"),
            self.updates,
        )


def _of(metrics: dict[str, float | None], key: str) -> float:
    return metrics[key] or 0.0


def goal(dialogues: Sequence[Dialogue], reward: TurnReward | None, pending: bool) -> dict[str, float | None]:
    """Metrics of the wanted answers, played through on their own board."""
    scored = []
    for dialogue in dialogues:
        board, outputs = EMPTY, {}
        for turn in dialogue.decision_turns:
            actions = target(dialogue, turn, board, pending=pending)
            outputs[turn], board = Parsed(actions), board.after(dialogue, turn, actions)
        scored.append(score_replay(dialogue, outputs, reward)[0])
    return aggregate(scored)
