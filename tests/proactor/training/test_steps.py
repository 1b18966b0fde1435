"""Data order, and single training steps."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from proactor.config_base import ConfigError
from proactor.sources import load
from proactor.training.steps import batch, held_out_loss, sft_step
from proactor.training.workspace import Workspace
from tests.proactor.runs import OPTIONS, config, masked


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


def test_a_batch_of_unknown_windows_makes_no_update(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tiny_model)
    workspace = Workspace.open(settings)
    assert settings.sft is not None
    unknown = dataclasses.replace(workspace, train=tuple(map(masked, workspace.train[:2])))
    version = workspace.engine.policy_version
    row = sft_step(unknown, settings.sft, 0)
    assert (row["skipped_update"], row["examples"], row["tokens_trained"]) == (1.0, 0, 0.0)
    assert row["unknowable"] > 0 and row["nonfinite_gradient"] == 0
    assert workspace.engine.policy_version == version
    mixed = dataclasses.replace(workspace, train=(workspace.train[0], masked(workspace.train[1])))
    row = sft_step(mixed, settings.sft, 0)
    assert row["skipped_update"] == 0 and row["examples"] > 0 and row["unknowable"] > 0


def test_a_dev_part_without_an_answer_has_no_held_out_loss(tiny_model: Path, tmp_path: Path) -> None:
    settings = config(tmp_path, tiny_model)
    workspace = Workspace.open(settings)
    assert settings.sft is not None
    mixed = dataclasses.replace(workspace, dev=(workspace.dev[0], masked(workspace.dev[1])))
    assert held_out_loss(mixed, settings.sft) > 0
    unknown = dataclasses.replace(workspace, dev=tuple(map(masked, workspace.dev)))
    with pytest.raises(ConfigError, match=r"^data\.dev: the right answer is known at none of its \d+ dec"):
        held_out_loss(unknown, settings.sft)
