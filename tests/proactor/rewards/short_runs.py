"""Short GRPO runs with a reward under test, and what they leave in their folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proactor.config import RunConfig
from proactor.training.runs import CLOCKS, Run
from tests.proactor.runs import config

MINE = "tests.proactor.rewards.group_rewards"
SHORT = (
    "sft=null",
    "grpo.steps=2",
    "grpo.eval_every=50",
    "eval.final=false",
    "lora.rank=2",
    "data.dev.limit=1",
)


def settings(
    folder: Path, model: Path, reward: str, options: dict[str, Any] | None = None, *more: str
) -> RunConfig:
    """A short run of GRPO alone."""
    folder.mkdir(exist_ok=True)
    return config(
        folder, model, f"reward={reward}", f"reward_options={json.dumps(options or {})}", *SHORT, *more
    )


def steps(folder: Path) -> list[dict[str, Any]]:
    """The rows of GRPO steps, clocks aside."""
    rows = [r for r in Run(folder).rows() if r["kind"] == "grpo"]
    return [{k: v for k, v in row.items() if k not in CLOCKS} for row in rows]


def samples_by_step(folder: Path) -> list[list[dict[str, Any]]]:
    """Samples of each step."""
    files = sorted((folder / "samples").iterdir())
    return [[json.loads(line) for line in file.read_text().splitlines()] for file in files]


def decisions_by_step(folder: Path) -> list[list[tuple[str, int]]]:
    """Which decisions each step sampled, in order."""
    return [[(row["dialogue"], row["turn"]) for row in step] for step in samples_by_step(folder)]
