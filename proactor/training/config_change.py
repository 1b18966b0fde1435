"""How a config differs from the one that a run was begun with, and whether the run may go on with it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proactor.config import RunConfig
from proactor.config_file import override_text
from proactor.episode_config import EpisodeConfig
from proactor.yaml_values import read_yaml

MAY_CHANGE = (
    "sft.max_steps",
    "sft.patience",
    "sft.eval_every",
    "grpo.steps",
    "grpo.eval_every",
    "grpo.max_failed_share",
    "grpo.failed_window",
    "grpo.max_flat_steps",
    "engine.rank_timeout",
    "engine.max_waiting",
    "engine.parked_share",
    "eval.adapter",
    "eval.budget",
    "eval.final",
    "eval.limit",
    "eval.resamples",
    "save_every",
    "max_nonfinite",
    "samples_every",
    "runs",
)
"""Keys that a resumed run may change; with another value of any other key it would be another run.

What else `eval` has decides the value that a check on dev gives: of two kinds of value none is the best.
"""


def refused_change(file: Path, config: RunConfig | EpisodeConfig) -> str | None:
    """Why a run with the config ``file`` cannot go on with ``config``, in one line; None where it can.

    SourceError when the file is damaged.
    """
    if (change := first_change(file, config, MAY_CHANGE)) is None:
        return None
    key, old, new = change
    ways = [f"`proactor train {shlex.quote(str(file))} --resume`", "name=… starts another run"]
    was_set = old is not None or _has(read_yaml(file), key)
    if was_set and _has(config.model_dump(mode="json"), key):
        ways.insert(0, shlex.quote(f"{key}={override_text(old)}"))
    return (
        f"{file}: {key} was {old!r}, now {new!r}: a resumed run keeps its config; "
        f"{' or '.join(ways[:-1])} goes on with it, {ways[-1]}"
    )


def first_change(
    file: Path, config: RunConfig | EpisodeConfig, aside: Iterable[str] = ()
) -> tuple[str, Any, Any] | None:
    """(key, old value, new value) of the first difference between the config ``file`` and ``config``.

    None when they are equal, or when there is no file. Keys and sections named in ``aside`` are not compared.
    A key missing in the file of an older version has its default. SourceError when the file is damaged.
    """
    if not file.exists():
        return None
    written = read_yaml(file)
    with suppress(ValidationError):  # a key that no longer exists is reported below
        written = type(config).model_validate(written).model_dump(mode="json")
    old, new = _flat(written), _flat(config.model_dump(mode="json"))
    ignored = tuple(aside)
    for key in sorted(old.keys() | new.keys()):
        if any(key == k or key.startswith(f"{k}.") for k in ignored):
            continue
        before, now = old.get(key), new.get(key)
        if key == "model" and isinstance(before, str):  # ./a and a are one folder
            before, now = os.path.normpath(before), os.path.normpath(str(now))
        if before != now:
            return key, old.get(key), new.get(key)
    return None


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _has(values: Any, key: str) -> bool:
    """Whether nested values have a dotted key."""
    for part in key.split("."):
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True
