"""Training a run in an environment: stage A on an expert's episodes, stage B on the agent's own.

Order of tasks, seeds of environments and noise are functions of (seed, phase, step); `training.stages` has
the phases, and how they are saved and resumed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

from proactor.config_base import ConfigError
from proactor.engine import SFT
from proactor.environments.protocol import Gym
from proactor.episode_config import EpisodeConfig
from proactor.methods.sand import SAND
from proactor.methods.stepagent import StepAgent
from proactor.methods.user_metrics import KEYS, intervals, metrics, paired_change, without_failed
from proactor.progress import Progress, Quiet
from proactor.sole_writer import sole_writer
from proactor.training import outcome as chosen
from proactor.training.demonstrations import Demonstrations
from proactor.training.episode_rows import sample_rows
from proactor.training.episodes import Arena, added, open_tasks, open_user
from proactor.training.expert_steps import ExpertSteps
from proactor.training.loading import load_start
from proactor.training.method_credit import Credit, check_used
from proactor.training.origin import origin
from proactor.training.runs import Run, RunError
from proactor.training.stages import StageB, Stages
from proactor.training.step_episodes import episodes_row, first_failure, play_step
from proactor.training.steps import Row, batch, supervised_update, update
from proactor.training.stop_signals import stop_signals
from proactor.training.summary import interval_values
from proactor.training.teaching import Teaching, open_critic

COUNTS = (
    "episodes_failed",
    "episodes_without_turns",
    "groups_too_small",
    "groups_without_spread",
    "groups_with_spread",
)
"""Counters of `Credit.groups`, which every row has."""


class EpisodeTraining(Stages):
    """The training of a run in an environment."""

    def __init__(self, arena: Arena, run: Run, stopping: list[int], ui: Progress) -> None:
        self.arena, self.sft, self.grpo = arena, arena.config.sft, arena.config.grpo
        self.sand = arena.credit.method if isinstance(arena.credit.method, SAND) else None
        self.later = "sand" if self.sand is not None else "grpo"
        super().__init__(arena.config, arena.engine, run, stopping, ui)
        self._taught: Demonstrations | None = None
        self.teaching = Teaching(arena, run)
        self._failure = ""

    @property
    def stage_b(self) -> StageB | None:
        """See `Stages`."""
        return self.sand or self.grpo

    @property
    def taught(self) -> Demonstrations:
        """The expert's episodes of stage A, or of a method that learns from them, made when they are first
        needed.
        """
        if self._taught is None:
            self._taught = self.teaching.stage_a()
        return self._taught

    def sft_row(self, step: int) -> Row:
        """An update on the expert's episodes of a batch of tasks."""
        assert self.sft is not None, "the stage is in the config"
        return self._supervised(self.taught, self.sft, self.sft.batch_tasks, "sft", step)

    def _supervised(self, taught: Demonstrations, stage: SFT, size: int, phase: str, step: int) -> Row:
        tasks = self.arena.tasks.train
        epoch, chosen_tasks, _ = batch(tasks, size, self.config.seed, phase, step, str)
        groups, left_out = taught.groups(self.engine.share(chosen_tasks))
        return {
            "epoch": epoch,
            **supervised_update(self.engine, groups, stage),
            **added(self.engine, left_out, "demonstrations"),
        }

    def _sand_row(self, sand: SAND, step: int) -> Row:
        """An update on the expert's episodes with the deliberations of the step's iteration."""
        iteration, first = divmod(step, sand.updates)
        began = time.perf_counter()
        taught, counts = self.teaching.iteration(sand, iteration, self.position.update - first)
        spent = time.perf_counter() - began
        row = self._supervised(taught, sand.update, sand.batch_tasks, "sand", step)
        counts = counts if first == 0 else {}  # the iteration's, once
        return {**row, **counts, "iteration": float(iteration), "seconds_sampling": spent}

    def held_out_loss(self) -> float:
        """Loss of the expert's episodes on the dev tasks. Raises RunError where none is left."""
        groups, left_out = self.taught.groups(self.engine.share(self.arena.tasks.dev))
        counts = added(self.engine, left_out, "demonstrations")
        if not counts.get("demonstrations"):
            raise RunError(f"sft: of the dev tasks the expert's episodes are all left out ({counts})")
        return self.engine.nll(groups)

    def grpo_row(self, step: int) -> tuple[Row, list[Row]]:
        """An update on a batch of tasks: on the agent's episodes, or at the states of the expert's."""
        if self.sand is not None:
            return self._sand_row(self.sand, step), []
        assert self.grpo is not None, "the stage is in the config"
        arena, stage, engine = self.arena, self.grpo, self.engine
        epoch, tasks, others = batch(
            arena.tasks.train, stage.batch_tasks, self.config.seed, "grpo", step, str
        )
        if isinstance(arena.credit.method, StepAgent):
            return self._expert_row(arena.credit.method, epoch, step, tasks), []
        began = time.perf_counter()
        with engine.together("episodes"):
            placed, again, events = play_step(arena, stage, step, epoch, tasks, others)
            sampled = time.perf_counter() - began
            played = [episodes for _, episodes in placed]
            groups, left_out = arena.credit.groups(played, engine, arena.chat, epoch)
            left_out["episodes_failed"] += events.pop("episodes_failed", 0)
            stats = update(engine, groups, stage)  # the ranks meet where gradients are summed
        counts = dict.fromkeys(COUNTS, 0.0) | added(engine, left_out, "credit")
        flat = not counts["groups_with_spread"]
        self.position.flat = self.position.flat + 1 if flat else 0
        self._failure = first_failure(arena, placed)
        self.position.failure = self._failure if flat else ""
        row = episodes_row(arena, placed)
        row["tokens_sampled"] += again.get("tokens_redrawn", 0.0)
        row = {
            "epoch": epoch,
            **stats,
            **row,
            **again,
            **counts,
            "flat_steps": float(self.position.flat),
            **added(engine, events, "host"),
            "seconds_sampling": sampled,
        }
        return row, sample_rows(played)

    def _expert_row(self, method: StepAgent, epoch: int, step: int, tasks: Sequence[str]) -> Row:
        """An update at the expert's states of some tasks."""
        assert self.grpo is not None, "the stage is in the config"
        steps = ExpertSteps(self.arena, method, self.grpo, self.taught, self.position.memory)
        row = steps.row(step, tasks)
        flat = not row["pairs" if method.reward == "implicit" else "groups_with_spread"]
        self.position.flat = self.position.flat + 1 if flat else 0
        return {"epoch": epoch, **row, "flat_steps": float(self.position.flat)}

    def check(self) -> tuple[Row, float]:
        """Play the dev tasks."""
        row, _, _ = self.arena.evaluate(self.arena.tasks.dev, "playing dev tasks")
        return row, row[f"eval_{self.config.eval.metric}"]

    def finished(self) -> str:
        """The stop rule for a collapse: many steps in a row in which no group had spread."""
        if self.grpo is None:
            return ""
        most, flat = self.grpo.max_flat_steps, self.position.flat
        if most is None or flat < most or self.position.step >= self.grpo.steps:
            return ""
        why = f"; an environment failed: {self.position.failure}" if self.position.failure else ""
        return (
            f"GRPO stopped after step {self.position.step} of {self.grpo.steps}: in the last {flat} steps no "
            f"group had spread, so there is nothing to learn from (grpo.max_flat_steps){why}"
        )

    @property
    def adapter(self) -> Literal["best", "last"]:
        """Which adapter the run ends with; stage A alone always with its best."""
        return self.arena.config.eval.adapter if self.stage_b is not None else "best"

    def told(self, row: Row) -> str:
        """Score, user involvement, the groups that were trained on, and the episodes that failed; at an
        expert's states the agreement with it.
        """
        if self.sand is not None:
            return f"iteration {row['iteration']:.0f}, loss {row['loss']:.3f}"
        if "agreement" in row:
            return f"{row['states']:.0f} states, {row['agreement']:.0%} of the actions are the expert's"
        groups = f"{row['groups_with_spread']:.0f} groups with spread"
        failed = row["episodes_failed"]
        why = f", {failed:.0f} episodes failed ({self._failure})" if failed else ""
        return f"score {row['score']:.3f}, U {row['user_actions']:.2f}, {groups}{why}"


def train_episodes(
    config: EpisodeConfig, *, resume: bool = False, fresh: bool = False, ui: Progress | None = None
) -> Row:
    """Run ``config`` to its end; returns the comparison of start and best on the test tasks.

    ``resume``, ``fresh`` and what is raised: as `loop.train`; GymError and ChatError too.
    """
    credit = Credit.of(config.method)  # refuses what cannot work before anything is written
    check_used(config, credit.method)
    stage_b = config.grpo is not None
    if isinstance(credit.method, SAND):
        stage_b = bool(open_critic(credit.method))
    if config.sft is None and not stage_b:
        raise RunError(f"{config.name}: the config has neither sft nor grpo: nothing to train")
    gym, tasks = open_tasks(config, open_user(config))
    if config.sft is not None or config.grpo is None or isinstance(credit.method, StepAgent):
        check_teaching(config, credit, gym)
    if not tasks.test and config.eval.final:
        raise ConfigError(
            "environment: the gym has no test tasks; eval.final=false leaves the comparison out"
        )
    run = Run(config.folder, writer=int(os.environ.get("RANK", "0")) == 0)
    with sole_writer(run.folder) if run.writer else nullcontext():
        run.check(config, resume=resume, fresh=fresh)
        arena = Arena.open(config, ui)
        try:
            with arena.engine.together("training"):
                load_start(arena.engine, config)
                run.begin(config, resume=resume, fresh=fresh)
                return _run(arena, run, resume, ui or Quiet())
        finally:
            arena.close()


def check_teaching(config: EpisodeConfig, credit: Credit, gym: Gym) -> None:
    """Raise ConfigError for a gym without an expert, and where the method and stage A would teach its
    episodes in different words.
    """
    Demonstrations.check(gym)
    method = credit.method
    if isinstance(method, StepAgent) and config.sft is not None and method.thoughts != config.sft.thoughts:
        raise ConfigError(
            f"method.options.thoughts: {method.thoughts}, and sft.thoughts is {config.sft.thoughts}: the "
            "expert speaks the same in both stages"
        )


def _run(arena: Arena, run: Run, resume: bool, ui: Progress) -> Row:
    """The stages of a run, and the comparison at its end."""
    engine, config = arena.engine, arena.config
    initial = engine.state_dict()
    sizes = ", ".join(f"{len(getattr(arena.tasks, part))} {part}" for part in ("train", "dev", "test"))
    ui.say(f"{arena.gym.name}: {sizes} tasks")
    for problem in arena.chat.report.problems:
        ui.say(f"chat template: {problem}")
    with stop_signals() as signals:
        training = EpisodeTraining(arena, run, signals, ui)
        try:
            if resume:
                training.restore()
            training.go()
        finally:
            training.teaching.close()
    rows = run.rows() if run.writer else []
    adapter = training.adapter
    best = chosen.outcome(rows, config.eval.metric) if adapter == "best" else None
    result = engine.gather(best, "end of training")[0]
    if result is not None:
        ui.say(str(result))
    if not config.eval.final:
        return {}
    before = None if training.stage_b is not None else initial
    summary = compare(arena, run, before, adapter) | {"seconds": training.position.seconds} | origin()
    if result is not None:
        summary["chosen"] = result.model_dump()
    if why := training.finished():
        summary["stopped"] = why
    run.write_summary(summary)
    return summary


def compare(arena: Arena, run: Run, initial: Mapping[str, Any] | None, name: Literal["best", "last"]) -> Row:
    """Start and end (adapter ``name``) on the test tasks, with intervals over tasks; the engine keeps the
    end.

    ``before`` is the state ``initial``, or (None) the adapter that stage B began with; ``difference`` is
    after - before, paired. ``tasks``: those that all of it is over, which failed on neither side; ``failed``:
    the episodes that did. Writes ``episodes.json``. Raises RunError where nothing is left.
    """
    engine = arena.engine
    engine.barrier("adapters")
    if initial is None:
        engine.load_adapter(run.start)
    else:
        engine.load_state_dict(initial)
    _, begun, episodes_before = arena.evaluate(arena.tasks.test, "before, on test")
    engine.load_adapter(run.folder / name)
    _, ended, episodes_after = arena.evaluate(arena.tasks.test, "after, on test")
    run.write_episodes(
        {"success": arena.config.eval.success, "before": episodes_before, "after": episodes_after}
    )
    before, after = without_failed(begun, ended)
    if not after:
        raise RunError(
            "test: in each task an environment failed, before or after: nothing to compare; --resume plays "
            "them again"
        )
    resamples = arena.config.eval.resamples
    return {
        "before": metrics(before),
        "after": metrics(after),
        "intervals": {
            name: interval_values(intervals(outcomes, KEYS, resamples=resamples))
            for name, outcomes in (("before", before), ("after", after))
        },
        "difference": interval_values(paired_change(before, after, KEYS, resamples=resamples)),
        "tasks": len(after),
        "failed": {"before": sum(o.failed for o in begun), "after": sum(o.failed for o in ended)},
        "adapter": name,
    }
