"""A run's numbers in Weights & Biases or Trackio, by the names they have in TensorBoard. Neither is imported.

    with wandb.init(project="support", name="first", mode="offline") as tracker:
        replay("runs/support", tracker)

    tracker = trackio.init(project="support", name="first", embed=False)
    sent = replay("runs/support", tracker)
    ...                                         # while the run goes on
    sent = replay("runs/support", tracker, sent)
    trackio.finish()

The run itself writes files alone, in the foreground: what a tracker does in its threads and over the network
cannot hold it up or end it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from proactor.training.runs import read_rows, scalars_of


class Tracker(Protocol):
    """What ``wandb.init`` and ``trackio.init`` return."""

    def log(self, values: dict[str, Any], *, step: int) -> Any:
        """Record values by name at a step; steps never fall."""


def replay(folder: str | Path, tracker: Tracker, sent: int = 0) -> int:
    """Log the rows of a run's ``metrics.jsonl`` beyond the first ``sent``; returns how many there are now.

    Rows of one step (training, evaluation) are logged one after another, under their own names. Raises
    SourceError where the folder holds no run, or a row that is not JSON.
    """
    rows = read_rows(Path(folder) / "metrics.jsonl")
    for row in rows[sent:]:
        tracker.log(scalars_of(row), step=int(row["step"]))
    return max(sent, len(rows))
