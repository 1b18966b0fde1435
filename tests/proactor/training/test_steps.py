"""Data order, and single training steps."""

from __future__ import annotations

from pathlib import Path

from proactor.sources import load
from proactor.training.steps import batch, sft_step
from proactor.training.workspace import Workspace
from tests.proactor.runs import OPTIONS, config


def test_every_epoch_is_a_new_order_of_all_dialogues() -> None:
    dialogues = load("synthetic", limit=7, **OPTIONS).dialogues
    seen = [batch(dialogues, 3, 0, "grpo", step) for step in range(6)]
    assert [epoch for epoch, _, _ in seen] == [0, 0, 0, 1, 1, 1]
    epochs = [[d.id for _, chosen, _ in seen[i : i + 3] for d in chosen] for i in (0, 3)]
    assert (
        sorted(epochs[0]) == sorted(epochs[1]) == sorted(d.id for d in dialogues) and epochs[0] != epochs[1]
    )
    assert batch(dialogues[::-1], 3, 0, "grpo", 4) == seen[4]
    chosen = seen[4][1]
    assert batch(dialogues, 3, 1, "grpo", 4)[1] != chosen != batch(dialogues, 3, 0, "sft", 4)[1]


def test_supervised_steps_lower_the_loss(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tiny_model)
    workspace = Workspace.open(settings)
    assert settings.sft is not None
    losses = [sft_step(workspace, settings.sft, step)["loss"] for step in range(8)]
    assert losses[-1] < losses[0]
