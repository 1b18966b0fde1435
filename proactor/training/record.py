"""`RunRecord`: what the files of a run's folder say about it, for people who look at its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from proactor.files import SourceError, first_problem, read_json, read_text
from proactor.training.outcome import Outcome
from proactor.yaml_values import read_yaml

COMPARE_ANSWERS = ("adaptive_metric", "general_ruler", "custom_ruler", "adaptive_ruler", "mixture")
"""Rewards that do not score single decisions: evaluations of their runs use the default."""

DEFAULT_REWARD = "weighted_metric"

MARKS = ("config.yaml", "metrics.jsonl", "evaluations.json")
"""Files by which a run's folder is known: each run has one at least."""


def check_run(folder: str | Path) -> None:
    """Raise SourceError unless ``folder`` is the folder of a run."""
    if not any((Path(folder) / name).is_file() for name in MARKS):
        raise SourceError(f"{folder}: no run's folder: it holds none of {', '.join(MARKS)}")


@dataclass(frozen=True, slots=True)
class RunRecord:
    """``summary``: the values of `summary.json`, ``chosen``: the chosen step there, None without one.
    ``config``: the values of `config.yaml`, ``config_text``: the file. All empty where there is no file.
    """

    name: str = ""
    summary: Mapping[str, Any] = field(default_factory=dict)
    chosen: Outcome | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""

    @classmethod
    def read(cls, folder: str | Path) -> RunRecord:
        """The record of a run's folder. Raises SourceError for a file that cannot be read.

        The config is not checked: one of an older version may have other keys.
        """
        folder = Path(folder)
        summary, config = folder / "summary.json", folder / "config.yaml"
        values = read_json(summary) if summary.exists() else {}
        if not isinstance(values, dict):
            raise SourceError(f"{summary}: not a JSON object")
        return cls(
            folder.resolve().name,
            values,
            _chosen(summary, values.get("chosen")),
            read_yaml(config) if config.exists() else {},
            read_text(config).strip() if config.exists() else "",
        )

    @property
    def in_environment(self) -> bool:
        """Whether it is a run in an environment, as its config says."""
        return "environment" in self.config

    @property
    def training_reward(self) -> str | None:
        """The reward that GRPO trained on, with its options; None where no config says."""
        if not self.config:
            return None
        return _described(self.config.get("reward"), self.config.get("reward_options"))

    @property
    def evaluation_reward(self) -> str | None:
        """The reward of evaluations, with its options; None where no config says."""
        if not self.config:
            return None
        options = self.config.get("eval")
        options = options if isinstance(options, Mapping) else {}
        if options.get("reward") or options.get("reward_options"):
            return _described(options.get("reward"), options.get("reward_options"))
        if self.config.get("reward") in COMPARE_ANSWERS:
            return DEFAULT_REWARD
        return self.training_reward

    def facts(self) -> dict[str, str]:
        """Model, seed, rewards (in an environment: gym and method), chosen step and origin, in words; "not
        recorded" where no file says.
        """
        seconds, version = self.summary.get("seconds"), self.summary.get("version")
        commit = self.summary.get("commit")
        told = {
            "model": self.config.get("model"),
            "seed": self.config.get("seed"),
            **self._measures(),
            "chosen step": self.chosen,
            "seconds of training": f"{seconds:.1f}" if isinstance(seconds, int | float) else None,
            "version": version,
            "commit": "none: installed, not a checkout" if version and commit is None else commit,
            "machine": self.summary.get("machine"),
        }
        return {name: "not recorded" if value is None else str(value) for name, value in told.items()}

    def _measures(self) -> dict[str, str | None]:
        if not self.in_environment:
            return {
                "reward of training": self.training_reward,
                "reward of evaluations": self.evaluation_reward,
            }
        gym, method = (_section(self.config, name) for name in ("environment", "method"))
        return {
            "environment": _described(gym.get("gym"), gym.get("options")),
            "method": _described(method.get("name"), method.get("options")),
        }


def _section(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = config.get(name)
    return values if isinstance(values, Mapping) else {}


def _described(reward: object, options: object) -> str:
    name = str(reward or DEFAULT_REWARD)
    return f"{name} {json.dumps(options, sort_keys=True)}" if options else name


def _chosen(file: Path, value: Any) -> Outcome | None:
    try:
        return None if value is None else Outcome.model_validate(value)
    except ValidationError as error:
        raise SourceError(f"{file}: chosen: {first_problem(error)}") from None
