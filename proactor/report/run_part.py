"""What every page tells of a run: its learning curves, the chosen step, facts and config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from proactor.report import curves
from proactor.report.curves import Trained
from proactor.report.rewards import RewardsApart
from proactor.report.stages import STAGES, reward_parts


def run_values(
    trained: Trained,
    headlines: Sequence[str],
    beside: Trained | None = None,
    apart: RewardsApart | None = None,
) -> dict[str, Any]:
    """Curves, the chosen step with its values on dev (of the metrics ``headlines``), facts and configs.

    ``beside``, ``apart``: as in `curves.sections`.
    """
    runs = [run for run in (beside, trained) if run is not None]
    check = trained.rows[trained.chosen] if beside is None and trained.chosen is not None else {}
    told = [(run.record.name, run.record.chosen) for run in runs]
    return {
        "curves": curves.sections(trained, beside, apart),
        "marked": any(run.chosen is not None for run in runs),
        "chosen": [
            f"{'After training' if beside is None else name}: {chosen}".replace("->", "→")
            for name, chosen in told
            if chosen is not None
        ],
        "on_dev": {
            key: value for key in headlines if isinstance(value := check.get(f"eval_{key}"), int | float)
        },
        "two_runs": beside is not None,
        "only_beside": curves.only_in(beside.rows, trained.rows) if beside is not None else [],
        "stages": reward_parts(trained.rows) if beside is None else (),
        "stage_names": STAGES,
        **run_facts(runs),
    }


def run_facts(runs: Sequence[Trained]) -> dict[str, Any]:
    """Facts and configs of some runs."""
    return {
        "facts": [(run.record.name, run.record.facts()) for run in runs],
        "configs": [(run.record.name, run.record.config_text) for run in runs if run.record.config_text],
    }
