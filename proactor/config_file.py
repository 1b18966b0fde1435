"""Reads a `RunConfig` or an `EpisodeConfig` from a YAML file and ``key=value`` overrides.

A mistake is a ConfigError of one line that names the file or override, and the key.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from proactor.config import Data, RunConfig
from proactor.config_base import ConfigError
from proactor.episode_config import EnvironmentOptions, EpisodeConfig
from proactor.files import SourceError, settings_problem
from proactor.yaml_values import parse_yaml, read_yaml

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read ``path`` and apply ``overrides`` ("grpo.lr=1e-5"; "sft=null" leaves a stage out).

    ``name`` defaults to the file's name. Raises ConfigError, also for a run in an environment.
    """
    return _of_dialogues(path, load_run(path, overrides))


def read_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """As `load_config`, its paths as they are written: no variable is replaced, nothing is looked up."""
    return _of_dialogues(path, read_run(path, overrides))


def _of_dialogues(path: str | Path, config: RunConfig | EpisodeConfig) -> RunConfig:
    if isinstance(config, EpisodeConfig):
        raise ConfigError(
            f"{path}: environment: a run in an environment; train, pretrain, report and compare take those"
        )
    return config


def load_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig | EpisodeConfig:
    """As `load_config`, of either kind: with a key ``environment`` the file is an `EpisodeConfig`."""
    file = Path(path)
    config, by_key = _read_run(file, overrides)
    section = "data" if isinstance(config, RunConfig) else "environment"
    data: Data | EnvironmentOptions = getattr(config, section)
    place = f"{section}.path"
    found = _find_data(data.path, file, f"{_source(place, file, by_key)}: {place}")
    model = _find_model(config.model, file, _source("model", file, by_key))
    return config.model_copy(update={section: data.model_copy(update={"path": found}), "model": model})


def read_run(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig | EpisodeConfig:
    """As `read_config`, of either kind."""
    return _read_run(Path(path), overrides)[0]


def _read_run(file: Path, overrides: Sequence[str]) -> tuple[RunConfig | EpisodeConfig, dict[str, str]]:
    """A config, its paths as they are written, and its overrides by key."""
    values = _read(file)
    values.setdefault("name", file.stem)
    kind: type[RunConfig | EpisodeConfig] = EpisodeConfig if "environment" in values else RunConfig
    by_key: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: write key=value")
        _assign(values, key, _parse_value(kind, key, text), override)
        by_key[key] = override
    try:
        return kind.model_validate(values), by_key
    except ValidationError as error:
        raise ConfigError(_one_line(kind, error, file, by_key)) from None


def _read(file: Path) -> dict[str, Any]:
    if file.is_dir():
        of_run = file / "config.yaml"
        hint = f"; that of this run is {of_run}" if of_run.is_file() else ""
        raise ConfigError(f"{file}: a folder; a config is a YAML file{hint}")
    try:
        return read_yaml(file)
    except SourceError as error:
        raise ConfigError(str(error)) from None


def _parse_value(root: type[BaseModel], key: str, text: str) -> Any:
    """An override's value: text for a field of text, else YAML."""
    kind = _field_type(root, key)
    if kind is str or (set(get_args(kind)) == {str, types.NoneType} and text not in ("null", "~", "")):
        return text
    try:
        return parse_yaml(text, f"override {key}={text}")
    except SourceError as error:
        raise ConfigError(str(error)) from None


def override_text(value: Any) -> str:
    """A value of a config as an override writes it after ``key=``."""
    return value if isinstance(value, str) else json.dumps(value)


def _field_type(root: type[BaseModel], key: str) -> Any:
    """The annotation of a dotted key; None for an unknown key."""
    kind: Any = root
    for part in key.split("."):
        model = _model_of(kind)
        if model is None or part not in model.model_fields:
            return None
        kind = model.model_fields[part].annotation
    return kind


def _optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _model_of(kind: Any) -> type[BaseModel] | None:
    """The section that an annotation stands for."""
    kinds = get_args(kind) if _optional(kind) else (kind,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _assign(values: dict[str, Any], key: str, value: Any, override: str) -> None:
    """Set a dotted key in nested values."""
    *path, last = key.split(".")
    here = values
    for part in path:
        inner = here.get(part)
        if inner is None:
            inner = here[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"override {override!r}: {part} has no keys inside it")
        here = inner
    here[last] = value


def _one_line(root: type[BaseModel], error: ValidationError, file: Path, overrides: Mapping[str, str]) -> str:
    """The first problem in one line, after the file or override that its key came from."""
    key, problem = settings_problem(error, partial(_hint, root))
    return f"{_source(key, file, overrides)}: {problem}"


def _source(key: str, file: Path, overrides: Mapping[str, str]) -> str:
    """Where a key's value came from: the override of it, of its section or of a key inside; else the file."""
    for other, override in overrides.items():
        if f"{key}.".startswith(f"{other}.") or other.startswith(f"{key}."):
            return f"override {override!r}"
    return str(file)


def _hint(root: type[BaseModel], where: Iterable[Any]) -> str:
    """A close known key, or all of them, for an unknown key at ``where``."""
    *path, last = [str(part) for part in where]
    model = _model_of(_field_type(root, ".".join(path))) if path else root
    known = list(model.model_fields) if model else []
    close = difflib.get_close_matches(last, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


# -- paths ---


def _expand(text: str, source: str) -> str:
    """``text`` with its environment variables and a ``~`` at its beginning replaced.

    Raises ConfigError for a variable that is not set, and for a user without a home.
    """

    def value(match: re.Match[str]) -> str:
        expanded = os.environ.get(match[1], match[2])
        if expanded is None:
            raise ConfigError(
                f"{source}: the environment variable {match[1]} is not set; set it to the folder that "
                f"{text!r} means (docs/guide.md, Corpora)"
            )
        return expanded

    expanded = _VARIABLE.sub(value, text)
    if not expanded.startswith("~"):
        return expanded
    try:
        return str(Path(expanded).expanduser())
    except RuntimeError:
        raise ConfigError(f"{source}: no home folder is known for {expanded!r}") from None


def _find_data(text: str | None, file: Path, source: str) -> str | None:
    """An existing file or folder: as given, or beside the config. Raises ConfigError where there is none."""
    if text is None:
        return None
    path = Path(_expand(text, source))
    places = [path, file.parent / path]
    for place in places:
        if place.exists():
            return str(place)
    tried = " or ".join(dict.fromkeys(str(p) for p in places))
    raise ConfigError(f"{source}: no such file or folder: {tried}")


def _find_model(text: str, file: Path, source: str) -> str:
    """An existing folder, as given or beside the config; other text is left to the engine: a hub id."""
    expanded = _expand(text, f"{source}: model")
    path = Path(expanded)
    folder = next((p for p in (path, file.parent / path) if p.is_dir()), None)
    return expanded if folder is None else str(folder)
