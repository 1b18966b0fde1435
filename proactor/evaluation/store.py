"""evaluations.json: the dialogues of a run and how each system played them. Reports are built from it.

Numbers have full precision, so that a rebuilt report equals the first one. The file is replaced atomically.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from proactor.dialogue import Action, Dialogue
from proactor.engine import atomic_file
from proactor.evaluation.play import Evaluation, Replay
from proactor.files import SourceError, first_problem, read_json
from proactor.scoring.metrics import FIELDS, Contribution, aggregate, score_dialogue

VERSION = 2
"""2 added sums: first-fire classes, turns saved, utility. A file of version 1 is scored again when read."""


class _Replay(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dialogue_id: str
    outputs: dict[int, str]
    actions: dict[int, tuple[Action, ...]]
    rewards: dict[int, float]


class _Contribution(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dialogue: str
    sums: dict[str, float]


class _Evaluation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    metrics: dict[str, float | None]
    contributions: list[_Contribution]
    replays: list[_Replay]
    unparsed_share: float
    truncated_share: float
    unread_graph_share: float | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int
    dialogues: list[Dialogue]
    evaluations: dict[str, _Evaluation]


def save_evaluations(
    path: str | Path, dialogues: Sequence[Dialogue], evaluations: Mapping[str, Evaluation]
) -> None:
    """Write ``evaluations``, by system, and the dialogues that they played."""
    value = {
        "version": VERSION,
        "dialogues": [d.model_dump(mode="json") for d in dialogues],
        "evaluations": {name: _dump(evaluation) for name, evaluation in evaluations.items()},
    }
    atomic_file(path, json.dumps(value, separators=(",", ":")).encode())


def load_evaluations(path: str | Path) -> tuple[list[Dialogue], dict[str, Evaluation]]:
    """The dialogues, and the evaluations by system.

    Raises SourceError, one line, with the file and the fault, for a file that is missing or malformed.
    """
    path = Path(path)
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("version") not in (1, VERSION):
        raise SourceError(f"{path}: version: {raw.get('version')!r}, this program reads {VERSION}")
    try:
        read = _File.model_validate(raw)
    except ValidationError as error:
        raise SourceError(f"{path}: {first_problem(error, top='top level')}") from None
    known = {d.id for d in read.dialogues}
    for name, evaluation in read.evaluations.items():
        where = f"{path}: evaluations.{name}"
        for i, contribution in enumerate(evaluation.contributions if read.version == VERSION else ()):
            if mismatch := set(FIELDS) ^ contribution.sums.keys():
                raise SourceError(f"{where}.contributions.{i}.sums: {min(mismatch)}: missing or unknown")
        for i, replay in enumerate(evaluation.replays):
            if replay.dialogue_id not in known:
                raise SourceError(f"{where}.replays.{i}: no dialogue {replay.dialogue_id!r}")
    evaluations = {name: _load(evaluation) for name, evaluation in read.evaluations.items()}
    if read.version < VERSION:
        for older in evaluations.values():
            _score_again(read.dialogues, older)
    return read.dialogues, evaluations


def find_system(evaluations: Mapping[str, Evaluation], system: str, where: str | Path) -> Evaluation:
    """One system of a run's evaluations. Raises SourceError, listing them, where it is none of them."""
    if system not in evaluations:
        raise SourceError(f"{where}: no system {system!r}: one of {', '.join(evaluations)}")
    return evaluations[system]


def _score_again(dialogues: Sequence[Dialogue], evaluation: Evaluation) -> None:
    """Recompute sums and metrics of an older version from its replays, with the rewards it has."""
    by_id = {d.id: d for d in dialogues}
    unparsed = {c.dialogue: int(c.sums.get("unparsed", 0)) for c in evaluation.contributions}
    evaluation.contributions = [
        score_dialogue(
            by_id[r.dialogue_id], r.actions, rewards=r.rewards, unparsed=unparsed.get(r.dialogue_id, 0)
        )
        for r in evaluation.replays
    ]
    evaluation.metrics = aggregate(evaluation.contributions)


def _dump(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "metrics": evaluation.metrics,
        "contributions": [{"dialogue": c.dialogue, "sums": c.sums} for c in evaluation.contributions],
        "replays": [
            {
                "dialogue_id": r.dialogue_id,
                "outputs": r.outputs,
                "actions": {
                    turn: [a.model_dump(mode="json") for a in actions] for turn, actions in r.actions.items()
                },
                "rewards": r.rewards,
            }
            for r in evaluation.replays
        ],
        "unparsed_share": evaluation.unparsed_share,
        "truncated_share": evaluation.truncated_share,
        "unread_graph_share": evaluation.unread_graph_share,
    }


def _load(read: _Evaluation) -> Evaluation:
    return Evaluation(
        metrics=read.metrics,
        contributions=[Contribution(c.dialogue, c.sums) for c in read.contributions],
        replays=[Replay(r.dialogue_id, r.outputs, r.actions, r.rewards) for r in read.replays],
        unparsed_share=read.unparsed_share,
        truncated_share=read.truncated_share,
        unread_graph_share=read.unread_graph_share,
    )
