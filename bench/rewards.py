"""What does each reward of the family train? The same supervised start, the same number of updates, the same
evaluation; several seeds.

python -m bench.rewards [CONFIG …] [--seeds 3] [--core-seeds 5] [--rewards rac …] [--budget-seconds 120]
[--judge rule] [--set key=value …]

On the first config (configs/sgd-small.yaml) every reward is trained with ``--seeds``, on the others
(configs/star-small.yaml) only rac, custom_ruler and adaptive_ruler; these three with ``--core-seeds``
everywhere. The budget is seconds of the weighted metric's training steps, measured once: all rewards get the
number of updates that fit in. A supervised stage runs once and gives every run its start. Evaluations are the
same for all: test dialogues with references from logs, scored by the config's metric reward, never by the
judge, which also picks each run's adapter on dev dialogues.

Runs are processes of their own, found again when the command is given again (see `bench.learning`). Prints a
table a config, with paired bootstrap intervals clustered by dialogue, and writes
``bench/results/<machine>/rewards.json`` (``rewards-<judge>.json`` for judges other than the rules) after
every reward. Where a config tests on unseen domains and unseen tools (configs/sgd-unseen.yaml), each kind is
shown on its own too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from bench.harness import machine, result_folder
from bench.learning import RIVALS, difference, ensure, grpo_seconds, parsed_shares
from proactor.config import RunConfig
from proactor.config_file import load_config
from proactor.console import NAMES
from proactor.engine import atomic_file
from proactor.engine.state import read_state
from proactor.evaluation.store import load_evaluations
from proactor.rewards.family import MetricOptions
from proactor.scoring.bootstrap import KEYS
from proactor.scoring.metrics import Contribution, aggregate
from proactor.training.runs import Run
from proactor.training.summary import pooled

CONFIGS = (Path("configs/sgd-small.yaml"), Path("configs/star-small.yaml"))
REWARDS = (
    "weighted_metric",
    "rac",
    "max_rac",
    "adaptive_metric",
    "general_ruler",
    "custom_ruler",
    "adaptive_ruler",
)
CORE = ("rac", "custom_ruler", "adaptive_ruler")
JUDGED = ("general_ruler", "custom_ruler", "adaptive_ruler")
PACE_STEPS = 5
"""Updates from which the time of one is taken; the first is left out."""
SHOWN = ("reward", "first_fire_f1", "on_time_f1", "recall", "precision", "pt", "ftr", "ac")
"""Metrics in the table; the record has all of `bootstrap.KEYS`."""
CHECKS = 4
"""Times a run's adapter is tried on dev dialogues."""


@dataclass(frozen=True)
class Bench:
    """One config's part: how every run is started. ``judge``: what a config would say; ``ruler``: more
    options of the judged rewards.
    """

    config: Path
    overrides: tuple[str, ...]
    judge: Any = "rule"
    ruler: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> RunConfig:
        return load_config(self.config, self.overrides)

    def start(self) -> list[str]:
        """Overrides that put every run where supervised training ended; without such a stage all start from
        the model as it is.
        """
        base = self.base
        if base.sft is None:
            return []
        run = ensure(
            self.config, [*self.overrides, f"name={base.name}-start", "grpo=null", "eval.final=false"], ended
        )
        return ["sft=null", f"start={run.best}"]

    def updates(self, start: Sequence[str], budget: float) -> int:
        """Updates that fit into ``budget`` seconds."""
        base = self.base
        short = [f"grpo.steps={PACE_STEPS}", f"grpo.eval_every={PACE_STEPS}", "eval.final=false"]
        pace = ensure(self.config, [*self.overrides, *start, *short, f"name={base.name}-rewards-pace"], ended)
        seconds = [row["seconds"] for row in pace.rows() if row["kind"] == "grpo"][1:PACE_STEPS]
        return max(CHECKS, round(budget / fmean(seconds)))

    def train(self, reward: str, seed: int, start: Sequence[str], updates: int) -> Run:
        """One run, ended and compared on the test dialogues."""
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
                *evaluated_by(base),
                f"grpo.steps={updates}",
                f"grpo.eval_every={max(1, updates // CHECKS)}",
            ],
        )

    @property
    def label(self) -> str:
        """The judge's kind, with a digest of its options when it has any."""
        kind = self.judge if isinstance(self.judge, str) else str(self.judge.get("kind"))
        more = [self.judge, dict(self.ruler)] if self.judge != kind or self.ruler else []
        return kind + (
            f"-{hashlib.blake2b(json.dumps(more).encode(), digest_size=3).hexdigest()}" if more else ""
        )

    def options(self, reward: str) -> dict[str, Any]:
        """A reward's options: the config's way of judging decisions where the reward has one, and the
        judge.
        """
        base = self.base
        given = base.reward_options if base.reward == "weighted_metric" else {}
        metric = {k: v for k, v in given.items() if k in MetricOptions.model_fields}
        consistency = {k: v for k, v in metric.items() if k in ("waiting", "theta")}
        judged = {"judge": self.judge, **self.ruler}
        return {
            "weighted_metric": dict(given),
            "adaptive_metric": metric,
            "rac": consistency,
            "max_rac": consistency,
            "general_ruler": judged,
            "custom_ruler": judged,
            "adaptive_ruler": judged | {"metric_options": metric},
        }.get(reward, {})


def evaluated_by(base: RunConfig) -> list[str]:
    """Overrides by which every run is evaluated alike: by the config's own metric reward, whatever trains."""
    if base.eval.reward is not None or base.reward != "weighted_metric":
        return []
    return ["eval.reward=weighted_metric", f"eval.reward_options={json.dumps(base.reward_options)}"]


def ended(run: Run) -> bool:
    """Whether a run has come to the end of its stages."""
    return run.state.is_file() and read_state(run.state)[1]["caller"]["phase"] == "done"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.rewards", description="every reward of the family from the same start"
    )
    parser.add_argument("configs", nargs="*", type=Path, default=list(CONFIGS), metavar="CONFIG")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides for all runs")
    parser.add_argument("--rewards", nargs="*", default=list(REWARDS), help="names of built-in rewards")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--core-seeds", type=int, default=5, help=f"seeds of {', '.join(CORE)}")
    parser.add_argument("--budget-seconds", type=float, default=120.0)
    parser.add_argument(
        "--judge",
        type=yaml.safe_load,
        default="rule",
        help="rule, engine, or a mapping like {kind: engine, forced: true}",
    )
    parser.add_argument(
        "--ruler",
        type=yaml.safe_load,
        default={},
        help="more options of judged rewards, like {grading: text}",
    )
    parser.add_argument("--results", type=Path, default=Path("bench/results"))
    given = parser.parse_args(arguments)
    record: dict[str, Any] = {
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d"),
        "judge": given.judge,
        "ruler": given.ruler,
        "budget_seconds": given.budget_seconds,
        "configs": {},
    }
    suffix = "" if given.judge == "rule" else f"-{Bench(Path(), (), given.judge).label}"
    file = result_folder(given.results, record["machine"]) / f"rewards{suffix}.json"
    for i, config in enumerate(given.configs):
        bench = Bench(config, tuple(given.set), given.judge, given.ruler)
        seeds = {
            r: given.core_seeds if r in CORE else given.seeds for r in given.rewards if i == 0 or r in CORE
        }
        if not seeds:
            continue
        start = bench.start()
        updates = bench.updates(start, given.budget_seconds)
        runs: dict[str, list[Run]] = {}
        for reward, count in seeds.items():
            runs[reward] = [bench.train(reward, seed, start, updates) for seed in range(count)]
            found = summed_up(bench, runs) | {"updates": updates, "budget_seconds": given.budget_seconds}
            if (
                file.exists()
            ):  # the other configs' results stay, also those that another call writes meanwhile
                record["configs"] = json.loads(file.read_text())["configs"]
            record["configs"][bench.base.name] = found
            atomic_file(file, (json.dumps(record, indent=2) + "\n").encode())
        show(bench.base.name, found)
    print(f"record: {file}")


def summed_up(bench: Bench, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """Every reward's result on one config, the start and the trivial policies; the config without the paths
    of this machine.
    """
    first = next(iter(runs.values()))[0]
    named = load_evaluations(first.folder / "evaluations.json")[1]
    systems = {"start": named["before"], **{name: named[name] for name in RIVALS}}
    return {
        "config": bench.base.model_dump(mode="json", exclude={"data": {"path"}}),
        "dialogues": len(named["before"].contributions),
        "systems": {name: {key: found.metrics[key] for key in KEYS} for name, found in systems.items()},
        "rewards": {reward: cell(bench, reward, of, runs.get("rac", ())) for reward, of in runs.items()},
    }


def cell(bench: Bench, reward: str, runs: Sequence[Run], rac: Sequence[Run]) -> dict[str, Any]:
    """One reward: means before and after over seeds, their difference and that to RAC at the same seeds, each
    with its interval; cost and judge.
    """
    before, after, other = (
        played(of, name) for of, name in ((runs, "before"), (runs, "after"), (rac, "after"))
    )
    both = 0 if reward == "rac" else min(len(after), len(other))
    rows = [row for run in runs for row in run.rows() if row["kind"] == "grpo"]
    told = ("judge/agreement", "judge/tau", "judge/spread", "zero_spread_share")
    means = {key: fmean(values) for key in told if (values := [row[key] for row in rows if key in row])}
    return {
        **pooled([run.folder for run in runs]),
        "options": bench.options(reward),
        "over_rac": difference(other[:both], after[:both]) if both else {},
        "parts": {
            name: {
                "dialogues": len(ids),
                "before": metrics_on(before, ids),
                "after": metrics_on(after, ids),
                "difference": difference(within(before, ids), within(after, ids)),
                "over_rac": difference(within(other[:both], ids), within(after[:both], ids)) if both else {},
            }
            for name, ids in parts(bench, runs[0]).items()
        },
        "parsed": parsed_shares([load_evaluations(run.folder / "evaluations.json")[1] for run in runs]),
        "seconds": fmean(grpo_seconds(run) for run in runs),
        "seconds_judging": sum(row.get("seconds_judging", 0.0) for row in rows) / len(runs),
        "groups_dropped": sum(row["groups_dropped"] for row in rows),
        "skipped_updates": sum(row["skipped_update"] for row in rows),
        "means": means,
    }


Played = Sequence[Sequence[Contribution]]
"""One list of dialogues a seed."""


def played(runs: Sequence[Run], name: str) -> Played:
    """What the system called ``name`` adds to the metrics in each run, by dialogue."""
    return [load_evaluations(run.folder / "evaluations.json")[1][name].contributions for run in runs]


def parts(bench: Bench, run: Run) -> dict[str, set[str]]:
    """Kind of novelty (unseen_domain, else unseen_tool) -> ids of the test dialogues; empty where the config
    has no such split.
    """
    unseen, found = bench.base.data.unseen, dict[str, set[str]]()
    for dialogue in load_evaluations(run.folder / "evaluations.json")[0] if unseen else ():
        found.setdefault(unseen.reason(dialogue), set()).add(dialogue.id)
    return dict(sorted(found.items()))


def within(of: Played, ids: Collection[str]) -> Played:
    """Only the dialogues named in ``ids``."""
    return [[c for c in contributions if c.dialogue in ids] for contributions in of]


def metrics_on(of: Played, ids: Collection[str]) -> dict[str, float]:
    """The metrics of some dialogues, means over seeds; undefined counts as 0."""
    each = [aggregate(contributions) for contributions in within(of, ids)]
    return {key: fmean(metrics[key] or 0.0 for metrics in each) for key in KEYS}


def show(name: str, found: Mapping[str, Any]) -> None:
    """The table of one config."""
    table = Table(
        title=f"{name}: {found['updates']} updates, {found['dialogues']} test dialogues", title_justify="left"
    )
    table.add_column("", no_wrap=True)
    table.add_column("seeds", justify="right")
    for key in SHOWN:
        table.add_column(NAMES.get(key, key), justify="right")
    for heading in ("F1 over start [95%]", "F1 over RAC [95%]", "s a run", "dropped"):
        table.add_column(heading, justify="right")
    for system, metrics in found["systems"].items():
        table.add_row(system.replace("_", " "), "", *(_number(metrics[key]) for key in SHOWN), "", "", "", "")
    for reward, of in found["rewards"].items():
        table.add_row(
            reward,
            str(of["runs"]),
            *(_number(of["after"][key]) for key in SHOWN),
            _range(of["difference"]),
            _range(of["over_rac"]),
            f"{of['seconds']:.0f}",
            f"{of['groups_dropped']:.0f}",
        )
        for part, on in of["parts"].items():
            table.add_row(
                f"  {part.replace('_', ' ')} ({on['dialogues']})",
                "",
                *(_number(on["after"][key]) for key in SHOWN),
                _range(on["difference"]),
                _range(on["over_rac"]),
                "",
                "",
            )
    Console(width=220).print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _range(intervals: Mapping[str, Mapping[str, float]]) -> str:
    if not intervals:
        return ""
    of = intervals["first_fire_f1"]
    return rf"{of['estimate']:+.3f} \[{of['low']:+.3f}, {of['high']:+.3f}]"


if __name__ == "__main__":
    main()
