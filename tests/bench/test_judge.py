"""The bench that teaches a small judge, on a model of two layers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import judge
from proactor.rewards import load_reward
from tests.proactor.runs import config_file, tiny_folder


def test_a_judge_is_taught_measured_and_named_for_a_config(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path, tiny_folder(tmp_path / "model"))
    sizes = "--seconds 2 --dialogues 2 --held-out 2 --n 3 --most 3 --results".split()
    judge.main([str(file), *sizes, str(tmp_path / "results"), "seed=3"])
    (path,) = (tmp_path / "results").glob("*/judge.json")
    record = json.loads(path.read_text())["tiny"]
    assert record["config"]["seed"] == 3 and record["steps"] >= 1 and record["decisions"]["held_out"] > 0
    for systems in record["systems"].values():
        assert list(systems) == ["untrained", "taught", "likes waiting", "likes acting"]
        assert systems["likes waiting"]["tau"] == pytest.approx(-systems["likes acting"]["tau"])
    assert record["systems"]["mixed"]["taught"]["usable"] > 0
    reward = load_reward("custom_ruler", record["reward_options"])
    assert Path(reward.terms[0].component.ruler.judge.adapter) == tmp_path / "runs/tiny/judge"
    assert "taught" in capsys.readouterr().out

    with pytest.raises(SystemExit, match="no grpo section"):
        judge.main([str(file), "grpo=null"])
