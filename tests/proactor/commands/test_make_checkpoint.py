"""``proactor make-checkpoint``: a folder, or one line and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proactor.engine import known_models
from proactor.kernels.op import ModelShape
from tests.proactor.commands.calls import call, refusal


def test_it_writes_the_shape_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = ModelShape("Qwen2.5-Tiny", 64, 2, 4, 2, 16, 128, 101)
    monkeypatch.setitem(known_models.FAMILY, "Tiny", tiny)
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "tokenizer.json").write_text("{}")
    options = ["--shape", "qwen2.5-tiny", "--out", str(tmp_path / "model")]
    call("make-checkpoint", *options, "--tokenizer", str(tmp_path / "words"))
    assert json.loads((tmp_path / "model" / "config.json").read_text())["quantization_config"]["load_in_4bit"]
    assert (tmp_path / "model" / "tokenizer.json").read_text() == "{}"


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", tmp_path]
    assert "neither a folder nor a known name" in refusal(capsys, "make-checkpoint", "--shape", "gpt-9", *out)
    (tmp_path / "mine").write_text("kept")
    assert "exists; give a new folder" in refusal(capsys, "make-checkpoint", "--shape", "qwen2.5-0.5b", *out)
