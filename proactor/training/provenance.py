"""`pretrained.json`: the record in the folder of a small model of the data and the steps it was built on.

Only a folder with this record, or one that does not exist yet, belongs to a `pretrain` section.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from proactor.config import Data
from proactor.config_base import ConfigError
from proactor.engine import atomic_file
from proactor.episode_config import EnvironmentOptions
from proactor.files import read_json, read_validated
from proactor.sole_writer import LOCK, sole_writer
from proactor.sources.unseen import Unseen

PROVENANCE = "pretrained.json"
_HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
"""``owner/name``, or a bare ``name`` of the hub's first models. A path starts with ``./``, ``/`` or ``~``, or
has more parts.
"""


def build_once(model: str, build: Callable[[Path], None]) -> None:
    """Let ``build`` make the folder ``model`` if it is missing.

    Raises ConfigError as `check_destination`, and WriterError while another process builds it.
    """
    check_destination(model)
    folder = Path(model)
    with sole_writer(folder, file=folder.with_name(f".{folder.name}{LOCK}")):
        if not folder.is_dir():  # another process may just have built it
            build(folder)


def check_destination(model: str) -> None:
    """Raise ConfigError unless a `pretrain` section may build its model in folder ``model``, or built it."""
    folder = Path(model)
    if folder.exists():
        if not (folder / PROVENANCE).is_file():
            raise ConfigError(
                f"model {model}: no pretrain section built this folder (it holds no {PROVENANCE}); leave the "
                "section out (pretrain=null) to train this model, or name a folder that does not exist"
            )
    elif _HUB_ID.fullmatch(model):
        raise ConfigError(
            f"model {model}: looks like a hub id, and the pretrain section would build a small model in a "
            f"folder of that name; pretrain=null trains the hub's model, model=./{model} builds that folder"
        )


class FitSteps(BaseModel):
    """How far pre-training came: steps ``made`` of those ``wanted`` (None: as many as the time allows), in at
    most ``seconds``. ``settled``: whether it ended because the held-out loss had stopped falling.
    """

    model_config = ConfigDict(frozen=True)

    made: int
    wanted: int | None
    seconds: float
    settled: bool

    @property
    def cut_short(self) -> bool:
        """Whether the time was over before the steps, while the model still got better."""
        return self.wanted is not None and self.made < self.wanted and not self.settled


class _BuiltOn(BaseModel):
    """What `check_provenance` reads of the record that `write_provenance` leaves."""

    source: str
    unseen: Unseen


class _Built(BaseModel):
    """What `read_steps` reads of the record; those of older versions have no steps."""

    steps: FitSteps | None = None


def write_provenance(folder: str | Path, data: Data, steps: FitSteps) -> None:
    """Record which data the model in ``folder`` was built on, and in how many steps."""
    seen = data.model_dump(mode="json", include={"source", "unseen", "labels", "keep", "seed", "options"})
    _write(folder, seen, steps)


def write_environment(folder: str | Path, environment: EnvironmentOptions, steps: FitSteps) -> None:
    """Record on whose training tasks the model in ``folder`` was built, and in how many steps."""
    _write(folder, _tasks_of(environment), steps)


def read_steps(folder: str | Path) -> FitSteps | None:
    """How far the pre-training of the model in ``folder`` came; None where nothing says so.

    SourceError when the folder's record is damaged.
    """
    file = Path(folder) / PROVENANCE
    return read_validated(file, TypeAdapter(_Built)).steps if file.is_file() else None


def check_environment(folder: str | Path, environment: EnvironmentOptions) -> None:
    """Raise ConfigError if the model in ``folder`` was built on other tasks, of which this run may test some.

    SourceError when the folder's record is damaged.
    """
    file, now = Path(folder) / PROVENANCE, _tasks_of(environment)
    built_on = read_json(file) if file.is_file() else None
    if isinstance(built_on, dict):
        built_on.pop("steps", None)  # they say nothing of what was seen, and older records have none
    if built_on != now:
        raise ConfigError(
            f"model {folder}: {PROVENANCE} does not name the tasks of environment, so the model may have "
            "seen those that this run tests on; model=… names another folder, where one is built from these"
        )


def _tasks_of(environment: EnvironmentOptions) -> dict[str, Any]:
    """What decides which tasks are training, dev and test."""
    return environment.model_dump(mode="json", include={"gym", "split", "options", "dev"})


def _write(folder: str | Path, seen: Mapping[str, Any], steps: FitSteps) -> None:
    record = {**seen, "steps": steps.model_dump(mode="json")}
    atomic_file(Path(folder) / PROVENANCE, (json.dumps(record, indent=1) + "\n").encode())


def check_provenance(folder: str | Path, data: Data) -> None:
    """Raise ConfigError if the model in ``folder`` may have seen what ``data.unseen`` keeps from training.

    SourceError when the folder's record is damaged.
    """
    if not data.unseen:
        return
    file = Path(folder) / PROVENANCE
    remedy = "model=… names another folder, where one is built without them"
    if not file.is_file():
        raise ConfigError(
            f"model {folder}: no {PROVENANCE} says whether it has seen what data.unseen keeps from training; "
            f"{remedy}"
        )
    built_on = read_validated(file, TypeAdapter(_BuiltOn))
    for kind in ("domains", "tools"):
        kept_out = getattr(built_on.unseen, kind) if built_on.source == data.source else ()
        if seen := sorted(set(getattr(data.unseen, kind)) - set(kept_out)):
            raise ConfigError(
                f"model {folder}: was built on dialogues of the {kind[:-1]} {seen[0]!r}, which data.unseen "
                f"keeps from training; {remedy}"
            )
