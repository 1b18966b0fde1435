"""What a run on dialogues will compute, from its data and the model's shapes: no weights are loaded.

A run's steps are functions of (seed, phase, step), so a few of them are made as the run will make them:
prompts and boards are its own, and answers have the length of the wanted ones, or of `max_tokens`. What the
policy will write nobody knows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from proactor.config import GRPOStage, RunConfig, SFTStage
from proactor.config_base import ConfigError
from proactor.dialogue import Dialogue
from proactor.dialogue.decisions import decisions
from proactor.dialogue.prompt import PromptEncoder
from proactor.engine import ChatFormat, Group, GroupPlan, ModelPlan, Rates, Sample, SamplingPlan
from proactor.training.corpora import load_corpus, merge_catalogs, prompt_style
from proactor.training.fitting import Fitting
from proactor.training.rollout import sft_groups
from proactor.training.steps import batch

Answers = Literal["wanted", "longest"]
"""How long answers are taken to be: as the wanted ones, or as ``max_tokens`` allows."""
LOOKED_AT = 4
"""Steps of a stage that are planned, spread over it."""


@dataclass(frozen=True, slots=True)
class StagePlan:
    """A stage of ``steps`` steps, some of which were planned: ``training`` and ``sampling`` of each."""

    name: str
    steps: int
    training: tuple[GroupPlan, ...]
    sampling: tuple[SamplingPlan, ...] = ()

    def mean(self, name: str) -> float:
        """Mean of an attribute of the planned steps' training."""
        return float(sum(getattr(step, name) for step in self.training)) / len(self.training)

    def drawn(self, name: str) -> float:
        """Mean of an attribute of the planned steps' sampling; 0 where nothing is sampled."""
        return float(sum(getattr(step, name) for step in self.sampling)) / max(1, len(self.sampling))

    @property
    def peak(self) -> int:
        """Predicted bytes at the height of the planned steps' training."""
        return max(step.peak for step in self.training)

    def shares(self) -> dict[str, float]:
        """`GroupPlan.shares` over the planned steps."""
        total = sum(step.operations for step in self.training) or 1.0
        parts = [(step.operations / total, step.shares()) for step in self.training]
        return {name: sum(weight * share[name] for weight, share in parts) for name in parts[0][1]}


@dataclass(frozen=True, slots=True)
class Played:
    """Dialogues played ``times`` times in the run: what one time takes."""

    name: str
    times: int
    sampling: SamplingPlan


@dataclass(frozen=True, slots=True)
class RunPlan:
    """A run on one of ``ranks`` ranks. ``dialogues`` and ``dropped`` by part of the data, of all ranks."""

    ranks: int
    dialogues: dict[str, int]
    dropped: dict[str, int]
    stages: tuple[StagePlan, ...]
    played: tuple[Played, ...]

    def seconds(self, rates: Rates) -> dict[str, float]:
        """What each part of the run takes at these rates, at least: products and moved bytes alone count."""
        out: dict[str, float] = {}
        for stage in self.stages:
            if stage.sampling:
                once = sum(_sampling_seconds(s, rates) for s in stage.sampling) / len(stage.sampling)
                out[f"{stage.name}, sampling"] = stage.steps * once
            out[f"{stage.name}, training"] = stage.steps * stage.mean("operations") / rates.product
        for played in self.played:
            out[f"playing {played.name}"] = played.times * _sampling_seconds(played.sampling, rates)
        return out


def _sampling_seconds(plan: SamplingPlan, rates: Rates) -> float:
    """Prompts by their operations; decode steps by operations or bytes, whichever takes longer."""
    return plan.prefill / rates.product + max(plan.decode / rates.product, plan.moved / rates.copy)


@dataclass(frozen=True, slots=True)
class RunPlanner:
    """The data of a run, encoded for the model of ``plan``."""

    config: RunConfig
    encoder: PromptEncoder
    parts: dict[str, tuple[Dialogue, ...]]
    dropped: dict[str, int]

    @classmethod
    def open(cls, config: RunConfig, chat: ChatFormat, context: int) -> RunPlanner:
        """Read the data, as `Workspace.open` does. Raises ConfigError and SourceError."""
        if config.prompt.mode == "graph":
            raise ConfigError("prompt.mode: graph is not planned: its prompts depend on what was answered")
        corpora = {name: load_corpus(config, name) for name in ("train", "dev", "test")}
        catalog = merge_catalogs([corpus.catalog for corpus in corpora.values()])
        encoder = PromptEncoder(chat, catalog, prompt_style(config, catalog))
        fitting = Fitting(config, encoder, context)
        parts = {name: fitting.select(name, corpus.dialogues) for name, corpus in corpora.items()}
        dropped = {name: len(corpus.dialogues) - len(parts[name]) for name, corpus in corpora.items()}
        return cls(config, encoder, parts, dropped)

    def plan(self, model: ModelPlan, answers: Answers, ranks: int = 1, looked_at: int = LOOKED_AT) -> RunPlan:
        """The run on a model, by one of ``ranks`` ranks, which have equal parts of each step's dialogues."""
        stages = []
        if self.config.sft is not None:
            stages.append(self._sft(self.config.sft, model, ranks, looked_at))
        if self.config.grpo is not None:
            stages.append(self._grpo(self.config.grpo, model, answers, ranks, looked_at))
        sizes = {name: len(dialogues) for name, dialogues in self.parts.items()}
        played = tuple(self._played(model, answers, ranks))
        return RunPlan(ranks, sizes, self.dropped, tuple(stages), played)

    def _sft(self, stage: SFTStage, model: ModelPlan, ranks: int, looked_at: int) -> StagePlan:
        plans = []
        for step in _spread(stage.max_steps, looked_at):
            epoch, chosen, _ = batch(
                self.parts["train"], stage.batch_dialogues, self.config.seed, "sft", step
            )
            groups, _ = sft_groups(
                self.encoder,
                chosen[::ranks],
                seed=self.config.seed,
                epoch=epoch,
                shares=stage.boards,
                pending=stage.pending,
            )
            plans.append(model.groups(groups, stage))
        return StagePlan("SFT", stage.max_steps, tuple(plans))

    def _grpo(
        self, stage: GRPOStage, model: ModelPlan, answers: Answers, ranks: int, looked_at: int
    ) -> StagePlan:
        training, sampling = [], []
        for step in _spread(stage.steps, looked_at):
            epoch, chosen, _ = batch(
                self.parts["train"], stage.batch_dialogues, self.config.seed, "grpo", step
            )
            groups = []
            for point in decisions(
                self.encoder, chosen[::ranks], seed=self.config.seed, epoch=epoch, shares=stage.boards
            ):
                length = self._length(point.dialogue, point.turn, answers, stage.sampling.max_tokens)
                group = _group(point.prompt, stage.sampling.n, length, stage.sampling.temperature)
                group.tree = self.encoder.tree(point.dialogue, point.turn)
                groups.append(group)
            training.append(model.groups(groups, stage))
            sampling.append(model.sampling(groups))
        return StagePlan("GRPO", stage.steps, tuple(training), tuple(sampling))

    def _played(self, model: ModelPlan, answers: Answers, ranks: int) -> Iterator[Played]:
        """The dev dialogues at each check of GRPO, the test dialogues at the start and the end."""
        grpo, limit = self.config.grpo, self.config.eval.max_tokens
        checks = 0 if grpo is None else 1 + -(-grpo.steps // grpo.eval_every)
        for name, times in (("dev", checks), ("test", 2 if self.config.eval.final else 0)):
            groups: list[Group] = []
            longest: dict[int, int] = {}  # of all dialogues' k-th answers, which are drawn together
            for dialogue in self.parts[name][::ranks]:
                for k, (turn, prompt) in enumerate(self.encoder.prompts(dialogue)):
                    length = self._length(dialogue, turn, answers, limit)
                    longest[k] = max(longest.get(k, 0), length)
                    groups.append(_group(prompt, 1, length))
            if times and groups:
                yield Played(name, times, model.sampling(groups, in_turn=sum(longest.values())))

    def _length(self, dialogue: Dialogue, turn: int, answers: Answers, limit: int) -> int:
        """Tokens of an answer after ``turn``."""
        if answers == "longest":
            return limit
        return min(limit, len(self.encoder.target_ids(dialogue, turn)))


def _group(prompt: list[int], count: int, length: int, temperature: float = 1.0) -> Group:
    """A group of answers that nobody wrote: lengths are what counts."""
    samples = [Sample(prompt, [0] * length, temperature=temperature or 1.0) for _ in range(count)]
    return Group(prompt, samples)


def _spread(steps: int, count: int) -> Sequence[int]:
    """At most ``count`` of so many steps, evenly spread."""
    count = min(steps, count)
    return [i * steps // count for i in range(count)]
