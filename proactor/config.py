"""The config of a run on dialogues; `proactor.config_file` reads it from YAML.

    name: my-run                     # runs/my-run/
    model: path/or/hub-id
    data: {source: sgd, path: "${PROACTOR_DATA}/sgd", train: {limit: 200}}
    sft: {lr: 1e-3}                  # leave a stage out to skip it
    grpo: {lr: 1e-4, steps: 60, sampling: {n: 8}}
    reward: weighted_metric          # or my_module:function

`model` and `data.path` may contain environment variables, ``${NAME}`` or ``${NAME:-default}``. A relative
path is looked up in the working directory, then beside the config. Everything else is a plain value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from proactor.config_base import Redraws, RunBase, Section, Share, with_decay_total
from proactor.dialogue.board import BoardShares
from proactor.dialogue.prompt import Mode
from proactor.engine import GRPO, SFT, Sampling
from proactor.scoring.bootstrap import KEYS, LOWER_IS_BETTER
from proactor.scoring.utility import CostTable
from proactor.sources import NAMES, Selection, Split
from proactor.sources.unseen import Unseen

DEFAULT_TOKENS: dict[Mode, int] = {"plain": 64, "reasoning": 192, "graph": 320}
"""Most tokens of an answer where a config does not set them: thoughts and graphs need more."""

METRICS = tuple(key for key in KEYS if key not in LOWER_IS_BETTER)
"""Metrics by which an adapter can be chosen: more of each is better."""


class Part(Section):
    """A selection of dialogues: a split (80/10/10 by a hash of the id; null: all), a share of it, a limit.

    ``share`` uses another hash than the split.
    """

    split: Split | None = None
    share: Share = (0.0, 1.0)
    limit: int | None = Field(default=None, ge=1)


class Data(Section):
    """A corpus and its parts.

    - ``seed`` draws the sample and generates synthetic dialogues. It is not the run's seed, so that runs of
      several seeds see the same data.
    - ``keep``: domains, and the length of dialogues. ``too_long``: whether a dialogue that does not fit the
      model's context is an error or left out.
    - ``unseen``: domains and tools that occur in the test part only (`sources.unseen`).
    - ``labels``: windows or, for comparison, the point at which the logged agent acted (`windows.as_points`).
      Applies to the training part and the held-out loss. Play on dev and test is always scored by windows.
    """

    source: str = "synthetic"
    path: str | None = None
    seed: int = Field(default=0, ge=-(2**63), lt=2**63)
    options: dict[str, Any] = Field(default_factory=dict)
    keep: Selection = Selection()
    unseen: Unseen = Unseen()
    labels: Literal["windows", "points"] = "windows"
    train: Part = Part(split="train")
    dev: Part = Part(split="dev", limit=64)
    test: Part = Part(split="test", limit=200)
    too_long: Literal["error", "drop"] = "error"

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        if value not in NAMES:
            raise ValueError(f"{value!r} is not one of {', '.join(NAMES)}")
        return value

    @model_validator(mode="before")
    @classmethod
    def _default_splits(cls, values: Any) -> Any:
        """A part without a split has the split of its name."""
        if not isinstance(values, Mapping):
            return values
        given = [name for name in ("train", "dev", "test") if isinstance(values.get(name), Mapping)]
        return {**values, **{name: {"split": name, **values[name]} for name in given}}


class ShownBoards(Section):
    """Which boards a stage shows: ``logged`` and ``acted`` as in `BoardShares`."""

    logged: float = Field(default=0.5, ge=0, le=1)
    acted: float = Field(default=0.5, ge=0, le=1)

    @property
    def boards(self) -> BoardShares:
        """The two shares as one value."""
        return BoardShares(self.logged, self.acted)


class SFTStage(ShownBoards, SFT):
    """Supervised stage.

    Ends when the held-out loss has not fallen for ``patience`` checks, ``eval_every`` steps apart, or at
    ``max_steps``. Keeps the adapter of the lowest held-out loss. ``pending``: train PENDING answers too.
    """

    lr: float = Field(default=1e-3, gt=0)
    batch_dialogues: int = Field(default=8, ge=1)
    max_steps: int = Field(default=400, ge=1)
    eval_every: int = Field(default=20, ge=1)
    patience: int = Field(default=3, ge=1)
    pending: bool = True

    @model_validator(mode="before")
    @classmethod
    def _span(cls, values: Any) -> Any:
        return with_decay_total(cls, values, "max_steps")


class GRPOStage(Redraws, ShownBoards, GRPO):
    """Reinforcement stage: sample every decision of ``batch_dialogues`` dialogues, score, update; repeat.

    Every ``eval_every`` steps the dev dialogues are played; the best adapter by `EvalOptions.metric` is kept.
    The run stops where a judge gave no verdict on more than ``max_failed_share`` of its groups over
    ``failed_window`` steps (1: never).
    """

    batch_dialogues: int = Field(default=8, ge=1)
    steps: int = Field(default=100, ge=1)
    eval_every: int = Field(default=10, ge=1)
    max_failed_share: float = Field(default=0.5, ge=0, le=1)
    failed_window: int = Field(default=3, ge=1)
    sampling: Sampling = Sampling(n=8, max_tokens=64)

    @field_validator("sampling", mode="before")
    @classmethod
    def _default_sampling(cls, value: Any) -> Any:
        return {"n": 8, "max_tokens": 64, **value} if isinstance(value, Mapping) else value

    @field_validator("sampling")
    @classmethod
    def _check_sampling(cls, value: Sampling) -> Sampling:
        if value.temperature == 0:
            raise ValueError("temperature 0 is greedy, which GRPO cannot train on")
        if value.n < 2:
            raise ValueError("n=1 is a group of one, whose advantage is 0: GRPO compares at least 2 samples")
        if value.seed is not None or value.logit_mask is not None or not value.adapter:
            raise ValueError("seed, logit_mask and adapter are set by the training loop")
        return value

    @model_validator(mode="before")
    @classmethod
    def _span(cls, values: Any) -> Any:
        return with_decay_total(cls, values, "steps")


class EvalOptions(Section):
    """Playing dialogues through: greedy by default.

    - ``metric`` selects the best adapter on dev. ``resamples``: bootstrap resamples on test.
    - ``reward``: the metric reward of evaluations, with its options. Null: the config's own reward if it
      scores single decisions without a judge, else weighted_metric. Set it to compare different rewards.
    - ``optional_values``: an action is right only if its optional values are right too, not the required ones
      alone.
    - ``costs``: the utility's costs. ``budget``: wrong fires in 100 dialogues for calibrate.
    """

    max_tokens: int = Field(default=64, ge=1)
    temperature: float = Field(default=0.0, ge=0)
    metric: str = "reward"
    reward: str | None = None
    reward_options: dict[str, Any] = Field(default_factory=dict)
    resamples: int = Field(default=2000, ge=100, le=100_000)
    optional_values: bool = False
    costs: CostTable = CostTable()
    budget: float = Field(default=1.0, ge=0)
    final: bool = Field(
        default=True, description="compare start and best on the test dialogues when training ends"
    )

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, value: str) -> str:
        if value not in METRICS:
            why = "is lowest for an agent that never acts" if value in LOWER_IS_BETTER else "is unknown"
            raise ValueError(f"{value!r} {why}; take one of {', '.join(METRICS)}")
        return value


class PromptOptions(Section):
    """Fields of `prompt.PromptStyle`; null keeps its default.

    ``mode``: the answer alone (plain), after a thought (reasoning), or after a thought and the agent's own
    state graph (graph). The default limits of tokens depend on it (`DEFAULT_TOKENS`).
    """

    mode: Mode = "plain"
    instructions: str | None = None
    catalog: str | None = None
    board_role: str | None = None


class RunConfig(RunBase):
    """A whole run on dialogues."""

    data: Data = Data()
    prompt: PromptOptions = PromptOptions()
    sft: SFTStage | None = None
    grpo: GRPOStage | None = None
    reward: str = "weighted_metric"
    reward_options: dict[str, Any] = Field(default_factory=dict)
    eval: EvalOptions = EvalOptions()

    @model_validator(mode="after")
    def _check_graph(self) -> RunConfig:
        if self.prompt.mode == "graph" and self.grpo is not None:
            for name, allowed in GRAPH_REFUSES.items():
                if (value := getattr(self.grpo, name)) not in allowed:
                    raise ValueError(f"grpo.{name}={value}: not with prompt.mode=graph")
        return self

    @model_validator(mode="before")
    @classmethod
    def _default_max_tokens(cls, values: Any) -> Any:
        """Longer answers for a mode that needs them, where the config does not set their length."""
        prompt = values.get("prompt") if isinstance(values, Mapping) else None
        mode = prompt.get("mode") if isinstance(prompt, Mapping) else None
        if mode not in ("reasoning", "graph"):
            return values
        tokens = DEFAULT_TOKENS[mode]
        changes: dict[str, Any] = {}
        playing, grpo = values.get("eval", {}), values.get("grpo")
        if isinstance(playing, Mapping):
            changes["eval"] = {"max_tokens": tokens, **playing}
        if isinstance(grpo, Mapping) and isinstance(sampling := grpo.get("sampling", {}), Mapping):
            changes["grpo"] = {**grpo, "sampling": {"max_tokens": tokens, **sampling}}
        return {**values, **changes}


GRAPH_REFUSES = {"redraws": (0,), "overlong": (None,), "advantages": ("art", "verl", "mean", "rloo")}
"""What `GRPOStage` may say in graph mode, where candidates have graphs of their own and the advantages of a
decision are computed over several prompts."""
