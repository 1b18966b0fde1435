"""The config of a run in an environment, whose tasks stand in the place of dialogues.

    name: my-run
    model: path/or/hub-id
    environment: {gym: function, path: "${PROACTOR_DATA}/userrl", play: {sampling: {max_tokens: 128}}}
    method: {name: bao, options: {user_price: 0.05}}
    sft: {lr: 1e-3}                  # stage A: a symbolic expert's episodes; leave it out to skip it
    grpo: {lr: 1e-4, steps: 60, n: 8}

A config file with the key ``environment`` is one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from proactor.config_base import Pretrain, Redraws, RunBase, Section, Share, with_decay_total
from proactor.engine import GRPO, SFT, Overlong
from proactor.environments.gyms.catalog import GYMS
from proactor.environments.host import HostConfig
from proactor.environments.player import PlayConfig

MOST_EPISODES = 2**16
METRICS = ("score", "solved", "pass_u1", "pass_u2", "pass_u3")
"""Metrics of `methods.user_metrics` of which more is better."""


class EnvironmentOptions(Section):
    """A gym, its tasks, and how they are played.

    - ``path``, ``split``: the gym's keys of these names (null: left to the gym); ``options``: its others.
    - ``share``: the part of the training tasks that is trained on; ``dev``: how many of all training tasks
      are kept out, to choose the best adapter by. Both are drawn by the tasks' names.
    - ``user``: the model that plays the user and judges, for the gyms that need one (`environments.users`).
    - ``host``, ``play``: training's; evaluation plays at `EpisodeEval.temperature` and hides the reward line.
    """

    gym: str
    path: str | None = None
    split: Literal["official", "none"] | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    user: str | dict[str, Any] | None = None
    share: Share = (0.0, 1.0)
    dev: int = Field(default=32, ge=1)
    host: HostConfig = HostConfig()
    play: PlayConfig = PlayConfig()

    @field_validator("gym")
    @classmethod
    def _check_gym(cls, value: str) -> str:
        if value not in GYMS:
            raise ValueError(f"{value!r} is not one of {', '.join(GYMS)}")
        return value

    @field_validator("play")
    @classmethod
    def _check_play(cls, value: PlayConfig) -> PlayConfig:
        sampling = value.sampling
        if sampling.temperature == 0:
            raise ValueError("temperature 0 is greedy, which GRPO cannot train on")
        if sampling.n != 1:
            raise ValueError(f"sampling.n={sampling.n}: the episodes of a group are grpo.n")
        if sampling.seed is not None or sampling.logit_mask is not None or not sampling.adapter:
            raise ValueError("sampling.seed, logit_mask and adapter are set by the training loop")
        return value

    @model_validator(mode="after")
    def _check_workers(self) -> EnvironmentOptions:
        if self.user is not None and self.host.workers != "threads":
            raise ValueError("host.workers: a user is asked from threads of this process; leave it out")
        return self

    @property
    def settings(self) -> dict[str, Any]:
        """What `open_gym` takes."""
        given = {"path": self.path, "split": self.split}
        return {"name": self.gym, **self.options, **{k: v for k, v in given.items() if v is not None}}


class MethodOptions(Section):
    """How stage B learns. From the agent's episodes, whose turns get advantages: UserRL's turn credit
    (`turn_credit.TurnCredit`), BAO (`bao.BAO`), InfoPO (`infopo.InfoPO`), Agent-Omit, which also edits their
    history (`agent_omit.AgentOmit`). Or the policy teaches itself (SAND, `sand.SAND`: no GRPO), or learns at
    the states of an expert's episodes (StepAgent, `stepagent.StepAgent`). ``options``: those of the class.
    """

    name: Literal["userrl", "bao", "infopo", "agent_omit", "sand", "stepagent"] = "userrl"
    options: dict[str, Any] = Field(default_factory=dict)


Teacher = Literal["expert", "hasty"]
"""Whose episodes are learned from (`players.players`): a gym's symbolic expert, or a player that knows the
game as well and acts more or less at random.
"""


class EpisodePretrain(Pretrain):
    """A small model that learns from scratch to play as ``teacher`` does."""

    teacher: Teacher = "expert"


class EpisodeSFT(SFT):
    """Stage A: supervised training on the episodes of a symbolic expert, where the gym has one.

    Ends as `SFTStage`. ``thoughts``: whether the expert says what it remembers, which rules are left and what
    it plans before each call. Failed episodes, and those that say a section too rarely, are left out.
    """

    lr: float = Field(default=1e-3, gt=0)
    batch_tasks: int = Field(default=8, ge=1)
    max_steps: int = Field(default=200, ge=1)
    eval_every: int = Field(default=20, ge=1)
    patience: int = Field(default=3, ge=1)
    thoughts: bool = True

    @model_validator(mode="before")
    @classmethod
    def _span(cls, values: Any) -> Any:
        return with_decay_total(cls, values, "max_steps")


class EpisodeGRPO(Redraws, GRPO):
    """Stage B: play ``n`` episodes of each of ``batch_tasks`` tasks, credit their turns, update; repeat.

    Every ``eval_every`` steps the dev tasks are played; the best adapter by `EpisodeEval.metric` is kept. The
    stage ends where ``max_flat_steps`` steps in a row had no group with spread (null: never): nothing is
    learned from those.
    """

    n: int = Field(default=8, ge=2, le=MOST_EPISODES)
    batch_tasks: int = Field(default=8, ge=1, le=MOST_EPISODES)
    steps: int = Field(default=100, ge=1)
    eval_every: int = Field(default=10, ge=1)
    max_flat_steps: int | None = Field(default=10, ge=1)

    @field_validator("overlong")
    @classmethod
    def _check_overlong(cls, value: Overlong | None) -> None:
        if value is not None:
            raise ValueError("shapes rewards, and an episode's advantages come from its method")

    @model_validator(mode="before")
    @classmethod
    def _span(cls, values: Any) -> Any:
        default = cls.model_fields["advantages"].default  # which a saved config spells out
        if isinstance(values, Mapping) and values.get("advantages", default) != default:
            raise ValueError("grpo.advantages: the method normalises (advantages in its turn credit)")
        return with_decay_total(cls, values, "steps")


class EpisodeEval(Section):
    """Playing the dev tasks, and at the end the test tasks, once each.

    ``temperature``: 0 plays greedily, as UserRL evaluates. A small model then gives a wrong answer again and
    again, where a sampled one would give another.

    ``metric`` selects the best adapter on dev; ``adapter``: which one of GRPO is played on test ("last" is
    fair to methods that trade the metric for something else, such as fewer questions). ``limit``: the first
    so many test tasks (null: all); ``success``: the least score that solves a task, where the gym does not
    say so itself (`Episode.solves`).
    """

    temperature: float = Field(default=0.0, ge=0, le=10)
    metric: str = "score"
    adapter: Literal["best", "last"] = "best"
    limit: int | None = Field(default=None, ge=1)
    success: float = 1.0
    resamples: int = Field(default=2000, ge=100, le=100_000)
    final: bool = True

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, value: str) -> str:
        if value not in METRICS:
            raise ValueError(f"{value!r} is not one of {', '.join(METRICS)}")
        return value


NO_REDRAWS = {
    "infopo": "learns from groups without spread too",
    "stepagent": "learns at an expert's states, and draws no groups of episodes",
}
"""Methods whose groups are not drawn again, and why."""


class EpisodeConfig(RunBase):
    """A whole run in an environment."""

    pretrain: EpisodePretrain | None = None
    environment: EnvironmentOptions
    method: MethodOptions = MethodOptions()
    sft: EpisodeSFT | None = None
    grpo: EpisodeGRPO | None = None
    eval: EpisodeEval = EpisodeEval()

    @model_validator(mode="after")
    def _no_dialogues(self) -> EpisodeConfig:
        if self.pretrain is not None and self.pretrain.synthetic:
            raise ValueError("pretrain.synthetic: dialogues teach no environment; leave it out")
        return self

    @model_validator(mode="after")
    def _check_redraws(self) -> EpisodeConfig:
        why = NO_REDRAWS.get(self.method.name)
        if self.grpo is not None and self.grpo.redraws and why is not None:
            raise ValueError(f"grpo.redraws={self.grpo.redraws}: {self.method.name} {why}")
        return self

    @model_validator(mode="after")
    def _one_stage_b(self) -> EpisodeConfig:
        if self.method.name == "sand" and self.grpo is not None:
            raise ValueError("grpo: SAND is a stage B of its own; grpo=null, its updates are method.options")
        return self
