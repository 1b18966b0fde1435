"""Scoring a run's dialogues in pieces that survive a kill, and the command around it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from proactor.calibration import store
from proactor.calibration.store import fingerprint, load_probabilities, score_part
from proactor.calibration.thresholds import Thresholds
from proactor.calibration.tradeoff import load_trade_offs
from proactor.commands.calibrate import calibrate
from proactor.commands.common import UsageError
from proactor.dialogue.catalog import Catalog
from proactor.files import SourceError
from proactor.training.workspace import Workspace
from tests.proactor.runs import config, config_file

PLAIN = {"sft": None, "grpo": None, "eval": {"max_tokens": 40, "resamples": 100}}


class Killed(Exception):
    """What ends a scoring half-way."""


def test_a_killed_scoring_goes_on_where_it_was(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = Workspace.open(config(tmp_path, tiny_model, **PLAIN))
    monkeypatch.setattr(store, "PIECE", 1)
    whole = score_part(workspace, "whole", workspace.dev, None, 0.01)
    assert whole.table.dialogues == tuple(d.id for d in workspace.dev) and len(whole.probabilities) == len(
        workspace.dev
    )
    asked: list[str] = []
    honest = store.score_table

    def counting(engine: object, encoder: object, dialogues: object, **options: object) -> object:
        asked.extend(d.id for d in dialogues)  # type: ignore[attr-defined]
        if len(asked) == 2:
            raise Killed
        return honest(engine, encoder, dialogues, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "score_table", counting)
    with pytest.raises(Killed):
        score_part(workspace, "dev", workspace.dev, None, 0.01)
    again = score_part(workspace, "dev", workspace.dev, None, 0.01)
    ids = [d.id for d in workspace.dev]
    assert asked == [ids[0], ids[1], ids[1]]
    assert again == whole
    score_part(workspace, "dev", workspace.dev, None, 0.02)  # another floor: scored anew
    assert asked[3:] == ids
    dev = workspace.dev
    assert fingerprint(workspace, dev, None, 0.01) != fingerprint(workspace, dev, tiny_model, 0.01)


def test_scores_are_made_anew_where_the_data_or_the_model_changed_under_the_same_config(
    tmp_path: Path, tiny_model: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)
    workspace = Workspace.open(config(tmp_path, model, **PLAIN))
    dialogues = list(workspace.dev)
    first = score_part(workspace, "dev", dialogues, None, 0.01)
    assert score_part(workspace, "dev", dialogues, None, 0.01).made_by == first.made_by

    turn = dialogues[0].turns[0].model_copy(update={"text": "something else altogether"})
    said = dialogues[0].model_copy(update={"turns": (turn, *dialogues[0].turns[1:])})
    again = score_part(workspace, "dev", [said, *dialogues[1:]], None, 0.01)
    assert again.probabilities[0] != first.probabilities[0], "the corrected dialogue is scored again"
    assert again.probabilities[1:] == first.probabilities[1:]

    rewindowed = [d.model_copy(update={"references": ()}) for d in dialogues]
    assert fingerprint(workspace, rewindowed, None, 0.01) == first.made_by, "no prompt holds a window"

    catalog = workspace.encoder.catalog
    tool = catalog.tools[0].model_copy(update={"description": "something else altogether"})
    workspace.encoder.catalog = Catalog(tools=(tool, *catalog.tools[1:]))
    assert fingerprint(workspace, dialogues, None, 0.01) != first.made_by
    workspace.encoder.catalog = catalog
    assert fingerprint(workspace, dialogues, None, 0.01) == first.made_by

    os.utime(model / "config.json", ns=(1, 1))
    assert fingerprint(workspace, dialogues, None, 0.01) != first.made_by, "another model in its folder"


def test_the_command_writes_what_a_report_reads_and_keeps_other_data_apart(
    tmp_path: Path, tiny_model: Path
) -> None:
    app = typer.Typer()
    app.command()(calibrate)
    file = str(config_file(tmp_path, tiny_model, **PLAIN))
    done = CliRunner().invoke(app, [file, "--adapter", "none", "--heat", "1", "--budget", "200"])
    assert done.exit_code == 0, (done.output, done.exception)
    folder = tmp_path / "runs" / "tiny"
    trade_offs = load_trade_offs(folder / "tradeoff-dev-test-none.json")
    assert [s.system for s in trade_offs.systems][:3] == ["common threshold", "threshold per tool", "greedy"]
    assert trade_offs.exact and "all required values must be right" in done.output
    assert (
        trade_offs.part == "test"
        and trade_offs.dialogues == 2
        and trade_offs.budget == 200
        and "windows:" in done.output
    )
    chosen = Thresholds.model_validate_json((folder / "thresholds-dev-test-none.json").read_text())
    assert chosen.dialogues == 2 and trade_offs.systems[0].chosen is not None
    assert trade_offs.systems[0].chosen.threshold == chosen.default
    heat = load_probabilities(folder / "probabilities-dev-test-none.json")
    assert len(heat) == 1 and heat[0].turns[0].tools
    same = CliRunner().invoke(app, [file, "--adapter", "none", "--split", "dev"])
    assert isinstance(same.exception, UsageError) and "say nothing about that part" in str(same.exception)
    done = CliRunner().invoke(app, [file, "--adapter", "none", "--similarity"])
    assert (
        not load_trade_offs(folder / "tradeoff-dev-test-none.json").exact
        and "half of the values" in done.output
    )
    (folder / "probabilities.json").write_text('[{"dialogue_id": 3}]')
    with pytest.raises(SourceError, match=r"probabilities\.json: 0\.dialogue_id"):
        load_probabilities(folder / "probabilities.json")
