"""The summary of a run: start and best adapter on test dialogues, beside trivial policies. Pooled runs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from proactor.evaluation.play import Evaluation, evaluate_policies
from proactor.evaluation.store import find_system, load_comparable, notes_of
from proactor.files import SourceError
from proactor.scoring.arrays import mean_defined
from proactor.scoring.bootstrap import KEYS, Interval, paired_difference
from proactor.training.origin import origin
from proactor.training.outcome import Outcome
from proactor.training.runs import Run
from proactor.training.workspace import Workspace


def compare(
    workspace: Workspace,
    run: Run,
    initial: Mapping[str, Any],
    chosen: Outcome | None = None,
    seconds: float = 0.0,
) -> dict[str, Any]:
    """Play the test dialogues with the start and the best adapter; the engine keeps the best.

    The start is the adapter that GRPO began with, or ``initial`` without a GRPO stage. Writes
    ``evaluations.json`` and ``summary.json``. Returns the summary: ``seconds``, ``chosen`` (the step of the
    best adapter), ``version``, ``commit``, ``machine`` (`origin`), ``parsed``, the metrics in
    `bootstrap.KEYS` of before, after and the trivial policies, and ``difference``: after - before paired.
    """
    engine = workspace.engine
    engine.barrier("best adapter")
    if workspace.config.grpo is not None:
        engine.load_adapter(run.start)
    else:
        engine.load_state_dict(initial)
    before = workspace.play(workspace.test, "before, on test")
    engine.load_adapter(run.best)
    after = workspace.play(workspace.test, "after, on test")
    evaluations = {
        "before": before,
        "after": after,
        **evaluate_policies(workspace.test, workspace.turn_reward, workspace.costs, workspace.rule),
    }
    summary = summarise(evaluations, workspace.config.eval.resamples) | {"seconds": seconds} | origin()
    if chosen is not None:
        summary["chosen"] = chosen.model_dump()
    run.write_evaluations(workspace.test, evaluations)
    run.write_summary(summary)
    return summary


def summarise(evaluations: Mapping[str, Evaluation], resamples: int) -> dict[str, Any]:
    """The values of `summary.json` that follow from the evaluations."""
    before, after = evaluations["before"], evaluations["after"]
    difference = paired_difference([before.contributions], [after.contributions], resamples=resamples)
    return {
        **{name: {key: evaluation.metrics[key] for key in KEYS} for name, evaluation in evaluations.items()},
        "difference": interval_values(difference),
        "parsed": {"before": 1 - before.unparsed_share, "after": 1 - after.unparsed_share},
        "windows": {key: after.metrics[key] for key in ("null_share", "width_0_share")},
        "dialogues": len(after.contributions),
    }


def pool_runs(folders: Sequence[Path], resamples: int = 2000) -> dict[str, Any]:
    """Runs that differ by seed, pooled: before and after (means over runs) and their paired difference.

    The bootstrap draws the same dialogues for all runs. A run where a metric is undefined is left out of its
    mean and of its difference. ``rising`` counts the runs in which each metric went
    up; ``notes``, where there are any, says which runs were scored again. Raises SourceError for a folder
    that is listed twice, has no evaluations, or other dialogues than the first, and as `load_comparable`.
    """
    places: set[Path] = set()
    for folder in folders:
        if folder.resolve() in places:
            raise SourceError(f"{folder}: is listed twice; one run does not count as two seeds")
        places.add(folder.resolve())
    files = [folder / "evaluations.json" for folder in folders]
    runs = [
        {name: find_system(run, name, file) for name in ("before", "after")}
        for file, (_, run) in zip(files, load_comparable(files), strict=True)
    ]
    tested = [[c.dialogue for c in run["before"].contributions] for run in runs]
    for folder, dialogues in zip(folders, tested, strict=True):
        if dialogues != tested[0]:
            raise SourceError(f"{folder}: holds other dialogues than {folders[0]}, so they cannot be pooled")
    sides = {name: [run[name].contributions for run in runs] for name in ("before", "after")}
    difference = paired_difference(sides["before"], sides["after"], resamples=resamples)
    values = {name: {k: [run[name].metrics[k] for run in runs] for k in KEYS} for name in sides}
    notes = notes_of(evaluation for run in runs for evaluation in run.values())
    return {
        **{name: {k: mean_defined(v) for k, v in side.items()} for name, side in values.items()},
        "difference": interval_values(difference),
        "rising": {k: count_above(values["after"][k], values["before"][k]) for k in KEYS},
        "runs": len(runs),
        **({"notes": notes} if notes else {}),
    }


def count_above(first: Sequence[float | None], second: Sequence[float | None]) -> int:
    """The number of runs in which ``first`` is above ``second``, both being defined."""
    return sum(a is not None and b is not None and a > b for a, b in zip(first, second, strict=True))


def interval_values(intervals: Mapping[str, Interval]) -> dict[str, dict[str, float | None]]:
    """Intervals by metric as plain values: estimate, low, high; None where undefined."""
    return {
        key: {
            name: value if math.isfinite(value) else None
            for name, value in (("estimate", i.estimate), ("low", i.low), ("high", i.high))
        }
        for key, i in intervals.items()
    }
