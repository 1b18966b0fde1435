"""``proactor plan``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from proactor.commands.common import Overrides, UsageError, console
from proactor.commands.dry_run import TOKENIZER, gib, open_planner, stage_lines

if TYPE_CHECKING:
    from proactor.config import RunConfig
    from proactor.engine import EngineConfig, LoRA, ModelPlan
    from proactor.training.run_plan import RunPlanner


def plan(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="a folder, or a name like qwen2.5-14b", show_default=False),
    ],
    overrides: Overrides = None,
    gpu: Annotated[
        list[float] | None,
        typer.Option(help="10^9 bytes of the card; may be given several times  \\[default: 24 48 80 141]"),
    ] = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="of the LoRA adapters; default: 8, or that of --data's run")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="tokens of the dialogue that is planned for")] = 4096,
    turns: Annotated[int, typer.Option(min=1, help="its turns, at each of which samples are drawn")] = 21,
    samples: Annotated[int, typer.Option(min=1, help="samples a turn")] = 8,
    tokens: Annotated[int, typer.Option(min=1, help="tokens a sample")] = 100,
    data: Annotated[
        Path | None, typer.Option(metavar="CONFIG", help="plan the steps of this run, by its own dialogues")
    ] = None,
    tokenizer: Annotated[Path | None, typer.Option(help=f"with --data: {TOKENIZER}")] = None,
) -> None:
    """What a model fits on which card: weights, cache, and how a dialogue's tree is trained.

    Computed from shapes; no card, and for a known name no files. KEY=VALUE sets options of the engine
    (kv_tokens=65536), before those of --data's run. The last rows are of a dialogue of --context tokens with
    --samples samples of --tokens at each of its --turns; with --data of the trees that a run's steps make,
    answers of max_tokens.
    """
    from proactor.config_file import load_config
    from proactor.engine import EngineError, plan_model

    if bare := [item for item in overrides or () if "=" not in item]:
        raise UsageError(f"{bare[0]!r}: options of the engine are written KEY=VALUE")
    options = dict(item.split("=", 1) for item in overrides or ())
    cards = gpu or [24.0, 48.0, 80.0, 141.0]
    settings = None if data is None else load_config(data, [f"model={model}"])
    config, lora = _planned_for(settings, options, rank)
    plans: dict[float, ModelPlan] = {}
    refusals: dict[float, str] = {}
    for card in cards:
        try:
            plans[card] = plan_model(model, card, lora, config)
        except EngineError as error:
            refusals[card] = str(error)
    if not plans:
        raise UsageError(next(iter(refusals.values())))
    columns = [_held(p) for p in plans.values()]
    if settings is None:
        tree = (context + turns * samples * tokens, context)
        columns = [column | _tree(p, tree) for column, p in zip(columns, plans.values(), strict=True)]
    else:
        columns = [
            column | steps
            for column, steps in zip(columns, _steps(settings, tokenizer, plans.values()), strict=True)
        ]
    table = Table(title=f"{escape(str(model))}: computed from its shape, not measured")
    table.add_column("")
    for card in plans:
        table.add_column(f"{card:g} GB", justify="right")
    for name in dict.fromkeys(name for column in columns for name in column):
        table.add_row(name, *(column.get(name, "–") for column in columns))
    console.print(table)
    for line in refusals.values():
        console.print(line, markup=False, highlight=False)


def _planned_for(
    settings: RunConfig | None, options: dict[str, str], rank: int | None
) -> tuple[EngineConfig, LoRA]:
    """The engine's config and the adapter: those of the run, if one is given, below the command line's."""
    from proactor.engine import EngineConfig, LoRA

    run = {} if settings is None else settings.engine.model_dump(exclude_unset=True)
    lora = LoRA(rank=8, alpha=16) if settings is None else settings.lora
    if rank is not None:
        lora = LoRA.model_validate(lora.model_dump(exclude_unset=True) | {"rank": rank, "alpha": 2 * rank})
    return EngineConfig.from_options(run | options), lora


def _held(plan: ModelPlan) -> dict[str, str]:
    """What the table says of a model on one card."""
    f, budgets = plan.footprint, plan.budgets
    return {
        "weights": gib(f.weights),
        "adapter, gradient, optimizer": gib(f.adapter + f.optimizer),
        "left for sampling and training": gib(budgets.arena),
        "tokens of KV": f"{budgets.tokens or 0:,}",
        "rows of a sampler step": f"{budgets.step_rows:,}",
        "rows of a tree in one pass": f"{plan.one_pass:,}",
        "rows of a tree by turns, at least": f"{plan.in_chunks:,}",
    }


def _tree(plan: ModelPlan, tree: tuple[int, int]) -> dict[str, str]:
    """What it says of a dialogue's tree of (rows, rows of its context)."""
    from proactor.engine import EngineError

    name = f"a dialogue of {tree[0]:,} rows"
    try:
        found = plan.tree(*tree)
    except EngineError:
        return {
            name: "does not fit",
            "  rows at a time": "–",
            "  rows computed twice": "–",
            "  bytes beside the model": "–",
        }
    by_turns = found.chunk < found.rows
    return {
        name: "by turns" if by_turns else "one pass",
        "  rows at a time": f"{found.chunk:,}",
        "  rows computed twice": f"{found.kept:,}" if by_turns else "0",
        "  bytes beside the model": gib(found.bytes),
    }


def _steps(
    settings: RunConfig, tokenizer: Path | None, plans: Iterable[ModelPlan]
) -> Iterator[dict[str, str]]:
    """What it says of the steps of the run ``settings``, on each card."""
    planner: RunPlanner | None = None
    for plan in plans:
        planner = planner or open_planner(settings, plan, tokenizer)
        lines: dict[str, str] = {}
        for stage in planner.plan(plan, "longest").stages:
            lines |= stage_lines(stage)
        yield lines
