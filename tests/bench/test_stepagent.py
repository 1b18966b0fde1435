"""StepAgent beside imitation: one start, one budget of trained tokens, a record with differences."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import stepagent
from bench.stepagent import tokens_a_step, trained_tokens
from proactor.training.runs import Run
from tests.proactor.training.test_episodes import SMALLER

ARMS = ("start", "stepagent", "stepagent-sft")


def test_arms_share_a_start_and_a_budget(
    repo_root: Path, tmp_path: Path, ran: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = repo_root / "configs" / "stepagent-small.yaml"
    smaller = [*SMALLER, "name=tiny", f"model={tmp_path / 'model'}", f"runs={tmp_path / 'runs'}"]
    arguments = [str(file), *smaller, "--seeds", "1", "--arms", "stepagent"]
    arguments += ["--results", str(tmp_path / "results")]
    stepagent.main(arguments)
    assert ran == ["pretrain tiny", *(f"train tiny-{arm}-s0" for arm in ARMS)]
    runs = {arm: Run(tmp_path / "runs" / f"tiny-{arm}-s0") for arm in ARMS}
    budget, pace = trained_tokens(runs["stepagent"]), tokens_a_step(runs["start"])
    steps = [row for row in runs["stepagent-sft"].rows() if row["kind"] == "sft"]
    assert len(steps) == -(-budget // pace) >= 1
    for arm in ARMS[1:]:
        assert "tiny-start-s0/best" in (runs[arm].folder / "config.yaml").read_text()
    [record] = [json.loads(f.read_text()) for f in (tmp_path / "results").rglob("stepagent-tiny.json")]
    arm, companion = (record["arms"][name] for name in ARMS[1:])
    assert arm["tokens_trained"] == budget <= companion["tokens_trained"]
    assert arm["tokens_sampled"] > 0 == companion["tokens_sampled"]
    assert set(record["difference"]) == {"stepagent"}
    stepagent.main([*arguments, "--report"])
    assert len(ran) == 4 and "less imitation" in capsys.readouterr().out


def test_unknown_arms_are_refused(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = repo_root / "configs" / "stepagent-small.yaml"
    with pytest.raises(SystemExit):
        stepagent.main([str(file), "--arms", "stepagent,magic"])
    assert "--arms: magic: there are stepagent, " in capsys.readouterr().err
