"""``proactor train --dry-run``, and what ``proactor plan --data`` says of a run: plans from a run's data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from proactor.commands.common import UsageError, console, terminal

if TYPE_CHECKING:
    from proactor.config import RunConfig
    from proactor.config_base import RunBase
    from proactor.engine import ModelPlan, Rates
    from proactor.training.run_plan import Answers, RunPlan, RunPlanner, StagePlan

TOKENIZER = "a folder with the model's tokenizer, where the model is a name alone"


def dry_run(
    settings: RunBase,
    gpu: float | None,
    rates: tuple[float | None, float | None],
    ranks: int | None,
    tokenizer: Path | None,
    pretrain: str,
) -> None:
    """Read the data, plan, and print what the run will compute. ``rates``: (TFLOP/s, GB/s), None: not given.

    ``pretrain``: the command that builds the run's small model, to name where it is missing. Raises
    UsageError for a run in an environment, and what planning raises.
    """
    from proactor.config import RunConfig

    if not isinstance(settings, RunConfig):
        raise UsageError("--dry-run plans runs on dialogues; how long episodes get is not known before")
    if settings.sft is None and settings.grpo is None:
        raise UsageError(f"{settings.name}: the config has neither sft nor grpo: nothing to train")
    count = ranks or int(os.environ.get("WORLD_SIZE", "1"))
    from proactor.engine import plan_here, plan_model

    place, lora, options = _shapes(settings, tokenizer, pretrain), settings.lora, settings.engine
    model = plan_here(place, lora, options) if gpu is None else plan_model(place, gpu, lora, options)
    with terminal() as ui:
        ui.say("reading the data")
        planner = open_planner(settings, model, tokenizer)
        lengths: tuple[Answers, ...] = ("wanted", "longest")
        wanted, longest = (planner.plan(model, answers, count) for answers in lengths)
    where = "this machine's CPU" if model.memory is None else f"{model.memory.total / 1e9:.0f} GB"
    title = f"{settings.name} on {settings.model}, a rank of {count}, {where}"
    table = Table(title=f"{escape(title)}: computed from data and shapes, nothing was run")
    for name in ("", "answers as wanted", "answers of max_tokens"):
        table.add_column(name, justify="right" if name else "left")
    both = [_lines(model, plan) for plan in (wanted, longest)]
    for name in dict.fromkeys([*both[0], *both[1]]):
        table.add_row(name, *(lines.get(name, "–") for lines in both))
    assumed = _rates(model, gpu, rates)
    if assumed is not None:
        _add_time(table, [plan.seconds(assumed) for plan in (wanted, longest)])
    console.print(table)
    _notes(wanted, assumed)


def open_planner(settings: RunConfig, model: ModelPlan, tokenizer: Path | None) -> RunPlanner:
    """The run's data, encoded by the tokenizer of its model. Raises UsageError where there is none."""
    from proactor.engine import read_outline
    from proactor.training.run_plan import RunPlanner

    place = settings.model if tokenizer is None else tokenizer
    chat = read_outline(place, settings.engine.revision if tokenizer is None else None).chat
    if chat is None:
        raise UsageError(f"{place}: the folder holds no tokenizer; --tokenizer FOLDER names one that does")
    return RunPlanner.open(settings, chat, model.config.context_length)


def stage_lines(stage: StagePlan) -> dict[str, str]:
    """What is known of a mean step of a stage, by name; each name says that it is computed."""
    name, count = f"{stage.name} step", len(stage.training)
    lines = {
        f"{name}: tokens computed": f"{stage.mean('tokens'):,.0f}",
        f"{name}: without sharing": f"{stage.mean('flat'):,.0f}",
        f"{name}: computed again": f"{stage.mean('again'):,.0f}",
    }
    if reference := stage.mean("reference"):
        lines[f"{name}: adapter off"] = f"{reference:,.0f}"
    lines[f"{name}: passes with gradient"] = f"{stage.mean('chunks'):,.1f}"
    lines[f"{name}: peak of {count} planned"] = gib(stage.peak)
    shares = stage.shares()
    lines[f"{name}: operations"] = f"{stage.mean('operations'):.2e}"
    lines[f"{name}: {', '.join(shares)}"] = " ".join(f"{share:.0%}" for share in shares.values())
    if stage.sampling:
        lines[f"{name}: prompt tokens sampled from"] = f"{stage.drawn('prompts'):,.0f}"
        lines[f"{name}: tokens drawn"] = f"{stage.drawn('drawn'):,.0f}"
    return lines


def gib(size: float) -> str:
    """Bytes for a table."""
    return f"{size / 2**30:.1f} GiB"


def _shapes(settings: RunConfig, tokenizer: Path | None, pretrain: str) -> str | Path:
    """Where the model's shapes come from: its folder, a known name, or the Hub's copy of its config."""
    from proactor.engine import read_outline

    if Path(settings.model).is_dir() or tokenizer is not None:
        return settings.model
    if settings.pretrain is not None:
        raise UsageError(f"model {settings.model}: not there yet; this builds it: {pretrain}")
    return read_outline(settings.model, settings.engine.revision).folder


def _lines(model: ModelPlan, plan: RunPlan) -> dict[str, str]:
    """The table's column for one length of answers, times left out."""
    f = model.footprint
    lines = {"weights": gib(f.weights), "adapter, gradient, optimizer": gib(f.adapter + f.optimizer)}
    if model.budgets.tokens is not None:
        lines["tokens of KV"] = f"{model.budgets.tokens:,}"
    for stage in plan.stages:
        lines |= stage_lines(stage)
    return lines


def _rates(model: ModelPlan, gpu: float | None, given: tuple[float | None, float | None]) -> Rates | None:
    """The rates that time is projected with; None where none are known."""
    from proactor.engine import Rates, measure_rates

    tflops, gigabytes = given
    if tflops is not None and gigabytes is not None:
        return Rates(tflops * 1e12, gigabytes * 1e9, "given by --tflops and --bandwidth")
    if tflops is not None or gigabytes is not None:
        raise UsageError("--tflops and --bandwidth: a projection needs both")
    return None if gpu is not None else measure_rates(model.options)


def _add_time(table: Table, seconds: list[dict[str, float]]) -> None:
    """The rows of projected hours."""
    for part in dict.fromkeys([*seconds[0], *seconds[1]]):
        table.add_row(f"projected hours, at least: {part}", *(_hours(s.get(part, 0.0)) for s in seconds))
    table.add_row("projected hours, at least: the run", *(_hours(sum(s.values())) for s in seconds))


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:,.2f}"


def _notes(plan: RunPlan, rates: Rates | None) -> None:
    """What the table does not say."""
    sizes = ", ".join(f"{count} {name}" for name, count in plan.dialogues.items())
    dropped = sum(plan.dropped.values())
    left = f"; {dropped} left out, longer than the context" if dropped else ""
    looked_at = len(plan.stages[0].training)
    lines = [f"dialogues: {sizes}{left}. A step's figures are means of {looked_at} planned."]
    if rates is None:
        lines.append(
            "Hours are not projected: nothing is known of that card's rates (--tflops, --bandwidth)."
        )
    else:
        lines.append(
            f"Hours are a projection at {rates.product / 1e12:.3g} TFLOP/s and {rates.copy / 1e9:.3g} GB/s, "
            f"{rates.source}. Only products and moved bytes count; not rewards, judges, norms, saves."
        )
    for line in lines:
        console.print(line, markup=False, highlight=False)
