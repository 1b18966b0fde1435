"""A model of two layers with its own tokenizer, and a config that trains it on a few short dialogues in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from proactor.config import RunConfig, load_config
from proactor.pretrain import SmallModel, build_model, train_tokenizer
from proactor.sources import load

SIZE = SmallModel(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, vocabulary=420, context=1024)
OPTIONS = {
    "size": 60,
    "min_turns": 4,
    "max_turns": 8,
    "max_actions": 1,
    "tools": 1,
    "skills": ["set_reminder", "set_alarm"],
}


def tiny_folder(folder: Path) -> Path:
    """A Hugging Face folder with random weights (fp32) and a tokenizer trained on the dialogues."""
    dialogues = load("synthetic", limit=20).dialogues
    tokenizer = train_tokenizer((t.text for d in dialogues for t in d.turns), SIZE.vocabulary)
    build_model(tokenizer, SIZE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def values(model: Path, runs: Path, **changes: Any) -> dict[str, Any]:
    """A config as a mapping; ``changes`` replace whole sections."""
    return {
        "name": "tiny", "model": str(model), "runs": str(runs), "engine": {"deterministic": True, "kv_tokens": 8192}, "lora": {"rank": 4},
        "prompt": {"instructions": ""},
        "data": {"options": OPTIONS, "train": {"limit": 4}, "dev": {"limit": 2}, "test": {"limit": 2}},
        "sft": {"lr": 1e-2, "batch_dialogues": 2, "max_steps": 4, "eval_every": 2, "patience": 2},
        "grpo": {"lr": 1e-2, "batch_dialogues": 2, "steps": 4, "eval_every": 2, "sampling": {"n": 2, "max_tokens": 6}},
        "eval": {"max_tokens": 6, "resamples": 100}, "save_every": 1,
    } | changes  # fmt: skip


def config_file(folder: Path, model: Path, **changes: Any) -> Path:
    """The config of `values` as a file; runs go to ``folder``/runs."""
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values(model, folder / "runs", **changes)))
    return file


def config(folder: Path, model: Path, *overrides: str, **changes: Any) -> RunConfig:
    """The config of `values`, loaded."""
    return load_config(config_file(folder, model, **changes), overrides)
