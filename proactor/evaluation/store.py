"""evaluations.json: the dialogues of a run and how each system played them. Reports are built from it.

Numbers have full precision, so that a rebuilt report equals the first one. The file is replaced atomically.
It holds the rule by which actions counted as right: the required parameters by tool.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from proactor.dialogue import Action, Dialogue
from proactor.dialogue.matching import EXACT, THETA, MatchRule
from proactor.engine import ProactorError, atomic_file
from proactor.evaluation.play import Evaluation, Replay
from proactor.files import SourceError, first_problem, read_json
from proactor.scoring.metrics import FIELDS, Contribution, aggregate, score_dialogue

VERSION = 3
"""2 added sums: first-fire classes, turns saved, utility. 3: exact values, with the rule in the file.

An older file is scored again when read. It does not say which parameters are required, so every value of the
reference is; each of its evaluations has a `note` that says so.
"""

OLDER_NOTE = "saved before exact values were scored; scored again with every value of a reference required"
SHARED_NOTE = "saved before exact values were scored; scored again with the required values of {rule}"


class _Replay(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dialogue_id: str
    outputs: dict[int, str]
    actions: dict[int, tuple[Action, ...]]
    rewards: dict[int, FiniteFloat]


class _Contribution(BaseModel):
    model_config = ConfigDict(extra="forbid")

    dialogue: str
    sums: dict[str, FiniteFloat]


class _Evaluation(BaseModel):
    model_config = ConfigDict(extra="forbid")

    metrics: dict[str, float | None]
    contributions: list[_Contribution]
    replays: list[_Replay]
    unparsed_share: FiniteFloat
    truncated_share: FiniteFloat
    unread_graph_share: FiniteFloat | None = None


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: int
    required: dict[str, list[str]] = Field(default_factory=dict)
    optional: bool = False
    theta: FiniteFloat = THETA
    dialogues: list[Dialogue]
    evaluations: dict[str, _Evaluation]


def save_evaluations(
    path: str | Path, dialogues: Sequence[Dialogue], evaluations: Mapping[str, Evaluation]
) -> None:
    """Write ``evaluations``, by system, and the dialogues that they played.

    Raises ProactorError if they were scored by different rules, or not by an exact one.
    """
    rule = _shared_rule(path, evaluations)
    value = {
        "version": VERSION,
        "required": {tool: sorted(names) for tool, names in (rule.required or {}).items()},
        "optional": rule.optional,
        "theta": rule.theta,
        "dialogues": [d.model_dump(mode="json") for d in dialogues],
        "evaluations": {name: _dump(evaluation) for name, evaluation in evaluations.items()},
    }
    atomic_file(path, json.dumps(value, separators=(",", ":")).encode())


def load_evaluations(path: str | Path) -> tuple[list[Dialogue], dict[str, Evaluation]]:
    """The dialogues, and the evaluations by system.

    Raises SourceError, one line, with the file and the fault, for a file that is missing or malformed.
    """
    path = Path(path)
    if not path.exists() and (path.parent / "config.yaml").exists():
        raise SourceError(f"{path}: no such file: the run has not ended, or its eval.final is false")
    raw = read_json(path)
    if isinstance(raw, dict) and raw.get("version") not in range(1, VERSION + 1):
        raise SourceError(f"{path}: version: {raw.get('version')!r}, this program reads {VERSION}")
    try:
        read = _File.model_validate(raw)
    except ValidationError as error:
        raise SourceError(f"{path}: {first_problem(error, top='top level')}") from None
    for name, evaluation in read.evaluations.items():
        _check_played(f"{path}: evaluations.{name}", read, evaluation)
    required = {tool: frozenset(names) for tool, names in read.required.items()}
    rule = MatchRule(read.theta, required, read.optional)
    evaluations = {name: _load(evaluation, rule) for name, evaluation in read.evaluations.items()}
    for loaded in evaluations.values():
        if read.version < VERSION:
            _score_again(read.dialogues, loaded, EXACT, f"{path}: {OLDER_NOTE}")
        else:  # what is undefined now may have been saved as 0
            loaded.metrics = aggregate(loaded.contributions)
    return read.dialogues, evaluations


def _check_played(where: str, file: _File, evaluation: _Evaluation) -> None:
    """Raise SourceError, beginning with ``where``, unless each dialogue was played once, at turns of its own,
    and has its sums. Files of older versions are scored again, so their sums may be others.
    """
    turns = {d.id: {turn.index for turn in d.turns} for d in file.dialogues}
    for i, replay in enumerate(evaluation.replays):
        if (name := replay.dialogue_id) not in turns:
            raise SourceError(f"{where}.replays.{i}: no dialogue {name!r}")
        if odd := (replay.outputs.keys() | replay.actions.keys() | replay.rewards.keys()) - turns[name]:
            raise SourceError(f"{where}.replays.{i}: dialogue {name!r} has no turn {min(odd)}")
    listed = [d.id for d in file.dialogues]
    parts = {"replays": [r.dialogue_id for r in evaluation.replays]}
    if file.version == VERSION:
        parts["contributions"] = [c.dialogue for c in evaluation.contributions]
        for i, contribution in enumerate(evaluation.contributions):
            if mismatch := set(FIELDS) ^ contribution.sums.keys():
                raise SourceError(f"{where}.contributions.{i}.sums: {min(mismatch)}: missing or unknown")
    for part, names in parts.items():
        if names != listed or not names:
            raise SourceError(f"{where}.{part}: not one for each of the dialogues, in their order")


def find_system(evaluations: Mapping[str, Evaluation], system: str, where: str | Path) -> Evaluation:
    """One system of a run's evaluations. Raises SourceError, listing them, where it is none of them."""
    if system not in evaluations:
        raise SourceError(f"{where}: no system {system!r}: one of {', '.join(evaluations)}")
    return evaluations[system]


def load_comparable(paths: Sequence[Path]) -> list[tuple[list[Dialogue], dict[str, Evaluation]]]:
    """`load_evaluations` of several files, all scored by one rule.

    Files of an older version are scored by the rule of the others, and their `note` names the file that it
    comes from. Raises SourceError as `load_evaluations` does, and for two files with different rules.
    """
    files = [load_evaluations(path) for path in paths]
    rules = {
        path: next(iter(evaluations.values())).rule
        for path, (_, evaluations) in zip(paths, files, strict=True)
        if evaluations and not any(e.note for e in evaluations.values())
    }
    first = next(iter(rules), None)
    for path, rule in rules.items():
        if first is not None and rule != rules[first]:
            raise SourceError(
                f"{path}: other parameters are required than in {first}, so what counts as right differs: "
                "evaluate both with one catalog"
            )
    if first is not None:
        for path, (dialogues, evaluations) in zip(paths, files, strict=True):
            for older in evaluations.values() if path not in rules else ():
                _score_again(dialogues, older, rules[first], f"{path}: {SHARED_NOTE.format(rule=first)}")
    return files


def notes_of(evaluations: Iterable[Evaluation]) -> list[str]:
    """The distinct notes of evaluations, in order."""
    return list(dict.fromkeys(e.note for e in evaluations if e.note))


def _shared_rule(path: str | Path, evaluations: Mapping[str, Evaluation]) -> MatchRule:
    rules = [e.rule for e in evaluations.values()]
    if any(rule != rules[0] or rule.required is None for rule in rules):
        raise ProactorError(f"{path}: evaluations by different rules, or by similarity, are not saved")
    return rules[0] if rules else EXACT


def _score_again(dialogues: Sequence[Dialogue], evaluation: Evaluation, rule: MatchRule, note: str) -> None:
    """Recompute sums and metrics by ``rule`` from the replays, with the rewards and utility saved."""
    by_id = {d.id: d for d in dialogues}
    saved = {c.dialogue: c.sums for c in evaluation.contributions}
    contributions = []
    for replay in evaluation.replays:
        old = saved.get(replay.dialogue_id, {})
        contribution = score_dialogue(
            by_id[replay.dialogue_id],
            replay.actions,
            rewards=replay.rewards,
            unparsed=int(old.get("unparsed", 0)),
            rule=rule,
        )
        if "utility_sum" in old:  # by the costs of the run, which the file does not hold
            contribution.sums["utility_sum"] = old["utility_sum"]
        contributions.append(contribution)
    evaluation.contributions, evaluation.metrics = contributions, aggregate(contributions)
    evaluation.rule, evaluation.note = rule, note


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


def _load(read: _Evaluation, rule: MatchRule) -> Evaluation:
    return Evaluation(
        metrics=read.metrics,
        contributions=[Contribution(c.dialogue, c.sums) for c in read.contributions],
        replays=[Replay(r.dialogue_id, r.outputs, r.actions, r.rewards) for r in read.replays],
        unparsed_share=read.unparsed_share,
        truncated_share=read.truncated_share,
        unread_graph_share=read.unread_graph_share,
        rule=rule,
    )
