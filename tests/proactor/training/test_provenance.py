"""The record of a small model: the steps in it, and that they say nothing of the data it was built on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proactor.config import Data
from proactor.config_base import ConfigError
from proactor.episode_config import EnvironmentOptions
from proactor.files import SourceError
from proactor.training.provenance import (
    PROVENANCE,
    FitSteps,
    check_environment,
    read_steps,
    write_environment,
    write_provenance,
)

TASKS = EnvironmentOptions(gym="function")
CUT = FitSteps(made=40, wanted=400, seconds=2.5, settled=False)
WHOLE = FitSteps(made=400, wanted=400, seconds=300, settled=False)


def without_steps(folder: Path) -> None:
    """The record as older versions wrote it."""
    record = json.loads((folder / PROVENANCE).read_text())
    del record["steps"]
    (folder / PROVENANCE).write_text(json.dumps(record))


def test_a_record_keeps_the_steps(tmp_path: Path) -> None:
    assert read_steps(tmp_path) is None, "a model from elsewhere"
    write_provenance(tmp_path, Data(source="synthetic"), CUT)
    assert read_steps(tmp_path) == CUT
    write_environment(tmp_path, TASKS, WHOLE)
    assert read_steps(tmp_path) == WHOLE
    without_steps(tmp_path)
    assert read_steps(tmp_path) is None


def test_the_same_tasks_are_the_same_whatever_the_steps(tmp_path: Path) -> None:
    for steps in (CUT, WHOLE):
        write_environment(tmp_path, TASKS, steps)
        check_environment(tmp_path, TASKS)
    without_steps(tmp_path)
    check_environment(tmp_path, TASKS)
    with pytest.raises(ConfigError, match="does not name the tasks"):
        check_environment(tmp_path, TASKS.model_copy(update={"dev": TASKS.dev + 1}))


def test_damaged_steps_are_named(tmp_path: Path) -> None:
    (tmp_path / PROVENANCE).write_text('{"steps": {"made": "few"}}')
    with pytest.raises(SourceError, match=rf"{PROVENANCE}: steps\.made: "):
        read_steps(tmp_path)
