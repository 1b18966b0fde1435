"""Training a run on dialogues; `training.stages` has the phases, and how they are saved and resumed."""

from __future__ import annotations

import os
from contextlib import nullcontext

from proactor.config import RunConfig
from proactor.evaluation.play import Evaluation
from proactor.progress import Progress, Quiet
from proactor.rewards import load_reward
from proactor.scoring.metrics import FIELDS
from proactor.sole_writer import sole_writer
from proactor.training.judge_watch import JudgeWatch
from proactor.training.loading import load_start
from proactor.training.outcome import outcome
from proactor.training.runs import Run, RunError
from proactor.training.stages import Stages
from proactor.training.stats import sample_rows
from proactor.training.steps import Row, grpo_step, held_out_groups, held_out_loss, sft_step
from proactor.training.stop_signals import stop_signals
from proactor.training.summary import compare
from proactor.training.workspace import Workspace


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


class Training(Stages):
    """The training of a run on dialogues: its workspace, folder and position."""

    def __init__(self, workspace: Workspace, run: Run, stopping: list[int], ui: Progress) -> None:
        super().__init__(workspace.config, workspace.engine, run, stopping, ui)
        self.workspace, self.sft, self.grpo = workspace, workspace.config.sft, workspace.config.grpo
        self._watch = JudgeWatch(self.grpo, workspace.why_dropped) if self.grpo is not None else None

    def sft_row(self, step: int) -> Row:
        """An update on the wanted answers of a batch of dialogues."""
        assert self.sft is not None, "the stage is in the config"
        return sft_step(self.workspace, self.sft, step)

    def held_out_loss(self) -> float:
        """Loss of the wanted answers on the dev dialogues."""
        assert self.sft is not None, "the stage is in the config"
        return held_out_loss(self.workspace, self.sft)

    def grpo_row(self, step: int) -> tuple[Row, list[Row]]:
        """An update on the sampled decisions of a batch of dialogues."""
        assert self.grpo is not None, "the stage is in the config"
        row, groups = grpo_step(self.workspace, self.grpo, step)
        return row, sample_rows(groups)

    def check(self) -> tuple[Row, float]:
        """Play the dev dialogues."""
        evaluation = self.workspace.play(self.workspace.dev, "playing dev dialogues")
        return evaluation_row(evaluation), evaluation.metrics[self.workspace.config.eval.metric] or 0.0

    def note(self, row: Row, last: bool) -> None:
        """Raises RewardError where a judge fails too often (`JudgeWatch`)."""
        if self._watch is not None:
            self._watch.note(row, last)

    def told(self, row: Row) -> str:
        """The reward, groups that were dropped, and whether there was an update."""
        dropped = f", {row['groups_dropped']:.0f} groups without a verdict" if row["groups_dropped"] else ""
        skipped = ", no update" if row["skipped_update"] else ""
        return f"reward {row['reward_mean']:.3f}{dropped}{skipped}"


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
        run.check(config, resume=resume, fresh=fresh)
        return _train(config, run, resume, fresh, ui or Quiet())


def _train(config: RunConfig, run: Run, resume: bool, fresh: bool, ui: Progress) -> Row:
    """The run in a folder that is this process's own."""
    workspace = Workspace.open(config, ui)
    engine = workspace.engine
    with engine.together("training"):
        load_start(engine, config)
        if config.sft is not None and not resume:
            held_out_groups(workspace, config.sft)  # refuses a dev part without an answer
        run.begin(config, resume=resume, fresh=fresh)
        run.keep_catalog(workspace.encoder.catalog)
        return _run(workspace, run, resume, ui)


def _run(workspace: Workspace, run: Run, resume: bool, ui: Progress) -> Row:
    """The stages of a run, and the comparison at its end."""
    config, initial = workspace.config, workspace.engine.state_dict()
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
