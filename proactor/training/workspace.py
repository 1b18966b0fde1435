"""`Workspace`: the engine, dialogues, prompts and reward of a run, made from its config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from proactor.config import RunConfig
from proactor.config_base import ConfigError
from proactor.dialogue import Dialogue, windows
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.matching import MatchRule, exact_rule
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import Engine
from proactor.evaluation.play import Evaluation, evaluate, join_evaluations
from proactor.progress import Progress, Quiet
from proactor.rewards import (
    GroupReward,
    Reward,
    RewardError,
    RewardFunction,
    RewardWorker,
    TurnReward,
    WeightedMetric,
    load_reward,
)
from proactor.scoring.utility import CostError, CostTable
from proactor.training.corpora import load_corpus, merge_catalogs, prompt_style
from proactor.training.fitting import Fitting
from proactor.training.loading import load_engine
from proactor.training.provenance import check_provenance


@dataclass(slots=True)
class Workspace:
    """An engine with dialogues to train on (``train``), to select by (``dev``) and to report on (``test``).

    ``metric``: the reward that `eval.reward` names. ``worker``: scores groups during sampling, where the
    reward is a `GroupReward`. ``costs``: utility costs in evaluations. ``dropped``: dialogues left out of a
    part because they do not fit the context.
    """

    config: RunConfig
    engine: Engine
    encoder: PromptEncoder
    train: tuple[Dialogue, ...]
    dev: tuple[Dialogue, ...]
    test: tuple[Dialogue, ...]
    reward: Reward
    metric: TurnReward | None = None
    worker: RewardWorker | None = None
    costs: CostTable = field(default_factory=CostTable)
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    ui: Progress = field(default_factory=Quiet)

    @classmethod
    def open(cls, config: RunConfig, ui: Progress | None = None) -> Workspace:
        """Read data and reward, which fail fast, then load the model.

        Raises ConfigError, SourceError, RewardError or EngineError.
        """
        ui = ui or Quiet()
        if config.pretrain is not None:
            check_provenance(config.model, config.data)
        reward, metric = load_reward(config.reward, config.reward_options), metric_reward(config)
        corpora = {name: load_corpus(config, name) for name in ("train", "dev", "test")}
        catalog = merge_catalogs([corpus.catalog for corpus in corpora.values()])
        style = prompt_style(config, catalog)
        engine = load_engine(config, ui)
        with engine.together("dialogues and reward"):
            if engine.chat is None:
                raise ConfigError(f"model {config.model}: the folder holds no tokenizer")
            encoder = PromptEncoder(engine.chat, catalog, style)
            workspace = cls(
                config,
                engine,
                encoder,
                (),
                (),
                (),
                reward,
                metric,
                counters={k: c.counters for k, c in corpora.items()},
                ui=ui,
            )
            workspace.bind()
            workspace.costs = evaluation_costs(config, encoder.catalog)
            workspace.train, workspace.dev, workspace.test = (
                workspace.select_fitting(name, c.dialogues) for name, c in corpora.items()
            )
        return workspace

    def bind(self) -> None:
        """Give the rewards the engine and the catalog. Raises RewardError when one cannot work with them."""
        for reward in (self.reward, self.metric):
            if isinstance(reward, GroupReward | TurnReward):
                reward.bind(self.engine, self.encoder.catalog)
        if isinstance(self.reward, GroupReward):
            self.worker = RewardWorker(self.config.reward, self.reward)

    @property
    def rule(self) -> MatchRule:
        """What counts as right in evaluations: exact, by the catalog's required values."""
        return exact_rule(self.encoder.catalog, optional=self.config.eval.optional_values)

    def close(self) -> None:
        """End the reward worker."""
        if self.worker is not None:
            self.worker.close()

    def why_dropped(self) -> str:
        """The last reason, on any rank, for which the reward dropped a group; empty where it names none."""
        mine = getattr(self.reward, "failure", "")
        return next((reason for reason in self.engine.gather(mine, "judge") if reason), "")

    @property
    def turn_reward(self) -> TurnReward | None:
        """The reward of evaluations: `eval.reward`, else the config's own if it scores single decisions.

        None stands for the default. Never a judge: a judge that trains the agent must not grade it.
        """
        if self.metric is not None:
            return self.metric
        return self.reward if isinstance(self.reward, TurnReward) else None

    @property
    def sample_reward(self) -> RewardFunction:
        """The reward of a single answer: the config's own, or the metric if that one compares answers."""
        if isinstance(self.reward, GroupReward):
            return self.turn_reward or WeightedMetric()
        return self.reward

    @property
    def held_out(self) -> tuple[Dialogue, ...]:
        """The dev dialogues with training's labels: the held-out loss measures what is trained."""
        if self.config.data.labels == "points":
            return tuple(windows.as_points(d) for d in self.dev)
        return self.dev

    @property
    def fitting(self) -> Fitting:
        """Which dialogues fit the engine's context."""
        return Fitting(self.config, self.encoder, self.engine.context_length)

    def select_fitting(self, part: str, dialogues: Sequence[Dialogue]) -> tuple[Dialogue, ...]:
        """`Fitting.select`; those left out are counted in `dropped`."""
        kept = self.fitting.select(part, dialogues)
        self.dropped[part] = len(dialogues) - len(kept)
        return kept

    def cut_answers(self, dialogues: Sequence[Dialogue]) -> str:
        """One sentence on the wanted answers that a token limit of the config cuts; empty if none."""
        lengths = [len(self.encoder.target_ids(d, u)) for d in dialogues for u in d.decision_turns]
        limits = {"eval.max_tokens": self.config.eval.max_tokens}
        if self.config.grpo is not None:
            limits["grpo.sampling.max_tokens"] = self.config.grpo.sampling.max_tokens
        for key, limit in limits.items():
            if over := sum(length > limit for length in lengths):
                return (
                    f"{key}={limit} cuts {over} of {len(lengths)} wanted answers, "
                    f"which need up to {max(lengths)} tokens"
                )
        return ""

    def play(self, dialogues: Sequence[Dialogue], name: str) -> Evaluation:
        """`evaluate` over all ranks: each plays its share, every rank gets the whole result."""
        options = self.config.eval
        share = self.engine.share(dialogues)
        with self.engine.together("evaluation"):
            evaluation = evaluate(
                self.engine,
                self.encoder,
                share,
                self.turn_reward,
                max_tokens=options.max_tokens,
                temperature=options.temperature,
                seed=self.config.seed,
                costs=self.costs,
                rule=self.rule,
                progress=lambda done, total: self.ui.substep(name, done, total),
            )
        if self.engine.world_size == 1:
            return evaluation
        mine = evaluation, sum(len(d.decision_turns) for d in share)
        parts = self.engine.gather(mine, "evaluation")
        return join_evaluations(dialogues, parts)


def evaluation_costs(config: RunConfig, catalog: Catalog) -> CostTable:
    """`eval.costs` with the tools that need assent. Raises ConfigError for a tool not in ``catalog``."""
    try:
        return config.eval.costs.with_assent(catalog)
    except CostError as error:
        raise ConfigError(f"eval.{error}") from None


def metric_reward(config: RunConfig) -> TurnReward | None:
    """The reward named by `eval.reward`, or None. Raises RewardError if it cannot score decisions."""
    options = config.eval
    if options.reward is None and not options.reward_options:
        return None
    name = options.reward or "weighted_metric"
    reward = load_reward(name, options.reward_options)
    if not isinstance(reward, TurnReward):
        raise RewardError(
            f"eval.reward: {name!r} does not score single decisions by the references, as evaluations do"
        )
    return reward
