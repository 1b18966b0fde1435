"""The examples run as they stand: the loop learns, and the reward is one that a config accepts."""

from __future__ import annotations

from pathlib import Path

import pytest
from peft import PeftConfig

from bench.models import EOS, word_tokenizer
from examples import own_loop
from proactor.dialogue import Dialogue
from proactor.rewards import load_reward, run_reward
from tests.tiny import save_tiny


def test_own_loop_learns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(tmp_path / "model", vocab_size=128, eos_token_id=EOS)
    word_tokenizer(128).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(own_loop, "score", lambda text: sum(w.startswith("t1") for w in text.split()) / 24)
    means = own_loop.main(str(tmp_path / "model"), ("t5 t9 t12", "t100"), steps=30, out=str(tmp_path / "adapter"))
    assert sum(means[-3:]) > 1.2 * sum(means[:3])
    assert PeftConfig.from_pretrained(tmp_path / "adapter").r == 8


def test_reward_is_one_that_a_config_takes() -> None:
    reward = load_reward("examples.reward:calm")
    dialogue = Dialogue.model_validate(
        {"id": "d", "turns": [{"index": 1, "speaker": "user", "text": "hello"}], "references": []}
    )
    columns = {"dialogue": [dialogue] * 2, "turn": [1, 1]}
    short, long = (
        s["reward"]
        for s in run_reward("calm", reward, ["p"] * 2, ['{"actions": []}', '{"actions": []}' + " " * 400], columns)
    )
    assert short - long == pytest.approx(0.002 * (415 - 200))
