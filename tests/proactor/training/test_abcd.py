"""The whole path of ProActor on ABCD+ with a 4-bit Qwen2.5-14B, on ABCD's compact files and a model of that
architecture scaled down: planned, trained by two ranks under torchrun, compared, reported.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from proactor.config_file import load_config
from proactor.engine import Engine, EngineConfig
from proactor.engine.known_models import FAMILY, qwen2_keys
from proactor.kernels.op import ModelShape
from proactor.sources import load
from proactor.training.runs import Run
from proactor.training.small_model import train_tokenizer
from tests.proactor.commands.calls import call

CONFIG = Path("configs", "abcd-qwen2.5-14b.yaml")


@pytest.fixture(scope="module")
def abcd(data_dir: Path) -> Path:
    folder = data_dir / "abcd"
    if not folder.is_dir():
        pytest.skip(f"no ABCD in {data_dir}")
    return folder


@pytest.fixture(scope="module")
def scaled_down(abcd: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Qwen2.5-14B a sixteenth as wide (five query heads to a key-value head, no tied head), two layers."""
    folder = tmp_path_factory.mktemp("abcd") / "model"
    corpus = load("abcd", abcd)
    texts = [turn.text for dialogue in corpus.dialogues for turn in dialogue.turns]
    tokenizer = train_tokenizer([*texts, corpus.catalog.render("compact")], 1000)
    large = FAMILY["14B"]
    shape = ModelShape(
        "scaled down", large.hidden // 16, 2, 5, 1, 64, large.intermediate // 16, len(tokenizer)
    )
    keys = qwen2_keys(
        shape, max_position_embeddings=8192, eos_token_id=tokenizer.eos_token_id, bos_token_id=None
    )
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**keys)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def overrides(model: Path, runs: Path) -> list[str]:
    """A run of one step. A random model answers nothing that can be read: its answers' length is rewarded."""
    return [
        f"model={model}",
        f"runs={runs}",
        "engine.kv_tokens=32768",
        "data.train.limit=4",
        "data.dev.limit=2",
        "data.test.limit=2",
        "reward=tests.proactor.runs:length_reward",
        "reward_options={}",
        "grpo.batch_dialogues=2",
        "grpo.steps=1",
        "grpo.sampling.n=4",
        "grpo.sampling.max_tokens=8",
        "eval.max_tokens=8",
        "eval.resamples=100",
    ]


@pytest.mark.slow
def test_a_dry_run_of_the_config_as_it_is(
    abcd: Path,
    data_dir: Path,
    repo_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """At the shape of the 14B, by its tokenizer: no file of the model is needed."""
    tokenizer = data_dir / "qwen2.5-tokenizer"
    if not tokenizer.is_dir():
        pytest.skip(f"no tokenizer of Qwen2.5 in {data_dir}")
    monkeypatch.setenv("PROACTOR_DATA", str(abcd.parent))
    call("train", repo_root / CONFIG, "--dry-run", "--gpu", "80", "--ranks", "8", "--tokenizer", tokenizer)
    said = " ".join(capsys.readouterr().out.split())
    assert "a rank of 8, 80 GB" in said and "9.3 GiB" in said and "GRPO step: tokens computed" in said


@pytest.mark.slow
def test_two_ranks_train_it(abcd: Path, scaled_down: Path, repo_root: Path, tmp_path: Path) -> None:
    changes = overrides(scaled_down, tmp_path / "runs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {
        **os.environ,
        "PYTHONPATH": str(repo_root),
        "PROACTOR_DATA": str(abcd.parent),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [*command, "-m", "proactor.cli", "train", str(CONFIG), *changes],
        cwd=repo_root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROACTOR_DATA", str(abcd.parent))
        config = load_config(repo_root / CONFIG, changes)
    folder = config.folder
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["dialogues"] == 2 and (folder / "report.html").is_file()
    (row,) = [r for r in Run(folder, writer=False).rows() if "tokens_computed" in r]
    assert row["grad_norm"] > 0 and row["tokens_avoided"] > row["tokens_computed"] > 0
    options = EngineConfig(quantization="nf4", resident="nf4", kv_tokens=64)
    engine = Engine.load(scaled_down, options, lora=config.lora)
    assert engine.memory()["nf4"] > 0, "its linears are 4-bit"
    start = engine.state_dict()["adapter"]
    engine.load_adapter(folder / "last")
    assert not torch.equal(engine.state_dict()["adapter"], start)
