"""`RewardRuns`: the runs of `bench.rewards` on one config, from one start, of the same number of updates."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from bench.learning import all_steps, ensure
from proactor.config import RunConfig
from proactor.config_file import load_config
from proactor.engine.state import read_state
from proactor.rewards.family import AgreementOptions, MetricOptions
from proactor.training.runs import Run

JUDGED = ("general_ruler", "custom_ruler", "adaptive_ruler")
PACE_STEPS = 5
"""Updates of the run that measures the time of one; the first is left out."""
CHECKS = 4
"""Evaluations of a run on dev dialogues."""


@dataclass(frozen=True)
class RewardRuns:
    """``judge``: as in a config's reward options; ``ruler``: more options of the judged rewards."""

    config: Path
    overrides: tuple[str, ...]
    judge: Any = "rule"
    ruler: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> RunConfig:
        """The config with the overrides of all runs."""
        return load_config(self.config, self.overrides)

    def start(self) -> list[str]:
        """Overrides that start every run where supervised training ended; none without such a stage."""
        base = self.base
        if base.sft is None:
            return []
        only_supervised = [f"name={base.name}-start", "grpo=null", "eval.final=false"]
        run = ensure(self.config, [*self.overrides, *only_supervised], is_done)
        return ["sft=null", f"start={run.best}"]

    def updates(self, start: Sequence[str], budget: float) -> int:
        """Updates that fit into ``budget`` seconds of the weighted metric's training steps."""
        short = [f"grpo.steps={PACE_STEPS}", f"grpo.eval_every={PACE_STEPS}", "eval.final=false"]
        name = f"name={self.base.name}-rewards-pace"
        pace = ensure(self.config, [*self.overrides, *start, *short, name], is_done)
        seconds = [row["seconds"] for row in pace.rows() if row["kind"] == "grpo"][1:PACE_STEPS]
        return max(CHECKS, round(budget / fmean(seconds)))

    def train(self, reward: str, seed: int, start: Sequence[str], updates: int) -> Run:
        """One run, trained to its end and compared on the test dialogues."""
        base = self.base
        judge = f"-{self.label}" if reward in JUDGED else ""
        return ensure(
            self.config,
            [
                *self.overrides,
                *start,
                f"name={base.name}-{reward}{judge}-{updates}u-s{seed}",
                f"seed={seed}",
                f"reward={reward}",
                f"reward_options={json.dumps(self.options(reward))}",
                *evaluation_overrides(base),
                f"grpo.steps={updates}",
                f"grpo.eval_every={max(1, updates // CHECKS)}",
            ],
        )

    def train_longer(self, start: Sequence[str], steps: int) -> Run:
        """``steps`` supervised steps from the start, in another order than its own, compared as `train`'s.

        Exits where the config has no supervised stage to go on with.
        """
        base = self.base
        if base.sft is None:
            raise SystemExit(f"{self.config}: has no supervised stage (sft) that --longer could go on with")
        return ensure(
            self.config,
            [
                *self.overrides,
                *(override for override in start if not override.startswith("sft=")),
                f"name={base.name}-longer-{steps}",
                "seed=1",
                *evaluation_overrides(base),
                "grpo=null",
                all_steps(base.sft, steps, eval_every=steps),
            ],
        )

    @property
    def label(self) -> str:
        """The judge's kind, with a digest of its options if it has any."""
        kind = self.judge if isinstance(self.judge, str) else str(self.judge.get("kind"))
        if self.judge == kind and not self.ruler:
            return kind
        options = json.dumps([self.judge, dict(self.ruler)])
        return f"{kind}-{hashlib.blake2b(options.encode(), digest_size=3).hexdigest()}"

    def options(self, reward: str) -> dict[str, Any]:
        """A reward's options: those of the config's metric that the reward has too, and the judge."""
        base = self.base
        configured = _metric_options(base)
        metric = {k: v for k, v in configured.items() if k in MetricOptions.model_fields}
        agreement = {k: v for k, v in metric.items() if k in AgreementOptions.model_fields}
        consistency = {k: v for k, v in agreement.items() if k != "values"}
        judged = {"judge": self.judge, **self.ruler}
        return {
            "weighted_metric": dict(configured),
            "adaptive_metric": metric,
            "rac": consistency,
            "max_rac": consistency,
            "general_ruler": judged,
            "custom_ruler": judged,
            "adaptive_ruler": judged | {"metric_options": agreement},
        }.get(reward, {})


def _metric_options(base: RunConfig) -> dict[str, Any]:
    """The options of the weighted metric that the config trains on or, with another reward, evaluates by."""
    if base.reward == "weighted_metric":
        return dict(base.reward_options)
    return dict(base.eval.reward_options) if base.eval.reward in (None, "weighted_metric") else {}


def evaluation_overrides(base: RunConfig) -> list[str]:
    """Overrides that evaluate every run alike: by the config's metric reward, whatever the run trains on."""
    if base.eval.reward is not None or base.reward != "weighted_metric":
        return []
    return ["eval.reward=weighted_metric", f"eval.reward_options={json.dumps(base.reward_options)}"]


def is_done(run: Run) -> bool:
    """Whether a run has reached the end of its stages."""
    return run.state.is_file() and read_state(run.state)[1]["caller"]["phase"] == "done"
