"""The self-test: dialogues learnt to their maximum."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.sources import load
from proactor.training.overfit import goal, overfit
from tests.proactor.runs import OPTIONS, config


def learnable(tmp_path: Path, model: Path, *overrides: str) -> RunConfig:
    stages = (
        "sft.lr=2e-2",
        "sft.pending=false",
        "sft.max_steps=60",
        "grpo.lr=1e-4",
        "lora.rank=8",
        "engine.deterministic=false",
    )
    return config(tmp_path, model, *stages, *overrides)


def test_one_dialogue_is_learnt_to_its_maximum(tiny_model: Path, tmp_path: Path) -> None:
    result = overfit(learnable(tmp_path, tiny_model), 1)
    assert result.passed and result.first_fire_f1 == 1 and str(result).startswith("PASS")
    assert result.updates < 60
    assert not (tmp_path / "runs").exists()


def test_the_self_test_fails_when_nothing_is_learnt(tiny_model: Path, tmp_path: Path) -> None:
    result = overfit(learnable(tmp_path, tiny_model, "sft=null", "grpo.lr=1e-9", "grpo.steps=1"), 1)
    assert not result.passed and result.reward < result.goal_reward and str(result).startswith("FAIL")


def test_the_self_test_says_when_limits_cut_the_answers(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval\.max_tokens=4 cuts .* need up to"):
        overfit(learnable(tmp_path, tiny_model, "eval.max_tokens=4"), 1)
    with pytest.raises(ConfigError, match=r"^--overfit -1: needs at least 1 dialogue$"):
        overfit(learnable(tmp_path, tiny_model), -1)


def test_the_goal_is_what_the_wanted_answers_earn() -> None:
    dialogues = load("synthetic", limit=5, **OPTIONS).dialogues
    reached = goal(dialogues, None, pending=False)
    assert reached["first_fire_f1"] == 1 and reached["on_time_f1"] == 1
