"""Training a run: supervised until the held-out loss stops falling, then GRPO on sampled decisions; saved,
and resumed exactly.

Data order, boards and noise are functions of (seed, phase, step), so the position of a run is a handful of
numbers and a resumed run does what the killed one would have done. Every row of numbers is in `metrics.jsonl`
before the state that counts on it is saved (see `proactor.training.runs`).
"""

from __future__ import annotations

import hashlib
import math
import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from proactor.config import GRPOStage, RunConfig, SFTStage
from proactor.dialogue import Dialogue
from proactor.dialogue.candidates import Stage
from proactor.engine import Engine, Group
from proactor.evaluation.play import Evaluation
from proactor.progress import Progress, Quiet, Stopped
from proactor.rewards import GroupReward, WeightedMetric
from proactor.scoring.metrics import FIELDS
from proactor.training.answers import AnswerGroup
from proactor.training.graph_rollout import trainable
from proactor.training.rollout import held_out_loss, judge_groups, sample_groups, sft_groups
from proactor.training.runs import Run, RunError
from proactor.training.stats import judge_statistics, reward_statistics, sample_rows
from proactor.training.summary import compare
from proactor.training.workspace import Workspace

Row = dict[str, Any]


@dataclass(slots=True)
class Position:
    """Where a run is. ``step`` counts within the phase, ``update`` over all; ``best`` is the lowest held-out
    loss (sft) or the highest dev metric (grpo), reached after ``best_step``; ``stale`` counts checks since
    then.
    """

    phase: str = "sft"
    step: int = 0
    update: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0


# -- data order ---


def derived(*parts: object) -> int:
    """63 bits that depend on all ``parts`` and nothing else."""
    return int.from_bytes(hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()) >> 1


def batch(
    dialogues: Sequence[Dialogue], size: int, seed: int, phase: str, step: int
) -> tuple[int, list[Dialogue]]:
    """(epoch, dialogues) of a step: every epoch is a new order of all dialogues, its last batch may be
    smaller.
    """
    per_epoch = -(-len(dialogues) // size)
    epoch, at = divmod(step, per_epoch)
    order = sorted(dialogues, key=lambda d: derived(seed, phase, epoch, d.id))
    return epoch, order[at * size : (at + 1) * size]


# -- one step ---


def sft_step(workspace: Workspace, stage: SFTStage, step: int) -> Row:
    """One supervised update; returns its row."""
    seed, engine = workspace.config.seed, workspace.engine
    epoch, chosen = batch(workspace.train, stage.batch_dialogues, seed, "sft", step)
    own = engine.share(chosen)
    groups, counters = sft_groups(
        workspace.encoder, own, seed=seed, epoch=epoch, logged=stage.logged, pending=stage.pending
    )
    stats = engine.train(groups, stage)
    counted = engine.gather((counters["examples"], counters["unknowable"]))
    kept = (
        "loss",
        "entropy",
        "grad_norm",
        "adapter_norm",
        "lr",
        "tokens_trained",
        "tokens_computed",
        "tokens_avoided",
        "nonfinite_gradient",
    )
    return {
        "epoch": epoch,
        **{k: stats[k] for k in kept},
        "examples": sum(c[0] for c in counted),
        "unknowable": sum(c[1] for c in counted),
    }


def grpo_step(workspace: Workspace, stage: GRPOStage, step: int) -> tuple[Row, list[AnswerGroup]]:
    """Sample every decision of a batch of dialogues, score, update; returns the row and this rank's groups,
    those dropped by the reward included.
    """
    epoch, chosen = batch(workspace.train, stage.batch_dialogues, workspace.config.seed, "grpo", step)
    answered, scoring = sample_and_score(workspace, stage, step, epoch, workspace.engine.share(chosen))
    kept = [a.group for a in answered if not a.dropped]
    if workspace.encoder.style.mode == "graph":  # samples of a decision then have prompts of their own
        kept = trainable(kept, stage.advantages)
    stats = update(workspace.engine, kept, stage)
    rewards = reward_statistics(workspace.engine.gather, answered)
    return {"epoch": epoch, **stats, **rewards, **scoring}, answered


def sample_and_score(
    workspace: Workspace, stage: GRPOStage, step: int, epoch: int, own: Sequence[Dialogue]
) -> tuple[list[AnswerGroup], Row]:
    """This rank's groups with their rewards, and the statistics of the scoring over all ranks."""
    seed, engine = workspace.config.seed, workspace.engine
    sampling = stage.sampling.model_copy(update={"seed": derived(seed, "noise", step)})
    if workspace.worker is None:
        assert not isinstance(workspace.reward, GroupReward), "Workspace.bind starts its worker"
        before = time.perf_counter()
        groups = sample_groups(
            engine,
            workspace.encoder,
            own,
            sampling,
            workspace.config.reward,
            workspace.reward,
            seed=seed,
            epoch=epoch,
            logged=stage.logged,
        )
        return groups, {"seconds_sampling": time.perf_counter() - before}
    now, reward = Stage(step, stage.steps), workspace.worker.reward
    judged = judge_groups(
        engine,
        workspace.encoder,
        own,
        sampling,
        workspace.worker,
        workspace.turn_reward or WeightedMetric(),
        stage=now,
        seed=seed,
        epoch=epoch,
        logged=stage.logged,
    )
    coefficients = {f"coef/{name}": value for name, value in reward.coefficients(now).items()}
    events = judge_statistics(engine.gather, judged.groups, reward.judged, judged.counters)
    return judged.groups, {**coefficients, **events, **{f"seconds_{k}": v for k, v in judged.seconds.items()}}


def update(engine: Engine, groups: Sequence[Group], stage: GRPOStage) -> Row:
    """One update with the groups of all ranks (a rank without any takes part). Without a group on any rank
    nothing moves, and the row says so.
    """
    if not any(engine.gather(bool(groups))):
        version = float(engine.policy_version)
        return {"skipped_update": 1.0, "reward_mean": math.nan, "policy_version": version}
    stats = engine.train(groups, stage)
    return {**{k: v for k, v in stats.items() if k not in ("step", "normalizer")}, "skipped_update": 0.0}


def held_out(workspace: Workspace, stage: SFTStage) -> float:
    """Loss of the wanted answers on the dev dialogues (boards fixed by the seed), nats a token."""
    own = workspace.engine.share(workspace.held_out)
    groups, _ = sft_groups(
        workspace.encoder,
        own,
        seed=workspace.config.seed,
        epoch=-1,
        logged=stage.logged,
        pending=stage.pending,
    )
    return held_out_loss(workspace.engine, groups)


def evaluation_row(evaluation: Evaluation) -> Row:
    """An evaluation's metrics (not the counts behind them) under ``eval_*``."""
    metrics = {f"eval_{k}": v for k, v in evaluation.metrics.items() if k not in FIELDS}
    graphs = evaluation.unread_graph_share
    return {
        **metrics,
        "eval_unparsed_share": evaluation.unparsed_share,
        "eval_truncated_share": evaluation.truncated_share,
        **({} if graphs is None else {"eval_unread_graph_share": graphs}),
    }


def reset_optimizer(engine: Engine) -> None:
    """Forget the moments and the count of steps: a new stage has its own schedule."""
    state = engine.state_dict()
    state["m"].zero_()
    state["v"].zero_()
    engine.load_state_dict({**state, "steps": 0})


# -- the run ---


class Training:
    """A workspace, its folder and its position."""

    def __init__(self, workspace: Workspace, run: Run, stopping: list[int], ui: Progress) -> None:
        self.workspace, self.run, self.stopping, self.ui = workspace, run, stopping, ui
        self.config, self.engine = workspace.config, workspace.engine
        self.position = Position("sft" if self.config.sft else "grpo")
        self._since = time.perf_counter()

    def restore(self) -> None:
        """Go back to the last save, if there is one: state, rows, samples, and the best adapter when the save
        was about to write it.
        """
        if not self.run.state.exists():
            self.run.rewind(0, 0)
            return
        record = self.engine.resume(self.run.state)
        length = int(record.pop("metrics_bytes"))
        self.position = Position(**record)
        self.run.rewind(length, self.position.update)
        self._export()
        grpo = self.config.grpo
        if self.position.phase == "done" and grpo is not None and self.position.step < grpo.steps:
            self.position.phase = "grpo"
        self.ui.say(f"resumed {self.run.folder} after step {self.position.update} ({self.position.phase})")

    def go(self) -> None:
        """Both phases from the current position to the end."""
        if self.position.phase == "sft" and self.config.sft is not None:
            self.supervise(self.config.sft)
        if self.config.grpo is not None and self.position.phase in ("sft", "grpo"):
            self.reinforce(self.config.grpo)
        if self.position.phase != "done":
            self.position.phase = "done"
            self.save()

    def supervise(self, stage: SFTStage) -> None:
        """The supervised phase. Afterwards the adapter of the lowest held-out loss is in `start` (or `best`,
        when no GRPO follows).
        """
        p = self.position
        self.ui.phase("SFT", stage.max_steps, p.step)
        if p.best is None:
            self._check_loss(stage)
            self.save()
        while p.step < stage.max_steps and p.stale < stage.patience:
            began = time.perf_counter()
            row = sft_step(self.workspace, stage, p.step)
            self._advance("sft", row, time.perf_counter() - began)
            checked = p.step % stage.eval_every == 0 or p.step == stage.max_steps
            if checked:
                self._check_loss(stage)
            self.ui.step(f"loss {row['loss']:.3f}, held-out {p.best:.3f}")
            self._after(checked)

    def reinforce(self, stage: GRPOStage) -> None:
        """The GRPO phase, from the supervised phase's best adapter and a fresh optimizer. Its best on dev is
        in `best`.
        """
        if self.position.phase == "sft":
            self._enter()
        p = self.position
        self.ui.phase("GRPO", stage.steps, p.step)
        if p.best is None:
            self._check_metric()
            self._write_adapter("start")
            self.save()
        while p.step < stage.steps:
            began = time.perf_counter()
            row, groups = grpo_step(self.workspace, stage, p.step)
            self._advance("grpo", row, time.perf_counter() - began)
            if (p.step - 1) % self.config.samples_every == 0:
                rows = [r for part in self.engine.gather(sample_rows(groups)) for r in part]
                self.run.write_samples("grpo", p.update, rows)
            checked = p.step % stage.eval_every == 0 or p.step == stage.steps
            if checked:
                self._check_metric()
            gone = f", {row['groups_dropped']:.0f} groups without a verdict" if row["groups_dropped"] else ""
            skipped = ", no update" if row["skipped_update"] else ""
            self.ui.step(
                f"reward {row['reward_mean']:.3f}, best {self.config.eval.metric} on dev "
                f"{p.best:.3f}{gone}{skipped}"
            )
            self._after(checked)

    def _enter(self) -> None:
        self.engine.barrier()
        self.engine.load_adapter(self.run.start)  # with a fresh optimizer
        self.position = Position("grpo", update=self.position.update, seconds=self.position.seconds)

    def _check_loss(self, stage: SFTStage) -> None:
        loss = held_out(self.workspace, stage)
        self._log("eval", {"held_out_loss": loss})
        self._judge(-loss if math.isfinite(loss) else -math.inf, lowest=True)

    def _check_metric(self) -> None:
        found = self.workspace.play(self.workspace.dev, "playing dev dialogues")
        self._log("eval", evaluation_row(found))
        self._judge(found.metrics[self.config.eval.metric] or 0.0)

    def _judge(self, value: float, lowest: bool = False) -> None:
        """Take note of a check: ``value`` is better when higher; a loss comes negated."""
        p = self.position
        known = None if p.best is None else (-p.best if lowest else p.best)
        if known is None or value > known:
            p.best, p.best_step, p.stale = (-value if lowest else value), p.step, 0
        else:
            p.stale += 1

    def _advance(self, kind: str, row: Row, seconds: float) -> None:
        p = self.position
        p.step, p.update = p.step + 1, p.update + 1
        tokens = row["tokens_sampled" if "tokens_sampled" in row else "tokens_trained"]
        self._log(kind, {**row, "seconds": seconds, "tokens_per_second": tokens / seconds})

    def _log(self, kind: str, row: Row) -> None:
        self.run.log({"phase": self.position.phase, "kind": kind, "step": self.position.update, **row})

    def _after(self, checked: bool) -> None:
        """Save when it is due, or when somebody asked the process to end; in that case on every rank after
        the same step.
        """
        asked = next((s for part in self.engine.gather(list(self.stopping)) for s in part), None)
        if checked or asked is not None or self.position.update % self.config.save_every == 0:
            self.save()
        if asked is not None:
            raise Stopped(asked, self.position.update)

    def save(self) -> None:
        """Rows to disk, then the state, then the adapters."""
        now = time.perf_counter()
        self.position.seconds, self._since = self.position.seconds + now - self._since, now
        length = self.run.flush()
        self.engine.save(self.run.state, {**asdict(self.position), "metrics_bytes": length})
        self._write_adapter("last")
        self._export()

    def _export(self) -> None:
        """Write the best adapter when it is the current one."""
        p = self.position
        if p.best is not None and p.best_step == p.step and p.phase != "done":
            self._write_adapter("start" if p.phase == "sft" and self.config.grpo is not None else "best")

    def _write_adapter(self, name: str) -> None:
        if self.run.writer:
            self.engine.save_adapter(self.run.folder / name)


def train(config: RunConfig, *, resume: bool = False, fresh: bool = False, ui: Progress | None = None) -> Row:
    """Run ``config`` to its end and compare where it began with where it came on the test dialogues; returns
    that summary.

    resume: continue from the last save (or from the beginning when there is none). fresh: replace what the
    folder holds. Raises Stopped after SIGTERM or Ctrl-C, once the state is saved; ConfigError, RunError,
    SourceError, RewardError, EngineError for what cannot work.
    """
    if config.sft is None and config.grpo is None:
        raise RunError(f"{config.name}: the config has neither sft nor grpo: nothing to train")
    ui = ui or Quiet()
    rank = int(os.environ.get("RANK", "0"))
    run = Run(config.folder, writer=rank == 0)
    run.begin(config, resume=resume, fresh=fresh)
    with stopping() as asked:
        workspace = Workspace.open(config, ui)
        if config.start is not None:
            workspace.engine.load_adapter(config.start)
        initial = workspace.engine.state_dict()
        _tell(workspace, ui)
        training = Training(workspace, run, asked, ui)
        try:
            if resume:
                training.restore()
            training.go()
        finally:
            run.close()
            workspace.close()
    if not config.eval.final:
        return {}
    return compare(workspace, run, initial, seconds=training.position.seconds)


def _tell(workspace: Workspace, ui: Progress) -> None:
    """What is worth knowing before hours are spent: how much data there is, what was left out, whether limits
    cut answers.
    """
    sizes = ", ".join(f"{len(getattr(workspace, part))} {part}" for part in ("train", "dev", "test"))
    ui.say(
        f"{workspace.config.data.source}: {sizes} dialogues; {workspace.counters['train'].get('null', 0)} "
        "training actions with an unknown window"
    )
    for part, count in workspace.dropped.items():
        if count:
            ui.say(f"data.{part}: {count} dialogues left out, longer than the context")
    if cut := workspace.cut_answers(workspace.dev):
        ui.say(f"warning: {cut}")


@contextmanager
def stopping() -> Iterator[list[int]]:
    """A list that SIGTERM or Ctrl-C appends its number to, once; a second one ends the process at once."""
    asked: list[int] = []
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handler(number: int, frame: FrameType | None) -> None:
        asked.append(number)
        for other, previous in old.items():
            signal.signal(other, previous)

    for number in old:
        signal.signal(number, handler)
    try:
        yield asked
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
