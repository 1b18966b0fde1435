"""What a run works with, made from its config: the engine, the dialogues, the prompts and the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from proactor.config import ConfigError, RunConfig
from proactor.dialogue import Dialogue, windows
from proactor.dialogue.board import Board, logged_board
from proactor.dialogue.prompt import PromptEncoder, PromptStyle
from proactor.engine import Engine
from proactor.evaluation.play import Evaluation, evaluate
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
from proactor.scoring.metrics import aggregate
from proactor.scoring.utility import CostError, CostTable
from proactor.training.model_folder import check_provenance
from proactor.training.parts import load_part, merge_catalogs


@dataclass(slots=True)
class Workspace:
    """An engine with dialogues to train on (`train`), to choose by (`dev`) and to report on (`test`).

    ``dropped``: dialogues left out of a part because they do not fit the context. ``metric``: what
    `eval.reward` names. ``worker``: the reward at work, where it is a `GroupReward`.
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
    counters: dict[str, dict[str, int]] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    ui: Progress = field(default_factory=Quiet)

    @classmethod
    def open(cls, config: RunConfig, ui: Progress | None = None) -> Workspace:
        """Read data and reward first (they fail fast), then load the model. ConfigError, SourceError,
        RewardError or EngineError says what is wrong.
        """
        ui = ui or Quiet()
        if config.pretrain is not None:
            check_provenance(config.model, config.data)
        reward, metric = load_reward(config.reward, config.reward_options), metric_reward(config)
        corpora = {name: load_part(config, name) for name in ("train", "dev", "test")}
        engine = Engine.load(
            config.model,
            config.engine,
            lora=config.lora,
            seed=config.seed,
            progress=lambda done, total: ui.substep("loading the model", done, total),
        )
        if engine.chat is None:
            raise ConfigError(f"model {config.model}: the folder holds no tokenizer")
        style = PromptStyle(**config.prompt.model_dump(exclude_none=True))
        encoder = PromptEncoder(engine.chat, merge_catalogs([c.catalog for c in corpora.values()]), style)
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
        _ = workspace.costs  # fails early where they do not fit the catalog
        workspace.train, workspace.dev, workspace.test = (
            workspace.fitting(name, c.dialogues) for name, c in corpora.items()
        )
        return workspace

    def bind(self) -> None:
        """Tell the rewards which engine and which tools there are. RewardError when one cannot work with
        them.
        """
        for reward in (self.reward, self.metric):
            bind = getattr(reward, "bind", None)
            if callable(bind):
                bind(self.engine, self.encoder.catalog)
        if isinstance(self.reward, GroupReward):
            self.worker = RewardWorker(self.config.reward, self.reward)

    def close(self) -> None:
        """End what works in the background."""
        if self.worker is not None:
            self.worker.close()

    @property
    def turn_reward(self) -> TurnReward | None:
        """The reward that evaluations use: `eval.reward`, else the config's own where it scores single
        decisions, else None (the default). Never a judge: what trains must not grade itself.
        """
        if self.metric is not None:
            return self.metric
        return self.reward if isinstance(self.reward, TurnReward) else None

    @property
    def sample_reward(self) -> RewardFunction:
        """What scores an answer by itself, for showing samples: the config's reward, or the metric where that
        one compares answers.
        """
        if isinstance(self.reward, GroupReward):
            return self.turn_reward or WeightedMetric()
        return self.reward

    @property
    def costs(self) -> CostTable:
        """What the utility of evaluations is made of: `eval.costs`, and which tools need assent. ConfigError
        for a tool that is not in the catalog.
        """
        try:
            return self.config.eval.costs.with_assent(self.encoder.catalog)
        except CostError as error:
            raise ConfigError(f"eval.{error}") from None

    @property
    def held_out(self) -> tuple[Dialogue, ...]:
        """The dev dialogues labelled as the training part is, for the held-out loss: it must be a loss of
        what training minimises.
        """
        if self.config.data.labels == "points":
            return tuple(windows.as_points(d) for d in self.dev)
        return self.dev

    def fitting(self, part: str, dialogues: Sequence[Dialogue]) -> tuple[Dialogue, ...]:
        """The dialogues that fit the context; `Data.too_long` says whether one that does not is an error or
        is left out and counted.
        """
        kept = []
        for dialogue in dialogues:
            need, context = self.needed(dialogue), self.engine.context_length
            if need <= context:
                kept.append(dialogue)
            elif self.config.data.too_long == "error":
                raise ConfigError(
                    f"data.{part}: dialogue {dialogue.id!r} needs up to {need} tokens, the model's context "
                    f"has {context}; "
                    "data.too_long=drop leaves such dialogues out"
                )
        self.dropped[part] = len(dialogues) - len(kept)
        if not kept:
            raise ConfigError(
                f"data.{part}: no dialogue fits the model's context of {self.engine.context_length} tokens"
            )
        return tuple(kept)

    def needed(self, dialogue: Dialogue) -> int:
        """Most tokens of a prompt with its answer: the last decision, on a board that holds every logged
        action and one answer's worth a decision.
        """
        turns = dialogue.decision_turns
        if not turns:
            return 0
        board: Board = logged_board(dialogue, len(dialogue.turns) + 1)
        tokens = self.config.eval.max_tokens
        if self.config.grpo is not None:
            tokens = max(tokens, self.config.grpo.sampling.max_tokens)
        return (
            len(self.encoder.prompt(dialogue, turns[-1], board))
            + tokens
            + self.config.eval.max_tokens * (len(turns) - 1)
        )

    def cut_answers(self, dialogues: Sequence[Dialogue]) -> str:
        """A sentence when a token limit of the config cuts wanted answers of ``dialogues``, else nothing."""
        lengths = [len(self.encoder.target_ids(d, u)) for d in dialogues for u in d.decision_turns]
        limits = {"eval.max_tokens": self.config.eval.max_tokens}
        if self.config.grpo is not None:
            limits["grpo.sampling.max_tokens"] = self.config.grpo.sampling.max_tokens
        for key, limit in limits.items():
            if over := sum(length > limit for length in lengths):
                return f"{key}={limit} cuts {over} of {len(lengths)} wanted answers, which need up to {max(lengths)} tokens"
        return ""

    def play(self, dialogues: Sequence[Dialogue], name: str) -> Evaluation:
        """`evaluate` over all ranks: each plays its share, every rank gets the whole result."""
        options = self.config.eval
        progress: Callable[[int, int], None] = lambda done, total: self.ui.substep(name, done, total)  # noqa: E731
        own = self.engine.share(dialogues)
        found = evaluate(
            self.engine,
            self.encoder,
            own,
            self.turn_reward,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            seed=self.config.seed,
            costs=self.costs,
            progress=progress,
        )
        if self.engine.world_size == 1:
            return found
        parts = self.engine.gather((found, sum(len(d.decision_turns) for d in own)))
        return joined(dialogues, parts)


def metric_reward(config: RunConfig) -> TurnReward | None:
    """The reward that `eval.reward` names, None when it names none. RewardError when it cannot score single
    decisions.
    """
    options = config.eval
    if options.reward is None and not options.reward_options:
        return None
    name = options.reward or "weighted_metric"
    found = load_reward(name, options.reward_options)
    if not isinstance(found, TurnReward):
        raise RewardError(
            f"eval.reward: {name!r} does not score single decisions by the references, as evaluations do"
        )
    return found


def joined(dialogues: Sequence[Dialogue], parts: Sequence[tuple[Evaluation, int]]) -> Evaluation:
    """One evaluation from those of the ranks (with their numbers of decisions), in the order of
    ``dialogues``.
    """
    contributions = {c.dialogue: c for part, _ in parts for c in part.contributions}
    replays = {r.dialogue_id: r for part, _ in parts for r in part.replays}
    total = max(sum(count for _, count in parts), 1)
    ordered = [contributions[d.id] for d in dialogues]
    return Evaluation(
        aggregate(ordered),
        ordered,
        [replays[d.id] for d in dialogues],
        sum(part.unparsed_share * count for part, count in parts) / total,
        sum(part.truncated_share * count for part, count in parts) / total,
        None
        if parts[0][0].unread_graph_share is None
        else sum((p.unread_graph_share or 0.0) * n for p, n in parts) / total,
    )


def adapter_folder(run: Path, name: str) -> Path | None:
    """The folder of an adapter named on the command line: "none" (the bare model), start, best, last, or a
    path.
    """
    if name == "none":
        return None
    inside = run / name
    folder = inside if name in ("start", "best", "last") else Path(name)
    if not (folder / "adapter_config.json").is_file():
        raise ConfigError(f"{folder}: no adapter there (none, start, best, last of the run, or a folder)")
    return folder
