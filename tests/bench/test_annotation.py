"""The bench of a small model as annotator, on a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import annotation
from tests.proactor.runs import tiny_folder


def test_the_log_finds_all_windows_and_a_dialogue_is_computed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotation, "DATA", annotation.DATA | {"size": 60})
    model = tiny_folder(tmp_path / "model")
    given = "--steps 2 --dialogues 4 --batch 2 --rank 4 --results".split()
    annotation.main(["--model", str(model), *given, str(tmp_path / "results")])
    (file,) = (tmp_path / "results").glob("*/annotation.json")
    record = json.loads(file.read_text())
    assert record["systems"]["log"]["known"]["exact"] == 1.0
    assert record["systems"].keys() == {"log", "before", "after"} and record["steps"] == 2
    for tokens in (record["tokens"], record["tokens_long"]):
        assert 0 < tokens["tokens_computed"] < tokens["naive"]
    assert record["tokens_long"]["saving"] > record["tokens"]["saving"], "more turns share more"
