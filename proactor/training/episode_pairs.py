"""Two runs in an environment on the same test tasks, paired by task."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proactor.files import SourceError
from proactor.methods.user_metrics import KEYS, Outcome, metrics, paired_change
from proactor.training.episode_rows import BeforeAfter, read_before_after
from proactor.training.summary import interval_values


def compare_episodes(
    folders: Sequence[Path], systems: Sequence[str], *, resamples: int = 2000
) -> dict[str, Any]:
    """``systems``: the metrics of one side (``before`` or ``after``) of each of two runs; ``difference``:
    second - first, with paired intervals over tasks; ``tasks``: their number.

    Raises SourceError where a run has no test episodes, has no such side, or another measure of success than
    the other; ProactorError where one lacks a task of the other.
    """
    read = [read_tested(folder) for folder in folders]
    first, second = (_outcomes(*place) for place in zip(folders, read, systems, strict=True))
    if read[0].success != read[1].success:
        raise SourceError(
            f"{folders[1]}: a task is solved at a score of {read[1].success}, in {folders[0]} at "
            f"{read[0].success}: evaluate both by one eval.success"
        )
    return {
        "systems": [metrics(first), metrics(second)],
        "difference": interval_values(paired_change(first, second, KEYS, resamples=resamples)),
        "tasks": len(second),
    }


def read_tested(folder: Path) -> BeforeAfter:
    """The test episodes of a run. Raises SourceError where it has none."""
    if (tested := read_before_after(folder)) is None:
        raise SourceError(f"{folder / 'episodes.json'}: no such file: the run has not played its test tasks")
    return tested


def _outcomes(folder: Path, tested: BeforeAfter, system: str) -> list[Outcome]:
    if system == "before":
        return tested.outcomes("before")
    if system == "after":
        return tested.outcomes("after")
    raise SourceError(f"{folder}: no system {system!r}: one of before, after")
