"""Training a run: supervised until the held-out loss stops falling, then GRPO; saved and resumed exactly.

The position of a run is a handful of numbers, because every step is a function of (seed, phase, step); see
`proactor.training.steps`. The order of writes makes a killed run resumable; see `proactor.training.runs`.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

from pydantic import TypeAdapter, ValidationError

from proactor.config import GRPOStage, RunConfig, SFTStage
from proactor.evaluation.play import Evaluation
from proactor.files import first_problem
from proactor.progress import Progress, Quiet, Stopped
from proactor.rewards import load_reward
from proactor.scoring.metrics import FIELDS
from proactor.sole_writer import sole_writer
from proactor.tables import plain_name
from proactor.training.judge_watch import JudgeWatch
from proactor.training.outcome import outcome
from proactor.training.runs import Run, RunError
from proactor.training.stats import sample_rows
from proactor.training.steps import Row, grpo_step, held_out_loss, sft_step
from proactor.training.summary import compare
from proactor.training.workspace import Workspace


@dataclass(slots=True)
class Position:
    """Where a run is.

    ``step`` counts within the phase, ``update`` over all phases. ``best`` is the lowest held-out loss (sft)
    or the highest dev metric (grpo), reached after ``best_step``; ``stale`` counts checks since then.
    """

    phase: str = "sft"
    step: int = 0
    update: int = 0
    best: float | None = None
    best_step: int = 0
    stale: int = 0
    seconds: float = 0.0


def read_position(record: dict[str, Any], run: Run) -> tuple[Position, int]:
    """(position, length of the rows in bytes) of a state's record. RunError where it holds something else."""
    length = record.pop("metrics_bytes", None)
    missing = {"phase", "step", "update"} - record.keys() | ({"metrics_bytes"} if length is None else set())
    if missing:
        raise RunError(f"{run.state}: not the record of a run ({min(missing)} is missing)")
    try:
        return _POSITION.validate_python(record), int(length)
    except ValidationError as error:
        raise RunError(f"{run.state}: not the record of a run ({first_problem(error)})") from None


def evaluation_row(evaluation: Evaluation) -> Row:
    """An evaluation's metrics, without the counts behind them, under ``eval_*``."""
    metrics = {f"eval_{k}": v for k, v in evaluation.metrics.items() if k not in FIELDS}
    unread_graphs = evaluation.unread_graph_share
    return {
        **metrics,
        "eval_unparsed_share": evaluation.unparsed_share,
        "eval_truncated_share": evaluation.truncated_share,
        **({} if unread_graphs is None else {"eval_unread_graph_share": unread_graphs}),
    }


_POSITION = TypeAdapter(Position)


class Training:
    """The training of a run: its workspace, folder and position."""

    def __init__(self, workspace: Workspace, run: Run, stopping: list[int], ui: Progress) -> None:
        self.workspace, self.run, self.stopping, self.ui = workspace, run, stopping, ui
        self.config, self.engine = workspace.config, workspace.engine
        self.position = Position("sft" if self.config.sft else "grpo")
        self._saved_at = time.perf_counter()

    def restore(self) -> None:
        """Go back to the last save, if there is one.

        Restores state, rows and samples, and writes the best adapter if the killed run had not yet done so.
        """
        if not self.run.state.exists():
            self.run.rewind(0, 0)
            return
        record = self.engine.resume(self.run.state, say=self.ui.say)
        self.position, length = read_position(record, self.run)
        self.run.rewind(length, self.position.update)
        self._write_best()
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
        """The supervised phase.

        The adapter of the lowest held-out loss ends in `start` (in `best` if no GRPO follows).
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
            self._save_if_due(checked)

    def reinforce(self, stage: GRPOStage) -> None:
        """The GRPO phase, from the supervised phase's best adapter with a fresh optimizer.

        The adapter that did best on dev ends in `best`.
        """
        if self.position.phase == "sft":
            self._begin_grpo()
        p = self.position
        watch = JudgeWatch(stage, self.workspace.why_dropped)
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
                ranks = self.engine.gather(sample_rows(groups), "samples")
                rows = [row for rank in ranks for row in rank]
                rows.sort(key=lambda row: (row["dialogue"], row["turn"], row["sample"]))  # whoever drew them
                self.run.write_samples("grpo", p.update, rows)
            watch.note(row, last=p.step == stage.steps)
            checked = p.step % stage.eval_every == 0 or p.step == stage.steps
            if checked:
                self._check_metric()
            dropped = (
                f", {row['groups_dropped']:.0f} groups without a verdict" if row["groups_dropped"] else ""
            )
            skipped = ", no update" if row["skipped_update"] else ""
            best = f"best {plain_name(self.config.eval.metric)} on dev {p.best:.3f}"
            self.ui.step(f"reward {row['reward_mean']:.3f}, {best}{dropped}{skipped}")
            self._save_if_due(checked)

    def _begin_grpo(self) -> None:
        self.engine.barrier("adapter of the SFT stage")
        self.engine.load_adapter(self.run.start)  # with a fresh optimizer
        self.position = Position("grpo", update=self.position.update, seconds=self.position.seconds)

    def _check_loss(self, stage: SFTStage) -> None:
        loss = held_out_loss(self.workspace, stage)
        self._log("eval", {"held_out_loss": loss})
        self._note_check(loss if math.isfinite(loss) else math.inf, lower_is_better=True)

    def _check_metric(self) -> None:
        evaluation = self.workspace.play(self.workspace.dev, "playing dev dialogues")
        self._log("eval", evaluation_row(evaluation))
        self._note_check(evaluation.metrics[self.config.eval.metric] or 0.0)

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
        tokens = row["tokens_sampled" if "tokens_sampled" in row else "tokens_trained"]
        self._log(kind, {**row, "seconds": seconds, "tokens_per_second": tokens / seconds})

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
            self._write_adapter("start" if p.phase == "sft" and self.config.grpo is not None else "best")

    def _write_adapter(self, name: str) -> None:
        if self.run.writer:
            self.engine.save_adapter(self.run.folder / name)


def train(config: RunConfig, *, resume: bool = False, fresh: bool = False, ui: Progress | None = None) -> Row:
    """Run ``config`` to its end; returns the comparison of start and best on the test dialogues.

    ``resume``: continue from the last save, or from the beginning without one. ``fresh``: replace the run in
    the folder. Raises Stopped after SIGTERM or Ctrl-C, once the state is saved; ConfigError, RunError,
    SourceError, RewardError or EngineError for a config that cannot run; WriterError while another process
    writes into the folder.
    """
    if config.sft is None and config.grpo is None:
        raise RunError(f"{config.name}: the config has neither sft nor grpo: nothing to train")
    load_reward(config.reward, config.reward_options)  # refuses what cannot work before anything is written
    rank = int(os.environ.get("RANK", "0"))
    run = Run(config.folder, writer=rank == 0)
    with sole_writer(run.folder) if run.writer else nullcontext():
        run.begin(config, resume=resume, fresh=fresh)
        return _train(config, run, resume, ui or Quiet())


def _train(config: RunConfig, run: Run, resume: bool, ui: Progress) -> Row:
    """The run in a folder that is this process's own."""
    workspace = Workspace.open(config, ui)
    with workspace.engine.together("training"):
        return _run(workspace, run, resume, ui)


def _run(workspace: Workspace, run: Run, resume: bool, ui: Progress) -> Row:
    """The stages of a run, and the comparison at its end."""
    config = workspace.config
    if config.start is not None:
        workspace.engine.load_adapter(config.start)
    initial = workspace.engine.state_dict()
    report_data(workspace, ui)
    with stop_signals() as signals:
        training = Training(workspace, run, signals, ui)
        try:
            if resume:
                training.restore()
            training.go()
        finally:
            workspace.close()
    rows = run.rows() if run.writer else []
    result = workspace.engine.gather(outcome(rows, config.eval.metric), "end of training")[0]
    if result is not None:
        ui.say(str(result))
    if not config.eval.final:
        return {}
    return compare(workspace, run, initial, result, seconds=training.position.seconds)


def report_data(workspace: Workspace, ui: Progress) -> None:
    """Say how many dialogues each part has, how many were left out, and whether token limits cut answers."""
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
def stop_signals() -> Iterator[list[int]]:
    """The list of signals received: the first SIGTERM or Ctrl-C. A second one ends the process at once.

    Only the main thread may set handlers: in any other thread the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    old = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handler(number: int, frame: FrameType | None) -> None:
        received.append(number)
        for other, previous in old.items():
            signal.signal(other, previous)

    for number in old:
        signal.signal(number, handler)
    try:
        yield received
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)
