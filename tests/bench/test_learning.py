"""The comparison of GRPO with its start and its rivals, on a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import learning
from proactor.config_file import load_config
from proactor.training.runs import Run
from tests.proactor.runs import config_file, tiny_folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return config_file(tmp_path, tiny_folder(tmp_path / "model"))


def test_seeds_rivals_and_a_second_call(
    config: Path, trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [str(config), "grpo.steps=2", "--seeds", "2", "--results", str(tmp_path / "results")]
    learning.main(arguments)
    assert trained == ["tiny-s0", "tiny-s1", "tiny-pace", "tiny-sft"]
    (file,) = (tmp_path / "results").glob("*/learning-tiny.json")
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["runs"] == 2 and record["dialogues"] == 2
    assert (
        record["gain_over"].keys()
        == record["rivals"].keys()
        == {"supervised", "never", "always", "values_seen"}
    )
    summaries = [json.loads((tmp_path / "runs" / f"tiny-s{i}" / "summary.json").read_text()) for i in (0, 1)]
    mean = sum(s["after"]["reward"] for s in summaries) / 2
    assert record["after"]["reward"] == pytest.approx(mean)
    assert record["gain_over"]["never"]["reward"]["estimate"] == pytest.approx(
        mean - summaries[0]["never"]["reward"]
    )
    steps = sum(row["kind"] == "sft" for row in Run(tmp_path / "runs" / "tiny-sft").rows())
    assert steps > 4, "the supervised run went no further than the stage it continues"
    shown = capsys.readouterr().out.splitlines()
    assert json.loads(shown[-2])["rising"].keys() >= {"reward", "first_fire_f1"}
    trained.clear()
    learning.main(arguments)
    assert trained == []
    with pytest.raises(
        SystemExit, match=r"tiny-s0: lora\.alpha was .*, now 9\.0: give the new runs another name"
    ):
        learning.main([arguments[0], "lora.alpha=9", *arguments[1:]])


def test_the_pace_leaves_out_the_first_step(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ensure(config: Path, overrides: list[str], ended: Any) -> Run:
        run = Run(tmp_path / "pace")
        monkeypatch.setattr(run, "rows", lambda: [{"kind": "sft", "seconds": s} for s in (9.0, *8 * (2.0,))])
        return run

    monkeypatch.setattr(learning, "ensure", ensure)
    base = load_config(config, [])
    (_, stage) = learning.continue_supervised(config, [], base, 40.0)
    assert json.loads(stage.removeprefix("sft="))["max_steps"] == 20
