"""What the config of every run has, on dialogues (`proactor.config`) or in an environment
(`proactor.episode_config`): frozen sections with checked values, and the small model that a run may build.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, model_validator

from proactor.engine import Config, EngineConfig, LoRA, ProactorError


class ConfigError(ProactorError):
    """A config that cannot be used. The message is one line and names the file or override, and the key."""


class Section(Config):
    """Base of the sections: immutable; unknown keys are errors."""


def _check_share(value: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= value[0] < value[1] <= 1:
        raise ValueError(f"{list(value)} is not a share: two fractions of 0 to 1, the smaller one first")
    return value


Share = Annotated[tuple[float, float], AfterValidator(_check_share)]
"""The part of a whole between two fractions, e.g. [0, 0.6]."""


class Redraws(Section):
    """``redraws``: how often, at most, a step draws the groups without spread again, which give no gradient.
    ``redraw``: their own decisions (or tasks) with other noise, or other ones: those that come next in the
    epoch's order, dialogues whole, until as many groups are drawn as had no spread (`training.redraws`).
    """

    redraws: int = Field(default=0, ge=0, le=64)
    redraw: Literal["same", "other"] = "same"


Pieces = Literal["words", "lines"]


class SmallModel(Section):
    """Sizes of a small Qwen2 model and of its training.

    ``text_weight``: loss of the dialogue's own text, against 1 for answers; ``pending``: whether answers
    announce actions that are not ready yet; ``copy_tokens``: length of the spans that the model learns to
    repeat, one for each decision point, which teach it to copy values (0: none); ``waiting_share``: the
    share of the points with nothing to do that are trained, with the inverse weight; ``pieces``: whether a
    token is at most a word, or what stands in a line between digits and signs. Calls of one form are a few
    tokens then, instead of some 35.
    """

    hidden: int = Field(default=128, ge=1, le=65_536)
    layers: int = Field(default=4, ge=1, le=1024)
    heads: int = Field(default=4, ge=1, le=65_536)
    kv_heads: int = Field(default=2, ge=1, le=65_536)
    intermediate: int = Field(default=384, ge=1, le=65_536)
    vocabulary: int = Field(
        default=1024, ge=259, le=2**20, description="at least every byte and 3 special tokens"
    )
    context: int = Field(default=2048, ge=1, le=2**20)
    batch: int = Field(default=16, ge=1)
    lr: float = Field(default=1.5e-3, gt=0)
    muon_lr: float = Field(default=0.008, gt=0)
    text_weight: float = Field(default=0.3, ge=0)
    pending: bool = False
    pieces: Pieces = "words"
    copy_tokens: int = Field(default=16, ge=0)
    waiting_share: float = Field(default=0.3, gt=0, le=1)
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _divides(self) -> SmallModel:
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} does not divide heads={self.heads}")
        if self.hidden % (2 * self.heads):
            raise ValueError(f"hidden={self.hidden} is not an even multiple of heads={self.heads}")
        return self


class Pretrain(Section):
    """A small model built from scratch where `RunConfig.model` does not exist (`training.pretrain`).

    Trained for ``steps``, or until ``seconds`` are over, on the training split (a ``share`` of it, at most
    ``limit`` dialogues), after one pass over ``synthetic`` dialogues, which teach copying values sooner than
    few real ones. With enough seconds the model does not depend on the machine's pace. A model that has
    memorised the dialogues of GRPO explores nothing there: where dialogues are few, give GRPO others
    (``data.train.share``).
    """

    steps: int | None = Field(default=None, ge=1)
    seconds: float = Field(default=300, gt=0)
    share: Share = (0.0, 1.0)
    limit: int | None = Field(default=None, ge=20)
    synthetic: int = Field(default=0, ge=0)
    size: SmallModel = SmallModel()


class RunBase(Section):
    """What every run has.

    ``start``: the folder of an adapter to begin with (null: an untrained one). ``save_every``: training steps
    between saves; evaluations and SIGTERM save too. ``max_nonfinite``: steps in a row with a gradient that is
    not finite, which change nothing, after which the run ends with an error, its last save untouched (null:
    never). ``samples_every``: steps between files of samples. ``runs``: the folder of run folders.
    """

    name: str = Field(pattern=r"^[\w][\w.-]*$")
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    model: str
    pretrain: Pretrain | None = None
    engine: EngineConfig = EngineConfig()
    lora: LoRA = LoRA()
    start: str | None = None
    save_every: int = Field(default=10, ge=1)
    max_nonfinite: int | None = Field(default=5, ge=1)
    samples_every: int = Field(default=1, ge=1)
    runs: str = "runs"

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return Path(self.runs) / self.name


def with_decay_total(kind: type[BaseModel], values: Any, steps: str) -> Any:
    """A decay without ``total`` spans the stage: its ``steps`` key, counted in optimizer steps."""
    if not isinstance(values, Mapping) or values.get("decay", "constant") == "constant" or "total" in values:
        return values
    length = values.get(steps, kind.model_fields[steps].default)
    for factor in (values.get("epochs", 1), values.get("minibatches", 1)):
        if not isinstance(length, int) or not isinstance(factor, int):
            return {**values, "total": 1}  # validation reports the wrong type under its own key
        length *= factor
    return {**values, "total": length}
