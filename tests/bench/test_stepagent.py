"""StepAgent beside imitation: one start, one budget of trained tokens, a record with differences."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench import learning, stepagent
from bench.stepagent import tokens_a_step, trained_tokens
from proactor.config_file import load_run
from proactor.episode_config import EpisodeConfig
from proactor.progress import Quiet
from proactor.training.episodes_loop import train_episodes
from proactor.training.episodes_model import build_episode_model
from proactor.training.runs import Run
from tests.proactor.training.test_episodes import SMALLER

ARMS = ("start", "stepagent", "stepagent-sft")


def test_arms_share_a_start_and_a_budget(
    repo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = repo_root / "configs" / "stepagent-small.yaml"
    smaller = [*SMALLER, "name=tiny", f"model={tmp_path / 'model'}", f"runs={tmp_path / 'runs'}"]
    commands: list[str] = []

    def run(command: str, config: Path, overrides: Sequence[str], *flags: str) -> None:
        settings = load_run(config, overrides)
        assert isinstance(settings, EpisodeConfig) and settings.pretrain is not None
        commands.append(f"{command} {settings.name}")
        if command == "pretrain":
            build_episode_model(settings, settings.pretrain, Quiet())
        else:
            train_episodes(settings, resume="--resume" in flags, fresh="--fresh" in flags)

    monkeypatch.setattr(learning, "run_command", run)
    monkeypatch.setattr(stepagent, "run_command", run)
    arguments = [str(file), *smaller, "--seeds", "1", "--arms", "stepagent"]
    arguments += ["--results", str(tmp_path / "results")]
    stepagent.main(arguments)
    assert commands == ["pretrain tiny", *(f"train tiny-{arm}-s0" for arm in ARMS)]
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
    assert len(commands) == 4 and "less imitation" in capsys.readouterr().out


def test_unknown_arms_are_refused(repo_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = repo_root / "configs" / "stepagent-small.yaml"
    with pytest.raises(SystemExit):
        stepagent.main([str(file), "--arms", "stepagent,magic"])
    assert "--arms: magic: there are stepagent, " in capsys.readouterr().err
