"""``proactor calibrate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proactor.commands.common import (
    Adapter,
    ConfigFile,
    Overrides,
    Split,
    UsageError,
    check_split,
    console,
    dialogues_of,
    open_workspace,
    terminal,
    writing_to,
)

if TYPE_CHECKING:
    from proactor.calibration.probabilities import DialogueProbabilities
    from proactor.calibration.thresholds import Thresholds
    from proactor.calibration.tradeoff import TradeOffs
    from proactor.config import RunConfig
    from proactor.training.workspace import Workspace


def calibrate(
    config: ConfigFile,
    overrides: Overrides = None,
    adapter: Adapter = "best",
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.0, help="wrong fires allowed in 100 dialogues; default: eval.budget of the config"
        ),
    ] = None,
    split_dev: Annotated[str, typer.Option(help="part of the data to choose thresholds on")] = "dev",
    split: Split = "test",
    floor: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="lowest threshold to try, a probability")
    ] = 0.02,
    exact: Annotated[
        bool,
        typer.Option(
            "--exact/--similarity",
            help="an action is right if all required values are, or if half of the values are",
        ),
    ] = True,
    heat: Annotated[
        int, typer.Option(min=0, help="number of dialogues whose probabilities are kept for the report")
    ] = 4,
) -> None:
    """Choose each tool's threshold within a budget of wrong fires, and report the trade-off on test.

    Writes thresholds.json, tradeoff.json and probabilities.json into the run's folder; of other dialogues
    or another adapter than the run's own, under a name that says which.

    An interrupted call continues.
    """
    from proactor.config_file import load_config

    settings = load_config(config, overrides or [])
    if split_dev == split:
        raise UsageError(
            f"--split {split}: thresholds chosen on a part say nothing about that part; take another "
            "--split-dev"
        )
    check_split(split_dev, "--split-dev")
    check_split(split)
    allowed = settings.eval.budget if budget is None else budget
    from proactor.calibration.store import save_probabilities
    from proactor.calibration.tradeoff import save_trade_offs
    from proactor.engine import atomic_file
    from proactor.training.evaluation_files import RunFiles

    with writing_to(settings, adapter):
        files = RunFiles.of(settings, config, overrides or [])
        workspace = open_workspace(settings, adapter)
        thresholds_file, trade_offs_file, probabilities_file = (
            files.calibration((split_dev, split), adapter, kind)
            for kind in ("thresholds", "tradeoff", "probabilities")
        )
        thresholds, trade_offs, shown = _score_and_choose(
            workspace, settings, adapter, split_dev, split, allowed, floor, exact, heat
        )
        if workspace.engine.rank == 0:
            atomic_file(thresholds_file, (thresholds.model_dump_json(indent=1) + "\n").encode())
            save_trade_offs(trade_offs_file, trade_offs)
            save_probabilities(probabilities_file, shown)
    if not console.quiet:
        _print_result(thresholds, trade_offs, split_dev, exact, trade_offs_file)


def _print_result(
    thresholds: Thresholds, trade_offs: TradeOffs, split_dev: str, exact: bool, trade_offs_file: Path
) -> None:
    """Print the table, the thresholds and where they went; a warning where they allow no fire."""
    from proactor.calibration.tradeoff import threshold_text, trade_off_table

    console.print(trade_off_table(trade_offs))
    fires = sum(t <= 1 for t in thresholds.tools.values())
    if not fires and thresholds.default > 1:
        console.print(
            f"warning: no threshold keeps to {thresholds.budget:g} wrong fires in 100 dialogues. With these "
            "the agent never acts: give a larger --budget, or train it further",
            markup=False,
        )
    console.print(
        f"chosen on {thresholds.dialogues} {split_dev} dialogues: "
        f"common {threshold_text(thresholds.default)}, "
        f"{fires} of {len(thresholds.tools)} tools with a threshold of their own may fire\n"
        f"{'all required values must be right' if exact else 'by similarity: half of the values suffice'}\n"
        f"{trade_offs_file}",
        markup=False,
    )


def _score_and_choose(
    workspace: Workspace,
    settings: RunConfig,
    adapter: str,
    split_dev: str,
    split: str,
    budget: float,
    floor: float,
    exact: bool,
    heat: int,
) -> tuple[Thresholds, TradeOffs, list[DialogueProbabilities]]:
    """Score both parts, choose on the first, report on the second; and some dialogues' probabilities."""
    from proactor.calibration.store import score_part
    from proactor.calibration.tradeoff import (
        calibrate_on_dev,
        collect_trade_offs,
        policies,
        single_point,
    )
    from proactor.dialogue.matching import SIMILAR
    from proactor.evaluation.breakdown import outputs_of
    from proactor.scoring.utility import needs_assent
    from proactor.training.adapters import OWN, adapter_digest, adapter_folder

    on_dev, on_test = dialogues_of(workspace, split_dev), dialogues_of(workspace, split)
    loaded, rule = adapter_folder(settings.folder, adapter), workspace.rule if exact else SIMILAR
    assent, resamples = needs_assent(workspace.encoder.catalog), settings.eval.resamples
    with terminal() as ui:
        workspace.ui = ui
        dev = score_part(workspace, split_dev, on_dev, loaded, floor)
        test = score_part(workspace, split, on_test, loaded, floor)
        played = workspace.play(on_test, f"playing {split}")
        ui.say(
            f"values not read: {dev.table.unread} of {len(dev.table.rows)} on {split_dev}, "
            f"{test.table.unread} of {len(test.table.rows)} on {split}"
        )
    thresholds, curves = calibrate_on_dev(
        dev.table, on_dev, test.table, on_test, assent, budget=budget, rule=rule, resamples=resamples
    )
    thresholds = thresholds.model_copy(
        update={
            "adapter": adapter if adapter in OWN else Path(adapter).resolve().name,
            "adapter_digest": adapter_digest(loaded),
        }
    )
    greedy = single_point(
        "greedy", on_test, outputs_of(played, on_test), assent, rule=rule, resamples=resamples
    )
    others = policies(on_test, assent, rule=rule, resamples=resamples)
    trade_offs = collect_trade_offs(split, on_test, budget, [*curves, greedy, *others], exact=exact)
    with_references = {d.id for d in on_test if d.references}
    shown = [p for p in test.probabilities if p.dialogue_id in with_references][:heat]
    return thresholds, trade_offs, shown
