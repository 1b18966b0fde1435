"""Scoring the dialogues of a run for thresholds, in pieces that survive a kill, and what is left of it on
disk.

runs/<name>/
  scores/<part>.json    the score table and all probabilities of a part, growing by pieces; another adapter, prompt or data starts it anew
  thresholds.json       thresholds chosen on dev
  tradeoff.json         the trade-off on test
  probabilities.json    all probabilities of a few test dialogues, for the report
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from proactor.calibration.probabilities import DialogueProbabilities
from proactor.calibration.score_table import ScoreTable, score_table
from proactor.dialogue import Dialogue
from proactor.engine import atomic_file
from proactor.files import read_validated
from proactor.training.workspace import Workspace

PIECE = 16
"""Dialogues scored between two saves."""


class Scores(BaseModel):
    """The table and the probabilities of some dialogues; `made_by` names everything they depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_by: str
    table: ScoreTable
    probabilities: tuple[DialogueProbabilities, ...] = ()


def scored_part(
    workspace: Workspace, part: str, dialogues: Sequence[Dialogue], adapter: Path | None, floor: float
) -> Scores:
    """Score `dialogues` under the name `part`, going on where an earlier call was stopped. `adapter`: what
    the engine has loaded.
    """
    file = workspace.config.folder / "scores" / f"{part}.json"
    made_by = fingerprint(workspace, adapter, floor)
    found = _earlier(file, made_by) or Scores(made_by=made_by, table=ScoreTable(dialogues=(), floor=floor))
    done = set(found.table.dialogues)
    left = [d for d in dialogues if d.id not in done]
    workspace.ui.phase(f"scoring {part}", len(dialogues), len(dialogues) - len(left))
    for start in range(0, len(left), PIECE):
        piece = left[start : start + PIECE]
        table, probabilities = score_table(
            workspace.engine,
            workspace.encoder,
            piece,
            floor=floor,
            max_tokens=workspace.config.eval.max_tokens,
        )
        found = Scores(
            made_by=made_by,
            table=joined(found.table, table),
            probabilities=(*found.probabilities, *probabilities),
        )
        atomic_file(file, found.model_dump_json().encode())
        for dialogue in piece:
            workspace.ui.step(dialogue.id)
    return found


def joined(first: ScoreTable, second: ScoreTable) -> ScoreTable:
    """Both tables' dialogues as one table."""
    return first.model_copy(
        update={
            "dialogues": (*first.dialogues, *second.dialogues),
            "rows": (*first.rows, *second.rows),
            "unread": first.unread + second.unread,
        }
    )


def fingerprint(workspace: Workspace, adapter: Path | None, floor: float) -> str:
    """A hash of what the scores depend on besides the dialogues' ids: model, adapter, prompt, data and
    limits.
    """
    config = workspace.config
    told = {
        "model": config.model,
        "lora": config.lora.model_dump(mode="json"),
        "engine": config.engine.model_dump(mode="json"),
        "prompt": config.prompt.model_dump(mode="json"),
        "data": config.data.model_dump(mode="json"),
        "max_tokens": config.eval.max_tokens,
        "floor": floor,
    }
    digest = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode())
    for file in sorted(adapter.iterdir()) if adapter is not None else ():
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _earlier(file: Path, made_by: str) -> Scores | None:
    """Scores on disk that still hold; None when there are none, or others."""
    try:
        found = Scores.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError):
        return None
    return found if found.made_by == made_by else None


def save_probabilities(path: Path, found: Sequence[DialogueProbabilities]) -> None:
    """Write them as one JSON list, whole."""
    atomic_file(path, _LIST.dump_json(list(found)))


def load_probabilities(path: Path) -> list[DialogueProbabilities]:
    """Read them back. SourceError, one line, names the file and the key."""
    return read_validated(path, _LIST)


_LIST = TypeAdapter(list[DialogueProbabilities])
