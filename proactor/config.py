"""What a run is, in one frozen object: read from YAML, changed by ``key=value`` overrides, and refused by name where a key or value is wrong.

    name: my-run                     # runs/my-run/
    model: path/or/hub-id
    data: {source: sgd, path: "${PROACTOR_DATA}/sgd", train: {limit: 200}}
    sft: {lr: 1e-3}                  # leave a stage out to skip it
    grpo: {lr: 1e-4, steps: 60, sampling: {n: 8}}
    reward: weighted_metric          # or my_module:function

`model` and `data.path` may hold ``${NAME}`` or ``${NAME:-default}`` of the environment; a relative one is looked for in the working directory, then
beside the config. Everything else is a plain value.
"""

from __future__ import annotations

import difflib
import os
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from proactor.bootstrap import KEYS
from proactor.engine import GRPO, SFT, LoRA, Sampling
from proactor.sources import NAMES, Selection, Split

_VARIABLE = re.compile(r"\$\{(\w+)(?::-([^}]*))?\}")


class ConfigError(ValueError):
    """A config that cannot be used: one line that names the file (or the override) and the key."""


class Section(BaseModel):
    """Base of the sections: immutable, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class EngineOptions(Section):
    """What `Engine.load` takes; see there."""

    device: str = "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    quantization: Literal["auto", "nf4", "none"] = "auto"
    resident: Literal["auto", "dense", "nf4"] = "auto"
    deterministic: bool = False
    kv_tokens: int | None = Field(default=None, ge=1)
    page_size: int = Field(default=16, ge=1)
    token_budget: int = Field(default=8192, ge=1)
    max_batch: int = Field(default=256, ge=1)
    revision: str | None = None


class Part(Section):
    """Which dialogues: a split (80/10/10 by a hash of the id; null: all) and at most how many."""

    split: Split | None = None
    limit: int | None = Field(default=None, ge=1)


class Data(Section):
    """A corpus and its parts. ``seed`` draws the sample (and generates synthetic dialogues), apart from the run's seed: runs of
    several seeds see the same data. ``keep``: which domains, and how long. ``too_long``: what happens to a dialogue that does not fit the model's context.
    """

    source: str = "synthetic"
    path: str | None = None
    seed: int = 0
    options: dict[str, Any] = Field(default_factory=dict)
    keep: Selection = Selection()
    train: Part = Part(split="train")
    dev: Part = Part(split="dev", limit=64)
    test: Part = Part(split="test", limit=200)
    too_long: Literal["error", "drop"] = "error"

    @field_validator("source")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in NAMES:
            raise ValueError(f"{value!r} is not one of {', '.join(NAMES)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _splits(cls, values: Any) -> Any:
        """A part that says only its limit keeps its own split."""
        if not isinstance(values, Mapping):
            return values
        named = {k: {"split": k, **values[k]} for k in ("train", "dev", "test") if isinstance(values.get(k), Mapping)}
        return {**values, **named}


class SFTStage(SFT):
    """Supervised stage: ends when the held-out loss has not fallen for ``patience`` checks, ``eval_every`` steps apart, or at ``max_steps``;
    the adapter of the lowest held-out loss goes on. ``logged``: probability of the logged board against the empty one. ``pending``: show PENDING answers too.
    """

    lr: float = Field(default=1e-3, gt=0)
    batch_dialogues: int = Field(default=8, ge=1)
    max_steps: int = Field(default=400, ge=1)
    eval_every: int = Field(default=20, ge=1)
    patience: int = Field(default=3, ge=1)
    logged: float = Field(default=0.5, ge=0, le=1)
    pending: bool = True

    @model_validator(mode="before")
    @classmethod
    def _span(cls, values: Any) -> Any:
        return _spanned(cls, values, "max_steps")


class GRPOStage(GRPO):
    """Reinforcement stage: ``steps`` times sample every decision of ``batch_dialogues`` dialogues, score, update. ``eval_every`` steps apart the dev
    dialogues are played through, and the adapter that did best by `EvalOptions.metric` is kept.
    """

    batch_dialogues: int = Field(default=8, ge=1)
    steps: int = Field(default=100, ge=1)
    eval_every: int = Field(default=10, ge=1)
    logged: float = Field(default=0.5, ge=0, le=1)
    sampling: Sampling = Sampling(n=8, max_tokens=64)

    @field_validator("sampling", mode="before")
    @classmethod
    def _defaults(cls, value: Any) -> Any:
        return {"n": 8, "max_tokens": 64, **value} if isinstance(value, Mapping) else value

    @field_validator("sampling")
    @classmethod
    def _trainable(cls, value: Sampling) -> Sampling:
        if value.temperature == 0:
            raise ValueError("temperature 0 is greedy, which GRPO cannot train on")
        if value.seed is not None or value.logit_mask is not None or not value.adapter:
            raise ValueError("seed, logit_mask and adapter are set by the training loop")
        return value

    @model_validator(mode="before")
    @classmethod
    def _span(cls, values: Any) -> Any:
        return _spanned(cls, values, "steps")


class EvalOptions(Section):
    """Playing dialogues through: greedy by default. ``metric`` picks the best adapter on dev; ``resamples`` of the bootstrap on test."""

    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    metric: str = "reward"
    resamples: int = Field(default=2000, ge=100)
    final: bool = Field(default=True, description="compare start and best on the test dialogues when training ends")

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in KEYS:
            raise ValueError(f"{value!r} is not one of {', '.join(KEYS)}")
        return value


class PromptOptions(Section):
    """Fields of `prompt.PromptStyle`; null keeps its default."""

    instructions: str | None = None
    catalog: str | None = None
    board_role: str | None = None


class Pretrain(Section):
    """A small model from scratch, built where `RunConfig.model` does not exist yet (see `proactor.pretrain`): for ``seconds``, on the training
    split (``limit`` dialogues of it; null: all). ``size``: fields of `pretrain.SmallModel`.
    """

    seconds: float = Field(default=300, gt=0)
    limit: int | None = Field(default=None, ge=20)
    size: dict[str, Any] = Field(default_factory=dict)


class RunConfig(Section):
    """A whole run. ``save_every``: training steps between saves (an evaluation and SIGTERM save too). ``samples_every``: steps between
    files of samples. ``runs``: the folder that holds run folders.
    """

    name: str = Field(pattern=r"^[\w][\w.-]*$")
    seed: int = 0
    model: str
    pretrain: Pretrain | None = None
    engine: EngineOptions = EngineOptions()
    lora: LoRA = LoRA()
    data: Data = Data()
    prompt: PromptOptions = PromptOptions()
    sft: SFTStage | None = None
    grpo: GRPOStage | None = None
    reward: str = "weighted_metric"
    reward_options: dict[str, Any] = Field(default_factory=dict)
    eval: EvalOptions = EvalOptions()
    save_every: int = Field(default=10, ge=1)
    samples_every: int = Field(default=1, ge=1)
    runs: str = "runs"

    @property
    def folder(self) -> Path:
        """Where the run lives."""
        return Path(self.runs) / self.name


def _spanned(kind: type[BaseModel], values: Any, steps: str) -> Any:
    """A decay without ``total`` spans the stage, counted in optimizer steps."""
    if not isinstance(values, Mapping) or values.get("decay", "constant") == "constant" or "total" in values:
        return values
    length = values.get(steps, kind.model_fields[steps].default)
    for factor in (values.get("epochs", 1), values.get("minibatches", 1)):
        if not isinstance(length, int) or not isinstance(factor, int):
            return {**values, "total": 1}  # a wrong type is reported under its own key
        length *= factor
    return {**values, "total": length}


# -- reading -------------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # yaml has no annotations
    """YAML with 1e-5 as a number (YAML 1.2) and without keys given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} is given twice", key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read ``path`` and apply ``overrides`` ("grpo.lr=1e-5"; "sft=null" leaves a stage out). ``name`` defaults to the file's.

    Raises ConfigError for anything unknown or impossible, in one line that names file or override, and key.
    """
    file = Path(path)
    values = _read(file)
    values.setdefault("name", file.stem)
    given: dict[str, str] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise ConfigError(f"override {override!r}: write key=value")
        _assign(values, key, _typed(key, text), override)
        given[key] = override
    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_one_line(error, file, given)) from None
    data = config.data.model_copy(update={"path": _existing(config.data.path, file, _source("data.path", file, given))})
    model = _model(config.model, file, _source("model", file, given))
    return config.model_copy(update={"data": data, "model": model})


def _read(file: Path) -> dict[str, Any]:
    try:
        values = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file}: not a text file") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{file}{f':{mark.line + 1}' if mark else ''}: not YAML ({problem})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: expected keys and values, found {type(values).__name__}")
    return values


def _typed(key: str, text: str) -> Any:
    """An override's value by the type of its field: text stays text, all else is read as YAML."""
    kind = _field_type(key)
    if kind is str or (_optional(kind) and str in get_args(kind) and text not in ("null", "~", "")):
        return text
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError:
        raise ConfigError(f"override {key}={text}: the value is not YAML") from None


def _field_type(key: str) -> Any:
    kind: Any = RunConfig
    for part in key.split("."):
        model = _model_of(kind)
        if model is None or part not in model.model_fields:
            return None
        kind = model.model_fields[part].annotation
    return kind


def _optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, types.UnionType)


def _model_of(kind: Any) -> type[BaseModel] | None:
    kinds = get_args(kind) if _optional(kind) else (kind,)
    return next((k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)), None)


def _assign(values: dict[str, Any], key: str, value: Any, override: str) -> None:
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


def _one_line(error: ValidationError, file: Path, given: Mapping[str, str]) -> str:
    """The first problem, told in one line: an unknown key before any other, since it often explains the rest."""
    errors = error.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    key = ".".join(str(part) for part in first["loc"])
    source = _source(key, file, given)
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {key!r}{_hint(first['loc'])}"
    message = first["msg"].removeprefix("Value error, ").replace("\n", " ")
    got = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
    return f"{source}: {key}: {message}{got}"


def _source(key: str, file: Path, given: Mapping[str, str]) -> str:
    """Where a key's value came from: the override that set it, something around it or inside it, or the file."""
    nested = (o for k, o in given.items() if f"{key}.".startswith(f"{k}.") or k.startswith(f"{key}."))
    override = next(nested, None)
    return f"override {override!r}" if override is not None else str(file)


def _hint(where: Iterable[Any]) -> str:
    *path, last = [str(part) for part in where]
    model = _model_of(_field_type(".".join(path))) if path else RunConfig
    known = list(model.model_fields) if model else []
    close = difflib.get_close_matches(last, known, 1)
    return f" (did you mean {close[0]!r}?)" if close else f" (known: {', '.join(known)})"


# -- paths ---------------------------------------------------------------------------------------------------------------


def _expand(text: str, source: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1], match[2])
        if found is None:
            raise ConfigError(
                f"{source}: the environment variable {match[1]} is not set; set it to the folder that {text!r} means (README, Data)"
            )
        return found

    return _VARIABLE.sub(value, text)


def _existing(text: str | None, file: Path, source: str) -> str | None:
    if text is None:
        return None
    path = Path(_expand(text, f"{source}: data.path")).expanduser()
    places = [path, file.parent / path]
    found = next((p for p in places if p.exists()), None)
    if found is None:
        looked = " or ".join(dict.fromkeys(str(p) for p in places))
        raise ConfigError(f"{source}: data.path: no such file or folder: {looked}")
    return str(found)


def _model(text: str, file: Path, source: str) -> str:
    """A folder where there is one; anything else is left for the engine, which knows hub ids."""
    expanded = _expand(text, f"{source}: model")
    path = Path(expanded).expanduser()
    return next((str(p) for p in (path, file.parent / path) if p.is_dir()), expanded)
