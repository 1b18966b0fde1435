"""Evaluations on disk: they come back equal, and a file that does not fit is refused by one line."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from proactor.cli import app
from proactor.dialogue import Reference
from proactor.dialogue.matching import EXACT, MatchRule
from proactor.engine import ProactorError
from proactor.evaluation.play import Evaluation, Replay, evaluate_policies
from proactor.evaluation.store import (
    OLDER_NOTE,
    SHARED_NOTE,
    load_comparable,
    load_evaluations,
    notes_of,
    save_evaluations,
)
from proactor.files import SourceError
from proactor.rewards import score_replay
from proactor.scoring.metrics import aggregate
from proactor.sources import load
from tests.proactor.dialogues import ready, users
from tests.proactor.report.agents import agent, evaluation

DIALOGUES = load("synthetic", limit=6, seed=3).dialogues

REMINDER = Reference(
    id="r", name="remind", params={"task": "kids", "time": "5 pm"}, coverage=(1, 4), ready=(2, 3)
)
REMINDERS = [users(4, REMINDER, id="d")]
BY_TASK = MatchRule(required={"remind": frozenset({"task"})})


def evaluation_of(task: str, time: str) -> Evaluation:
    """One reminder at turn 2, scored by its task alone."""
    outputs = {2: (ready("remind", task=task, time=time),)}
    contribution, rewards = score_replay(REMINDERS[0], outputs, rule=BY_TASK)
    contribution.sums["utility_sum"] = 7.0  # by costs of the run's own
    replays = [Replay("d", {}, outputs, rewards)]
    return Evaluation(aggregate([contribution]), [contribution], replays, rule=BY_TASK)


def saved(folder: Path) -> Path:
    file = folder / "evaluations.json"
    before = evaluation(DIALOGUES, agent(DIALOGUES, 1, 0.2))
    save_evaluations(file, DIALOGUES, {"before": before, **evaluate_policies(DIALOGUES)})
    return file


def test_round_trip(tmp_path: Path) -> None:
    named = {"before": evaluation(DIALOGUES, agent(DIALOGUES, 1, 0.2)), **evaluate_policies(DIALOGUES)}
    save_evaluations(tmp_path / "evaluations.json", DIALOGUES, named)
    dialogues, read = load_evaluations(tmp_path / "evaluations.json")
    assert tuple(dialogues) == DIALOGUES
    assert list(read) == list(named)
    assert read == named


def test_a_full_disk_leaves_the_older_file_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved(tmp_path)
    old = file.read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_evaluations(file, DIALOGUES[:1], {})
    assert file.read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["evaluations.json"]


def test_a_file_of_version_1_is_scored_again(tmp_path: Path) -> None:
    file = saved(tmp_path)
    new = load_evaluations(file)
    make_older(file, 1, {"unparsed"})
    dialogues, evaluations = load_evaluations(file)
    assert (dialogues, without_notes(evaluations)) == new


def make_older(file: Path, version: int, kept: set[str]) -> None:
    """Rewrite a file as one of ``version``: without a rule, and with the sums ``kept`` only."""
    value = json.loads(file.read_text())
    value["version"] = version
    for key in ("required", "optional", "theta"):
        del value[key]
    for old in value["evaluations"].values():
        old["metrics"] = {"reward": old["metrics"]["reward"]}
        for contribution in old["contributions"]:
            contribution["sums"] = {k: v for k, v in contribution["sums"].items() if k in kept}
    file.write_text(json.dumps(value))


def without_notes(evaluations: dict[str, Evaluation]) -> dict[str, Evaluation]:
    assert all(OLDER_NOTE in e.note for e in evaluations.values())
    return {name: replace(e, note="") for name, e in evaluations.items()}


HALF = {"task": evaluation_of("kids", "6 pm"), "time": evaluation_of("laundry", "5 pm")}


def test_a_file_of_version_2_is_scored_again_with_every_value_required(tmp_path: Path) -> None:
    file = tmp_path / "evaluations.json"
    save_evaluations(file, REMINDERS, {"after": HALF["task"]})
    (after,) = load_evaluations(file)[1].values()
    assert (after.rule, after.note, after.metrics["first_fire_f1"]) == (BY_TASK, "", 1.0)
    make_older(file, 2, {"unparsed", "utility_sum"})
    (after,) = load_evaluations(file)[1].values()
    assert after.rule == EXACT and after.note == f"{file}: {OLDER_NOTE}" and after.metrics["reward"]
    exact = ("first_fire_f1", "recall", "values_right")
    assert [after.metrics[k] for k in (*exact, "similarity_first_fire_f1")] == [0.0, 0.0, 0.0, 1.0]
    assert after.metrics["utility"] == 7.0


def test_files_are_compared_by_one_rule(tmp_path: Path) -> None:
    files = [tmp_path / f"{name}.json" for name in ("new", "old")]
    for file, run in zip(files, HALF.values(), strict=True):
        save_evaluations(file, REMINDERS, {"after": run})
    make_older(files[1], 2, {"unparsed", "utility_sum"})
    (_, new), (_, old) = load_comparable(files)
    assert new["after"].rule == old["after"].rule == BY_TASK
    assert (new["after"].metrics["values_right"], old["after"].metrics["values_right"]) == (1.0, 0.0)
    assert notes_of([new["after"], old["after"]]) == [f"{files[1]}: {SHARED_NOTE.format(rule=files[0])}"]
    save_evaluations(files[1], REMINDERS, {"after": replace(HALF["time"], rule=EXACT)})
    with pytest.raises(SourceError, match=r"old\.json: other parameters are required than in .*new\.json"):
        load_comparable(files)
    with pytest.raises(ProactorError, match="different rules"):
        save_evaluations(files[0], REMINDERS, {"a": HALF["task"], "b": replace(HALF["task"], rule=EXACT)})


@pytest.mark.parametrize("command", ["report", "report-two", "compare", "pool"])
def test_commands_say_that_an_older_run_was_scored_again(tmp_path: Path, command: str) -> None:
    for name, version in (("old", 2), ("new", 3)):
        file = tmp_path / name / "evaluations.json"
        file.parent.mkdir()
        save_evaluations(file, REMINDERS, {"before": HALF["time"], "after": HALF["task"]})
        (file.parent / "metrics.jsonl").write_text("")
        if version == 2:
            make_older(file, 2, {"unparsed", "utility_sum"})
    alone = command == "report"
    folders = [str(tmp_path / name) for name in (("old",) if alone else ("old", "new"))]
    done = CliRunner().invoke(app, [command.removesuffix("-two"), *folders])
    assert done.exit_code == 0, (done.output, done.exception)
    note = OLDER_NOTE if alone else SHARED_NOTE.format(rule=tmp_path / "new" / "evaluations.json")
    line = f"{tmp_path / 'old' / 'evaluations.json'}: {note}"
    assert line in done.output.splitlines()
    if command.startswith("report"):
        page = next((tmp_path / "old").glob("report*.html")).read_text()
        assert "scored again" in page and note.split(";")[0] in page


def _drop_sum(value: dict[str, Any]) -> None:
    del value["evaluations"]["before"]["contributions"][1]["sums"]["acted"]


def _rename_dialogue(value: dict[str, Any]) -> None:
    value["evaluations"]["never"]["replays"][0]["dialogue_id"] = "ghost"


def _unknown_key(value: dict[str, Any]) -> None:
    value["evaluations"]["before"]["extra"] = 1


def _old(value: dict[str, Any]) -> None:
    value["version"] = 0


def _not_finite(value: dict[str, Any]) -> None:
    value["version"] = 2  # scored again, from sums that are counts
    value["evaluations"]["before"]["contributions"][1]["sums"]["unparsed"] = float("inf")


def _not_played(value: dict[str, Any]) -> None:
    del value["evaluations"]["before"]["replays"][2]


def _scored_twice(value: dict[str, Any]) -> None:
    sums = value["evaluations"]["before"]["contributions"]
    sums.append(sums[0])


def _no_dialogues(value: dict[str, Any]) -> None:
    value["dialogues"] = []
    for system in value["evaluations"].values():
        system["replays"] = system["contributions"] = []


def _turn(number: int) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        value["evaluations"]["before"]["replays"][0]["rewards"][number] = 0.5

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_not_played, "evaluations.before.replays: not one for each of the dialogues"),
        (_scored_twice, "evaluations.before.contributions: not one for each of the dialogues"),
        (_no_dialogues, "evaluations.before.replays: not one for each of the dialogues"),
        *(
            (
                _turn(number),
                f"evaluations.before.replays.0: dialogue {DIALOGUES[0].id!r} has no turn {number}",
            )
            for number in (99, -1)
        ),
        (_drop_sum, "evaluations.before.contributions.1.sums: acted"),
        (_rename_dialogue, "evaluations.never.replays.0: no dialogue 'ghost'"),
        (_unknown_key, "evaluations.before.extra"),
        (_old, "version: 0"),
        (_not_finite, "evaluations.before.contributions.1.sums.unparsed: Input should be a finite number"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, change: Any, said: str) -> None:
    file = saved(tmp_path)
    value = json.loads(file.read_text())
    change(value)
    file.write_text(json.dumps(value))
    with pytest.raises(SourceError) as caught:
        load_evaluations(file)
    assert str(caught.value).startswith(f"{file}: {said}")
    assert "\n" not in str(caught.value)


def test_missing_cut_off_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file"):
        load_evaluations(tmp_path / "evaluations.json")
    (tmp_path / "config.yaml").touch()
    with pytest.raises(SourceError, match=r"has not ended, or its eval\.final is false"):
        load_evaluations(tmp_path / "evaluations.json")
    file = saved(tmp_path)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(SourceError, match=r"evaluations\.json:1: not JSON"):
        load_evaluations(file)
    file.write_text("[]")
    with pytest.raises(SourceError, match="top level"):
        load_evaluations(file)
