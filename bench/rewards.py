"""What does each reward of the family train? One supervised start, the same number of updates, several seeds.

    python -m bench.rewards [CONFIG …] [--seeds 3] [--core-seeds 5] [--rewards rac …] [--budget-seconds 120]
        [--updates 20] [--longer 50] [--judge rule] [--set key=value …]

On the first config (configs/sgd-small.yaml) every reward is trained with ``--seeds``, on the others
(configs/star-small.yaml) only rac, custom_ruler and adaptive_ruler; these three with ``--core-seeds``. The
budget is in seconds of the weighted metric's training steps, measured once: all rewards get the number of
updates that fit. ``--updates`` gives their number instead, and nothing is measured. A supervised stage runs
once and gives every run its start. ``--longer STEPS``: so many more supervised steps from that start, as a
rival of every reward; choose them to take as long (both times are in the record). Evaluations are the same
for all: test dialogues, scored by the config's metric reward, never by the judge. The metric reward also
selects each run's adapter on dev.

Runs are processes, reused when the command is repeated (see `bench.learning`). Prints a table per config,
with paired bootstrap intervals clustered by dialogue. Writes ``bench/results/<machine>/rewards.json``
(``rewards-<judge>.json`` for judges other than the rules) after every reward. Where a config tests on unseen
domains and tools (configs/sgd-unseen.yaml), each kind has its own rows, and the record counts the fires of
each tool. ``dev`` there: the metrics on dev dialogues at every check.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml

from bench.learning import (
    RIVALS,
    difference,
    grpo_seconds,
    parsed_shares,
    recorded_config,
    training_seconds,
)
from bench.records import add_results, record_file, stamp, write_json
from bench.reward_runs import RewardRuns
from bench.rewards_table import SHOWN, show
from proactor.evaluation.breakdown import tool_contributions
from proactor.evaluation.play import Evaluation
from proactor.evaluation.store import load_evaluations
from proactor.scoring.arrays import mean_defined
from proactor.scoring.bootstrap import KEYS
from proactor.scoring.metrics import Contribution, aggregate
from proactor.training.runs import Run
from proactor.training.summary import pool_runs

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
JUDGE_MEANS = ("judge/agreement", "judge/tau", "judge/spread", "zero_spread_share")
"""Keys of GRPO rows whose means are recorded, where they exist."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    options = _parser().parse_args(arguments)
    record: dict[str, Any] = {
        **stamp(),
        "judge": options.judge,
        "ruler": options.ruler,
        "budget_seconds": options.budget_seconds,
        "configs": {},
    }
    suffix = "" if options.judge == "rule" else f"-{RewardRuns(Path(), (), options.judge).label}"
    file = record_file(options.results, record["machine"], f"rewards{suffix}")
    for i, config in enumerate(options.configs):
        seeds = {
            reward: options.core_seeds if reward in CORE else options.seeds
            for reward in options.rewards
            if i == 0 or reward in CORE
        }
        if seeds:
            bench = RewardRuns(config, tuple(options.set), options.judge, options.ruler)
            run_config(bench, seeds, options.updates, options.budget_seconds, options.longer, record, file)
    print(f"record: {file}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.rewards", description="every reward of the family from the same start"
    )
    parser.add_argument("configs", nargs="*", type=Path, default=list(CONFIGS), metavar="CONFIG")
    parser.add_argument("--set", nargs="*", default=[], metavar="key=value", help="overrides for all runs")
    parser.add_argument("--rewards", nargs="*", default=list(REWARDS), help="names of built-in rewards")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--core-seeds", type=int, default=5, help=f"seeds of {', '.join(CORE)}")
    parser.add_argument("--budget-seconds", type=float, default=120.0)
    parser.add_argument("--updates", type=int, help="updates of a run [default: what fits the budget]")
    parser.add_argument("--longer", type=int, metavar="STEPS", help="more supervised steps, as a rival")
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
    add_results(parser)
    return parser


def run_config(
    bench: RewardRuns,
    seeds: Mapping[str, int],
    updates: int | None,
    budget: float,
    longer: int | None,
    record: dict[str, Any],
    file: Path,
) -> None:
    """Train every reward of ``seeds`` (reward -> number of seeds) on one config; write after each. At last,
    where asked for, so many more supervised steps.
    """
    start = bench.start()
    updates = updates or bench.updates(start, budget)
    runs: dict[str, list[Run]] = {}
    for reward, count in seeds.items():
        runs[reward] = [bench.train(reward, seed, start, updates) for seed in range(count)]
        result = summarise(bench, runs) | {"updates": updates, "budget_seconds": budget}
        _write(bench.base.name, result, record, file)
    if longer is not None:
        result["longer"] = against_longer(bench.train_longer(start, longer), longer, runs)
        _write(bench.base.name, result, record, file)
    show(bench.base.name, result)


def _write(name: str, result: Mapping[str, Any], record: dict[str, Any], file: Path) -> None:
    """Write a config's result beside those of others, which another process may write meanwhile."""
    if file.exists():
        record["configs"] = json.loads(file.read_text())["configs"]
    record["configs"][name] = result
    write_json(file, record)


def summarise(bench: RewardRuns, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """The record of one config: every reward's result, the start and the trivial policies."""
    first = next(iter(runs.values()))[0]
    evaluations = _evaluations(first)
    systems = {"start": evaluations["before"], **{name: evaluations[name] for name in RIVALS}}
    return {
        "config": recorded_config(bench.base),
        "dialogues": len(evaluations["before"].contributions),
        "systems": {name: {key: e.metrics[key] for key in KEYS} for name, e in systems.items()},
        "rewards": {
            reward: reward_result(bench, reward, seeds, runs.get("rac", ())) for reward, seeds in runs.items()
        },
    }


def reward_result(bench: RewardRuns, reward: str, runs: Sequence[Run], rac: Sequence[Run]) -> dict[str, Any]:
    """One reward over its seeds: before, after, their difference, that to RAC at the same seeds, costs."""
    before, after, other = (
        contributions_of(runs, "before"),
        contributions_of(runs, "after"),
        contributions_of(rac, "after"),
    )
    both = 0 if reward == "rac" else min(len(after), len(other))
    rows = [row for run in runs for row in run.rows() if row["kind"] == "grpo"]
    means = {
        key: fmean(values) for key in JUDGE_MEANS if (values := [row[key] for row in rows if key in row])
    }
    return {
        **pool_runs([run.folder for run in runs]),
        "options": bench.options(reward),
        "over_rac": difference(other[:both], after[:both]) if both else {},
        "parts": {
            name: {
                "dialogues": len(ids),
                "before": metrics_on(before, ids),
                "after": metrics_on(after, ids),
                "difference": difference(select_dialogues(before, ids), select_dialogues(after, ids)),
                "over_rac": difference(
                    select_dialogues(other[:both], ids), select_dialogues(after[:both], ids)
                )
                if both
                else {},
            }
            for name, ids in ids_by_novelty(bench, runs[0]).items()
        },
        "tools": fires_by_tool(runs) if bench.base.data.unseen else {},
        "dev": on_dev(runs),
        "parsed": parsed_shares([_evaluations(run) for run in runs]),
        "seconds": fmean(grpo_seconds(run) for run in runs),
        "seconds_judging": sum(row.get("seconds_judging", 0.0) for row in rows) / len(runs),
        "groups_dropped": sum(row["groups_dropped"] for row in rows),
        "skipped_updates": sum(row["skipped_update"] for row in rows),
        "means": means,
    }


def against_longer(longer: Run, steps: int, runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """More supervised training, and what each reward has over it (``over``), paired by dialogue."""
    rival = _evaluations(longer)["after"]
    return {
        "steps": steps,
        "seconds": training_seconds(longer, "sft"),
        "after": {key: rival.metrics[key] for key in KEYS},
        "over": {
            reward: difference([rival.contributions] * len(seeds), contributions_of(seeds, "after"))
            for reward, seeds in runs.items()
        },
    }


def _evaluations(run: Run) -> dict[str, Evaluation]:
    return load_evaluations(run.folder / "evaluations.json")[1]


ContributionsBySeed = Sequence[Sequence[Contribution]]
"""One list of dialogues per seed."""


def contributions_of(runs: Sequence[Run], name: str) -> ContributionsBySeed:
    """The contributions of the system ``name`` in each run."""
    return [_evaluations(run)[name].contributions for run in runs]


def ids_by_novelty(bench: RewardRuns, run: Run) -> dict[str, set[str]]:
    """Ids of the test dialogues by novelty (`Unseen.kind`); empty without such a split."""
    unseen = bench.base.data.unseen
    if not unseen:
        return {}
    ids: dict[str, set[str]] = {}
    for dialogue in load_evaluations(run.folder / "evaluations.json")[0]:
        ids.setdefault(unseen.kind(dialogue), set()).add(dialogue.id)
    return dict(sorted(ids.items()))


def on_dev(runs: Sequence[Run]) -> dict[str, dict[str, float]]:
    """{updates made: means over the runs of `SHOWN` on dev dialogues}: what the best adapter is chosen by."""
    checks: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        for row in run.rows():
            if row["kind"] == "eval" and row["phase"] == "grpo":
                checks.setdefault(str(row["step"]), []).append(row)
    return {
        step: {
            key: fmean(values)
            for key in (*SHOWN, "false_per_100")
            if (values := [row[f"eval_{key}"] for row in rows if row.get(f"eval_{key}") is not None])
        }
        for step, rows in checks.items()
    }


def fires_by_tool(
    runs: Sequence[Run], sides: Sequence[str] = ("before", "after")
) -> dict[str, dict[str, Any]]:
    """Of each tool called for or proposed in the test part: its references and, for each of ``sides``, the
    first fires and the right ones among them; means over the runs.
    """
    tools: dict[str, dict[str, Any]] = {}
    for run in runs:
        dialogues, evaluations = load_evaluations(run.folder / "evaluations.json")
        for side in sides:
            for name, rows in tool_contributions(dialogues, evaluations[side]).items():
                zeros = {key: {"fires": 0.0, "right": 0.0} for key in sides}
                line = tools.setdefault(name, {"references": 0.0, **zeros})
                sums = aggregate(rows)
                line["references"] = sums["references"]
                line[side]["fires"] += (sums["first_fires"] or 0.0) / len(runs)
                line[side]["right"] += (sums["first_hits"] or 0.0) / len(runs)
    return dict(sorted(tools.items()))


def select_dialogues(runs: ContributionsBySeed, ids: Collection[str]) -> ContributionsBySeed:
    """Only the dialogues of ``ids``."""
    return [[c for c in contributions if c.dialogue in ids] for contributions in runs]


def metrics_on(runs: ContributionsBySeed, ids: Collection[str]) -> dict[str, float | None]:
    """The metrics of some dialogues, means over the seeds where they are defined; None where none is."""
    each = [aggregate(contributions) for contributions in select_dialogues(runs, ids)]
    return {key: mean_defined(metrics[key] for metrics in each) for key in KEYS}


if __name__ == "__main__":
    main()
