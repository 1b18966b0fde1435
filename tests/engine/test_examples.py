"""The examples run as they are written, on a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from examples import environment, own_loop, reward
from proactor.config_file import load_config
from proactor.engine import GRPO, Sample, Sampling
from proactor.rewards import load_reward
from tests.engine.engines import load


def test_own_loop(
    text_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    means = own_loop.train(str(text_folder), steps=2, n=3, max_tokens=5)
    assert len(means) == 2 and all(-1 <= m < 0 for m in means)
    assert "step 1: reward -" in capsys.readouterr().out
    assert (tmp_path / "runs" / "own-loop" / "adapter_model.safetensors").is_file()


def test_own_loop_takes_forty_lines() -> None:
    assert len(Path(own_loop.__file__).read_text().splitlines()) < 55, "docstring, imports and the loop"


def test_environment(text_folder: Path) -> None:
    engine = load(text_folder, deterministic=True)
    group = environment.rollout(engine, Sampling(n=4, max_tokens=3, ignore_eos=True))
    for sample in group.samples:
        said = engine.encode(environment.answer(engine.chat.decode(sample.token_ids[:3])))  # type: ignore[union-attr]
        assert sample.turns() == [(0, 3), (3 + len(said), 6 + len(said))] and sample.token_ids[3:-3] == said
        assert isinstance(sample.advantage, list) and len(sample.advantage) == 2
        sample.advantage = [1.0, -1.0]
    assert engine.train([group], GRPO(lr=1e-3))["ratio_max_error"] == 0.0
    assert environment.train(str(text_folder), steps=1, n=3, max_tokens=3)["ratio_max_error"] <= 1e-5


def test_credit_belongs_to_turns() -> None:
    samples = [Sample([1], [2, 3]) for _ in range(2)]
    environment.set_credit(samples, [[1.0, 0.0], [0.0, 0.5]])
    assert [s.advantage for s in samples] == [[0.5, -0.25], [-0.5, 0.25]]
    assert environment.score("I say 5!") == pytest.approx(7 / 9) and environment.score("none") == 0


def test_reward_as_a_config_names_it(monkeypatch: pytest.MonkeyPatch, repo_root: Path) -> None:
    monkeypatch.chdir(repo_root)
    command = next(line for line in (reward.__doc__ or "").splitlines() if "proactor train" in line).split()
    config = load_config(command[2], command[3:])
    function = load_reward(config.reward, config.reward_options)
    answers = ["yes", "x" * 60, "x" * 100, "  ", [{"role": "assistant", "content": "yes"}]]
    values = function(prompts=["?"] * 5, completions=answers, turn=[1] * 5)
    assert values == [1.0, 0.5, 0.0, 0.0, 1.0]
    assert reward.brevity(["?"], ["yes"]) == [1.0]
