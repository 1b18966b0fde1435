"""A run's stages: supervised until the held-out loss stops falling, then GRPO (or a stage of a method's own);
saved and resumed exactly.

Its position (`training.position`) is all that a run needs to go on. The order of writes makes a killed run
resumable; see `proactor.training.runs`. Dialogues (`training.loop`) and episodes (`training.episodes_loop`)
say what a step does.
"""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from typing import Any, Protocol

from proactor.config import RunConfig, SFTStage
from proactor.engine import Engine, ranged
from proactor.episode_config import EpisodeConfig, EpisodeSFT
from proactor.progress import Progress, Stopped
from proactor.tables import plain_name
from proactor.training.gap_watch import GapWatch
from proactor.training.position import Position, read_position
from proactor.training.runs import Run, RunError, sample_order

Row = dict[str, Any]


class StageB(Protocol):
    """How long stage B is, and how often it is checked."""

    @property
    def steps(self) -> int:
        """Updates."""
        ...

    @property
    def eval_every(self) -> int:
        """Updates between checks."""
        ...


class Stages(ABC):
    """The training of a run: its engine, folder and position. What a step does is the subclass's.

    Hooks are called on every rank; what decides how the run goes on must be equal on all.
    """

    def __init__(
        self, config: RunConfig | EpisodeConfig, engine: Engine, run: Run, stopping: list[int], ui: Progress
    ) -> None:
        self.config, self.engine, self.run, self.stopping, self.ui = config, engine, run, stopping, ui
        self.position = Position("sft" if self.config.sft else self.later)
        self._saved_at, self._gap_watch = time.perf_counter(), GapWatch()

    # -- what a step does ---

    @abstractmethod
    def sft_row(self, step: int) -> Row:
        """One supervised update; its row."""

    @abstractmethod
    def held_out_loss(self) -> float:
        """Loss on what is held out, in nats per token."""

    later = "grpo"
    """The name of stage B: of its phase, its rows and its samples."""

    @property
    def stage_b(self) -> StageB | None:
        """What follows the supervised stage."""
        return self.config.grpo

    @abstractmethod
    def grpo_row(self, step: int) -> tuple[Row, list[Row]]:
        """A step of stage B: sample, score, update; the row, and this rank's samples as rows."""

    @abstractmethod
    def check(self) -> tuple[Row, float]:
        """Play the dev part: the row, and the metric by which the best adapter is chosen."""

    def note(self, row: Row, last: bool) -> None:  # noqa: B027 - episodes have nothing to look at
        """Look at a GRPO step's row; ``last``: the stage ends with it. Raises where the run is to stop."""

    def finished(self) -> str:
        """Why the GRPO stage ends here, before its steps are over; empty where it goes on."""
        return ""

    @abstractmethod
    def told(self, row: Row) -> str:
        """A GRPO step in a few words."""

    # -- the phases ---

    def restore(self) -> None:
        """Go back to the last save, if there is one.

        Restores state, rows and samples, and writes the best adapter if the killed run had not yet done so.
        """
        if not self.run.state.exists():
            self.run.rewind(0, 0)
            return
        record = self.engine.resume(self.run.state, say=self.ui.say)
        self.position, length = read_position(record, self.run.state)
        self.run.rewind(length, self.position.update)
        if self.run.writer:
            self._gap_watch = GapWatch(self.run.rows())
        self._write_best()
        if self.position.phase == "done":
            self.position.phase = self._reopened()
        self.ui.say(f"resumed {self.run.folder} after step {self.position.update} ({self.position.phase})")

    def _reopened(self) -> str:
        """The phase of an ended run whose config now asks for more of its last stage: more steps, or more
        patience in the supervised one; else "done".
        """
        p, sft, later = self.position, self.config.sft, self.stage_b
        if later is not None:
            return self.later if p.step < later.steps else "done"
        more = sft is not None and p.step < sft.max_steps and p.stale < sft.patience
        return "sft" if more else "done"

    def go(self) -> None:
        """Both phases from the current position to the end."""
        self.ui.say(f"base linears: {'; '.join(self.engine.linear_forms)}")
        if self.position.phase == "sft" and self.config.sft is not None:
            self.supervise(self.config.sft)
        if self.stage_b is not None and self.position.phase in ("sft", self.later):
            self.reinforce(self.stage_b)
        if self.position.phase != "done":
            self.position.phase = "done"
            self.save()

    def supervise(self, stage: SFTStage | EpisodeSFT) -> None:
        """The supervised phase.

        The adapter of the lowest held-out loss ends in `start` (in `best` if no GRPO follows).
        """
        p = self.position
        self.ui.phase("SFT", stage.max_steps, p.step)
        if p.best is None:
            self._check_loss()
            self.save()
        while p.step < stage.max_steps and p.stale < stage.patience:
            began = time.perf_counter()
            with ranged("run: supervised step"):
                row = self.sft_row(p.step)
            self._advance("sft", row, time.perf_counter() - began)
            checked = p.step % stage.eval_every == 0 or p.step == stage.max_steps
            if checked:
                self._check_loss()
            self.ui.step(f"loss {row['loss']:.3f}, held-out {p.best:.3f}")
            self._save_if_due(checked)

    def reinforce(self, stage: StageB) -> None:
        """Stage B, from the supervised phase's best adapter with a fresh optimizer.

        The adapter that did best on dev ends in `best`.
        """
        if self.position.phase == "sft":
            self._begin_grpo()
        p = self.position
        self.ui.phase(self.later.upper(), stage.steps, p.step)
        if p.best is None:
            self._check_metric()
            self._write_adapter("start")
            self.save()
        while p.step < stage.steps and not self.finished():
            began = time.perf_counter()
            with ranged(f"run: {self.later.upper()} step"):
                row, samples = self.grpo_row(p.step)
            self._advance(self.later, row, time.perf_counter() - began)
            if warning := self._gap_watch.note(row):
                self.ui.say(warning)
            if (p.step - 1) % self.config.samples_every == 0:
                ranks = self.engine.gather(samples, "samples")
                rows = [row for rank in ranks for row in rank]
                rows.sort(key=sample_order)  # whoever drew them
                if rows:
                    self.run.write_samples(self.later, p.update, rows)
            self.note(row, last=p.step == stage.steps)
            checked = p.step % stage.eval_every == 0 or p.step == stage.steps or bool(self.finished())
            if checked:
                self._check_metric()
            best = f"best {plain_name(self.config.eval.metric)} on dev {p.best:.3f}"
            self.ui.step(f"{self.told(row)}, {best}")
            self._save_if_due(checked)
        if p.step < stage.steps:
            self.ui.say(self.finished())

    def _begin_grpo(self) -> None:
        self.engine.barrier("adapter of the SFT stage")
        self.engine.load_adapter(self.run.start)  # with a fresh optimizer
        self.position = Position(self.later, update=self.position.update, seconds=self.position.seconds)

    def _check_loss(self) -> None:
        with ranged("run: held-out loss"):
            loss = self.held_out_loss()
        self._log("eval", {"held_out_loss": loss})
        self._note_check(loss if math.isfinite(loss) else math.inf, lower_is_better=True)

    def _check_metric(self) -> None:
        with ranged("run: dev"):
            row, value = self.check()
        self._log("eval", row)
        self._note_check(value)

    def _note_check(self, value: float, lower_is_better: bool = False) -> None:
        """Keep ``value`` as the best so far, or count one more check without progress."""
        p = self.position
        if p.best is None or (value < p.best if lower_is_better else value > p.best):
            p.best, p.best_step, p.stale = value, p.step, 0
        else:
            p.stale += 1

    def _advance(self, kind: str, row: Row, seconds: float) -> None:
        p = self.position
        p.step, p.update = p.step + 1, p.update + 1
        p.nonfinite = p.nonfinite + 1 if row.get("nonfinite_gradient") else 0
        tokens = row["tokens_sampled" if "tokens_sampled" in row else "tokens_trained"]
        self._log(kind, {**row, "seconds": seconds, "tokens_per_second": tokens / seconds})
        self._refuse_nonfinite(kind)

    def _refuse_nonfinite(self, kind: str) -> None:
        """Raise RunError after as many steps in a row without a finite gradient as the config allows.

        What was saved before stays the run's last save.
        """
        most, count = self.config.max_nonfinite, self.position.nonfinite
        if most is not None and count >= most:
            self.run.flush()
            rate = "method.options.update.lr" if kind == "sand" else f"{kind}.lr"
            learned = " sft=null" if kind != "sft" and self.config.sft is not None else ""
            raise RunError(
                f"{kind}: the gradient was not finite in {count} steps in a row, up to step "
                f"{self.position.update} (max_nonfinite); such steps change nothing. A resumed run keeps its "
                "rate and its rewards: start another run from the last saved adapter, with a lower rate "
                f"(name=… start={self.run.last}{learned} {rate}=…)"
            )

    def _log(self, kind: str, row: Row) -> None:
        self.run.log({"phase": self.position.phase, "kind": kind, "step": self.position.update, **row})

    def _save_if_due(self, checked: bool) -> None:
        """Save after a check, every `save_every` steps, or on a signal to stop.

        A signal to one rank stops every rank after the same step: raises Stopped.
        """
        ranks = self.engine.gather(list(self.stopping), "end of a step")
        signals = [number for rank in ranks for number in rank]
        if checked or signals or self.position.update % self.config.save_every == 0:
            self.save()
        if signals:
            raise Stopped(signals[0], self.position.update)

    def save(self) -> None:
        """Rows to disk, then the state, then the adapters."""
        with ranged("run: save"):
            self._save()

    def _save(self) -> None:
        now = time.perf_counter()
        self.position.seconds += now - self._saved_at
        self._saved_at = now
        length = self.run.flush()
        self.engine.save(self.run.state, {**asdict(self.position), "metrics_bytes": length})
        self._write_adapter("last")
        self._write_best()

    def _write_best(self) -> None:
        """Write the current adapter as the best one, if it is."""
        p = self.position
        if p.best is not None and p.best_step == p.step and p.phase != "done":
            self._write_adapter("start" if p.phase == "sft" and self.stage_b is not None else "best")

    def _write_adapter(self, name: str) -> None:
        if self.run.writer:
            self.engine.save_adapter(self.run.folder / name)
