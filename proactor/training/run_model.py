"""The model of a run's folder."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from proactor.config_base import RunBase
from proactor.files import SourceError, first_problem
from proactor.yaml_values import read_yaml

CONFIG = "config.yaml"


def run_model(run: Path) -> tuple[RunBase, str]:
    """(what every run's config has, its model: a folder or hub id).

    A model's folder is where `model_place` finds it. Raises SourceError for a config that cannot be read.
    """
    file = run / CONFIG
    values = read_yaml(file)
    try:
        config = RunBase.model_validate({k: v for k, v in values.items() if k in RunBase.model_fields})
    except ValidationError as error:
        raise SourceError(f"{file}: {first_problem(error)}") from None
    return config, model_place(run, config.model)


def model_place(run: Path, model: str) -> str:
    """Where the ``model`` of a run's config is: there, or there relative to the run; a hub id as it is."""
    beside = run / model
    return str(beside) if not Path(model).is_dir() and beside.is_dir() else model
