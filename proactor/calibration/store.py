"""Scoring the dialogues of a run for thresholds, in pieces that survive a kill; the files of calibration.

runs/<name>/
  scores/<part>.json    the score table and all probabilities of a part, growing by pieces; starts anew
                        with another model, adapter, prompt or data
  thresholds.json       thresholds chosen on dev
  tradeoff.json         the trade-off on test
  probabilities.json    all probabilities of a few test dialogues, for the report
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from proactor.calibration.probabilities import DialogueProbabilities
from proactor.calibration.score_table import ScoreTable, score_table
from proactor.dialogue import Dialogue
from proactor.engine import atomic_file, read_regular
from proactor.files import read_validated
from proactor.training.workspace import Workspace

PIECE = 16
"""Dialogues scored between two saves."""


class Scores(BaseModel):
    """The table and the probabilities of some dialogues; ``made_by``: hash of everything they depend on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    made_by: str
    table: ScoreTable
    probabilities: tuple[DialogueProbabilities, ...] = ()


def score_part(
    workspace: Workspace, part: str, dialogues: Sequence[Dialogue], adapter: Path | None, floor: float
) -> Scores:
    """Score ``dialogues`` as the part ``part``, continuing an interrupted call.

    ``adapter``: the folder of the adapter that the engine has loaded; None for the bare model.
    """
    file = workspace.config.folder / "scores" / f"{part}.json"
    made_by = fingerprint(workspace, dialogues, adapter, floor)
    scores = _read_scores(file, made_by)
    if scores is None:
        scores = Scores(made_by=made_by, table=ScoreTable(dialogues=(), floor=floor))
    done = set(scores.table.dialogues)
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
        scores = Scores(
            made_by=made_by,
            table=join_tables(scores.table, table),
            probabilities=(*scores.probabilities, *probabilities),
        )
        atomic_file(file, scores.model_dump_json().encode())
        for dialogue in piece:
            workspace.ui.step(dialogue.id)
    return scores


def join_tables(first: ScoreTable, second: ScoreTable) -> ScoreTable:
    """One table with the dialogues of both."""
    return first.model_copy(
        update={
            "dialogues": (*first.dialogues, *second.dialogues),
            "rows": (*first.rows, *second.rows),
            "unread": first.unread + second.unread,
        }
    )


def fingerprint(
    workspace: Workspace, dialogues: Sequence[Dialogue], adapter: Path | None, floor: float
) -> str:
    """Hash of what the scores of ``dialogues`` depend on: model, adapter, what the prompts say, and limits.

    Windows are not among it: they change no prompt.
    """
    config, encoder = workspace.config, workspace.encoder
    settings = {
        "model": config.model,
        "files": _stamps(Path(config.model)),
        "lora": config.lora.model_dump(mode="json"),
        "engine": config.engine.model_dump(mode="json"),
        "prompt": asdict(encoder.style) | {"opening": encoder.style.opening},
        "catalog": encoder.catalog.model_dump(mode="json"),
        "max_tokens": config.eval.max_tokens,
        "floor": floor,
    }
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for dialogue in dialogues:
        digest.update(dialogue.model_dump_json(include={"id", "turns", "tools"}).encode() + b"\n")
    for file in sorted(adapter.iterdir()) if adapter is not None else ():
        if file.is_file():
            digest.update(file.name.encode() + read_regular(file))
    return digest.hexdigest()


def _stamps(model: Path) -> list[tuple[str, int, int]]:
    """(name, size, time of change) of each file of a model's folder, whose bytes are too many to hash; none
    for a hub id.
    """
    files = sorted(f for f in model.iterdir() if f.is_file()) if model.is_dir() else []
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]


def _read_scores(file: Path, made_by: str) -> Scores | None:
    """The scores in ``file``; None when it is missing, unreadable, or made by something else."""
    try:
        scores = Scores.model_validate_json(read_regular(file))
    except (FileNotFoundError, ValidationError):
        return None
    return scores if scores.made_by == made_by else None


def save_probabilities(path: Path, probabilities: Sequence[DialogueProbabilities]) -> None:
    """Write probabilities as one JSON list, atomically."""
    atomic_file(path, _LIST.dump_json(list(probabilities)))


def load_probabilities(path: Path) -> list[DialogueProbabilities]:
    """Read what `save_probabilities` wrote. Raises SourceError, naming file and key, otherwise."""
    return read_validated(path, _LIST)


_LIST = TypeAdapter(list[DialogueProbabilities])
