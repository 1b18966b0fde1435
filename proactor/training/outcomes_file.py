"""`outcomes.json` of a run in an environment: how each test task ended, for the run's start and its end."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from pydantic import TypeAdapter

from proactor.engine import atomic_file
from proactor.files import read_validated
from proactor.methods.user_metrics import Outcome

_OUTCOMES = TypeAdapter(dict[str, list[Outcome]])


def save_outcomes(file: Path, outcomes: Mapping[str, Sequence[Outcome]]) -> None:
    """Write the outcomes of some systems, atomically."""
    rows = {name: [asdict(outcome) for outcome in of_system] for name, of_system in outcomes.items()}
    atomic_file(file, (json.dumps(rows, ensure_ascii=False) + "\n").encode())


def load_outcomes(file: Path, run: int = 0) -> dict[str, list[Outcome]]:
    """The outcomes in a file, as those of training run ``run``. Raises SourceError for another file."""
    read = read_validated(file, _OUTCOMES)
    return {name: [replace(o, run=run) for o in outcomes] for name, outcomes in read.items()}
