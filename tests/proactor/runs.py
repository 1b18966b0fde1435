"""A model of two layers with its own tokenizer, and a config that trains it in seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import yaml

from proactor.config import RunConfig
from proactor.config_base import SmallModel
from proactor.config_file import load_config
from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.prompt import PromptEncoder, PromptStyle
from proactor.engine import ChatFormat
from proactor.sources import load
from proactor.training.small_model import build_model, train_tokenizer
from proactor.training.token_rows import collate, held_out_row
from tests.engine.engines import load as load_engine
from tests.proactor.trained import trained_folder

SIZE = SmallModel(hidden=32, layers=2, heads=2, kv_heads=1, intermediate=64, vocabulary=420, context=1024)
OPTIONS = {
    "size": 60,
    "min_turns": 4,
    "max_turns": 8,
    "max_actions": 1,
    "tools": 1,
    "skills": ["set_reminder", "set_alarm"],
}
WIDE: dict[str, Any] = {
    "options": {"size": 80, "tools": 2},
    "train": {"limit": 20},
    "dev": {"limit": 5},
    "test": {"limit": 5},
}
"""A `data` section with windows wider than one turn."""


def tiny_folder(folder: Path, steps: int = 60) -> Path:
    """A Hugging Face folder (float32); ``steps`` of full training teach the model the form of an answer."""
    corpus = load("synthetic", split="train", limit=24, **OPTIONS)
    tokenizer = train_tokenizer((t.text for d in corpus.dialogues for t in d.turns), SIZE.vocabulary)
    model = build_model(tokenizer, SIZE)
    with torch.no_grad():
        # The head is tied: with logits near 0 nothing is learnt in seconds.
        model.get_input_embeddings().weight.mul_(2)
    encoder = PromptEncoder(ChatFormat(tokenizer), corpus.catalog, PromptStyle(instructions=""))
    rows = [held_out_row(encoder, d, SmallModel()) for d in corpus.dialogues]
    batches = [collate(rows[i::6], tokenizer.pad_token_id, 0.0) for i in range(6)]
    return trained_folder(folder, model, tokenizer, batches, steps)


def values(model: Path, runs: Path, **changes: Any) -> dict[str, Any]:
    """A config as a mapping; ``changes`` replace whole sections."""
    return {
        "name": "tiny",
        "model": str(model),
        "runs": str(runs),
        "engine": {"deterministic": True, "kv_tokens": 8192},
        "lora": {"rank": 4},
        "prompt": {"instructions": ""},
        "data": {"options": OPTIONS, "train": {"limit": 4}, "dev": {"limit": 2}, "test": {"limit": 2}},
        "sft": {"lr": 2e-3, "batch_dialogues": 2, "max_steps": 4, "eval_every": 2, "patience": 2},
        "grpo": {
            "lr": 1e-2,
            "batch_dialogues": 2,
            "steps": 4,
            "eval_every": 2,
            "sampling": {"n": 3, "max_tokens": 56},
        },
        "eval": {"max_tokens": 56, "resamples": 100},
        "save_every": 1,
    } | changes


def config_file(folder: Path, model: Path, **changes: Any) -> Path:
    """The config of `values` as a file; runs go to ``folder``/runs."""
    file = folder / "tiny.yaml"
    file.write_text(yaml.safe_dump(values(model, folder / "runs", **changes)))
    return file


def config(folder: Path, model: Path, *overrides: str, **changes: Any) -> RunConfig:
    """The config of `values`, loaded."""
    return load_config(config_file(folder, model, **changes), overrides)


def adapter_run(folder: Path, model: Path, **more: Any) -> Path:
    """The folder of a run as `train` leaves it, as far as serving and exporting read it; its adapter is
    random. ``more``: further keys of its config.
    """
    folder.mkdir()
    settings = {"name": folder.name, "model": str(model), "lora": {"rank": 4, "alpha": 8}, **more}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    engine = load_engine(model)
    engine.save_adapter(folder / "best")
    engine.release()
    return folder


def masked(dialogue: Dialogue) -> Dialogue:
    """The dialogue with an action whose window, which may be anywhere, nobody knows."""
    action = Reference(id="r", name=dialogue.references[0].name, coverage=(1, len(dialogue.turns)))
    return dialogue.model_copy(update={"references": (action,)})


def length_reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """A reward with spread on any text, so that GRPO has a gradient from the first step."""
    return [(len(text) % 5) / 4 for text in completions]


def nan_reward_on_rank_1(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """A reward that breaks on one of two ranks."""
    rewards = nan_reward if os.environ.get("RANK") == "1" else length_reward
    return rewards(prompts, completions, **columns)


def nan_reward(prompts: list[Any], completions: list[str], **columns: Any) -> list[float]:
    """A broken reward."""
    return [float("nan")] * len(completions)
