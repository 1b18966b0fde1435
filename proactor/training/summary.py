"""Where a run began against where it came, on dialogues it never saw, beside the trivial policies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proactor.evaluation.play import Evaluation, evaluate_policies
from proactor.evaluation.store import load_evaluations
from proactor.files import SourceError
from proactor.scoring.bootstrap import KEYS, Interval, paired_difference
from proactor.training.runs import Run
from proactor.training.workspace import Workspace


def compare(
    workspace: Workspace, run: Run, initial: Mapping[str, Any], seconds: float = 0.0
) -> dict[str, Any]:
    """Play the test dialogues with the adapter that GRPO began with (the initial state where there was no
    such stage) and with the best one.

    Writes `evaluations.json` and `summary.json`, and returns the summary: for each of before, after, never,
    always, values_seen the metrics in `bootstrap.KEYS`; `difference`: after - before with its paired
    bootstrap interval; `parsed`; `seconds`. The engine is left with the best adapter.
    """
    engine = workspace.engine
    engine.barrier()
    if workspace.config.grpo is not None:
        engine.load_adapter(run.start)
    else:
        engine.load_state_dict(initial)
    before = workspace.play(workspace.test, "before, on test")
    engine.load_adapter(run.best)
    after = workspace.play(workspace.test, "after, on test")
    named = {
        "before": before,
        "after": after,
        **evaluate_policies(workspace.test, workspace.turn_reward, workspace.costs),
    }
    summary = summarise(named, workspace.config.eval.resamples) | {"seconds": seconds}
    run.write_evaluations(workspace.test, named)
    run.write_summary(summary)
    return summary


def summarise(named: Mapping[str, Evaluation], resamples: int) -> dict[str, Any]:
    """The numbers of `summary.json`, `seconds` aside."""
    before, after = named["before"], named["after"]
    difference = paired_difference([before.contributions], [after.contributions], resamples=resamples)
    return {
        **{name: {key: evaluation.metrics[key] for key in KEYS} for name, evaluation in named.items()},
        "difference": {key: _interval(interval) for key, interval in difference.items()},
        "parsed": {"before": 1 - before.unparsed_share, "after": 1 - after.unparsed_share},
        "windows": {key: after.metrics[key] for key in ("null_share", "width_0_share")},
        "dialogues": len(after.contributions),
    }


def pooled(folders: Sequence[Path], resamples: int = 2000) -> dict[str, Any]:
    """Runs that differ by seed, pooled: before, after (means over runs) and their paired difference, one draw
    of dialogues for all runs.

    ``rising`` counts the runs in which each metric went up. Raises SourceError for a folder without
    evaluations, or with other dialogues than the first.
    """
    runs = [load_evaluations(folder / "evaluations.json")[1] for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if [c.dialogue for c in run["before"].contributions] != [
            c.dialogue for c in runs[0]["before"].contributions
        ]:
            raise SourceError(f"{folder}: holds other dialogues than {folders[0]}, so they cannot be pooled")
    sides = {name: [run[name].contributions for run in runs] for name in ("before", "after")}
    difference = paired_difference(sides["before"], sides["after"], resamples=resamples)
    values = {name: {k: [run[name].metrics[k] or 0.0 for run in runs] for k in KEYS} for name in sides}
    return {
        **{name: {k: sum(v) / len(v) for k, v in of.items()} for name, of in values.items()},
        "difference": {key: _interval(interval) for key, interval in difference.items()},
        "rising": {
            k: sum(a > b for b, a in zip(values["before"][k], values["after"][k], strict=True)) for k in KEYS
        },
        "runs": len(runs),
    }


def _interval(interval: Interval) -> dict[str, float]:
    return {"estimate": interval.estimate, "low": interval.low, "high": interval.high}
