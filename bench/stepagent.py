"""StepAgent beside imitation of the same expert, on the same episodes and for as many trained tokens.

    python -m bench.stepagent CONFIG [--arms stepagent,stepagent-inverse] [--seeds 5] [--report] [key=value …]

CONFIG: configs/stepagent-small.yaml. Of a seed, stage A (``start``) is trained once, and all go on from its
best adapter: each arm for as many steps as the config says, and beside it stage A again (``ARM-sft``) until
it has trained as many tokens as the arm. Tokens that are sampled stand beside: imitation samples none. Each
run is a process, `proactor train CONFIG name=… seed=…`; a finished one is reused and an interrupted one goes
on.

``--report`` trains nothing and reports on what has ended. Prints the metrics on the test tasks and the
differences from imitation, with intervals over runs and tasks; writes
``bench/results/<machine>/stepagent-<name>.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.arms import arms_parser, chosen_arms, read_base
from bench.learning import ended_run, ensure_model, recorded_config
from bench.records import stamp, write_record
from proactor.episode_config import EpisodeConfig
from proactor.methods.user_metrics import Outcome, intervals, paired_change
from proactor.training.episode_pairs import read_tested
from proactor.training.runs import Run
from proactor.training.summary import interval_values

START = "start"
SHOWN = ("score", "solved", "user_actions", "tokens")
ARMS = {"stepagent": "implicit", "stepagent-inverse": "inverse"}
"""The reward of each arm."""


def imitation(arm: str) -> str:
    """The name of the arm's companion."""
    return f"{arm}-sft"


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = arms_parser("bench.stepagent", "StepAgent beside imitation of the same expert")
    options = parser.parse_intermixed_args(arguments)
    base = read_base(parser, options)
    arms = chosen_arms(parser, options.arms, ARMS)
    runs: dict[str, dict[int, Run]] = {}
    if not options.report:
        ensure_model(options.config, options.overrides)
    for seed in range(options.seeds):
        for name, run in of_seed(options.config, options.overrides, base, arms, seed, options.report).items():
            runs.setdefault(name, {})[seed] = run
    if not runs:
        parser.error("no run has ended")
    record = record_of(base, runs)
    file = write_record(options.results, f"stepagent-{base.name}", record)
    show(record)
    print(f"record: {file}")


def of_seed(
    config: Path, overrides: Sequence[str], base: EpisodeConfig, arms: Sequence[str], seed: int, report: bool
) -> dict[str, Run]:
    """The ended runs of a seed by arm, trained now unless ``report``."""

    def settings(name: str, *more: str) -> list[str]:
        return [*overrides, f"name={base.name}-{name}-s{seed}", f"seed={seed}", "eval.adapter=last", *more]

    start = ended_run(config, settings(START, "grpo=null"), report)
    if start is None:
        return {}
    runs: dict[str, Run] = {}
    there = f"start={start.folder / 'best'}"
    for name in arms:
        method = f"method={json.dumps(method_of(base, ARMS[name]))}"
        run = ended_run(config, settings(name, there, "sft=null", method), report)
        if run is None:
            continue
        runs[name] = run
        steps = max(1, math.ceil(trained_tokens(run) / tokens_a_step(start)))
        more = [f"sft.max_steps={steps}", f"sft.patience={steps}", f"sft.eval_every={max(1, steps // 4)}"]
        companion = ended_run(config, settings(imitation(name), there, "grpo=null", *more), report)
        if companion is not None:
            runs[imitation(name)] = companion
    return runs


def method_of(base: EpisodeConfig, reward: str) -> dict[str, Any]:
    """StepAgent with this reward, and else the config's options."""
    assert base.sft is not None, "checked"
    given = base.method.options if base.method.name == "stepagent" else {}
    return {"name": "stepagent", "options": {**given, "reward": reward, "thoughts": base.sft.thoughts}}


def trained_tokens(run: Run) -> float:
    """Tokens of all training steps that had a gradient."""
    return float(sum(row["tokens_trained"] for row in _steps(run)))


def tokens_a_step(run: Run) -> float:
    """The mean over a run's steps."""
    return trained_tokens(run) / len(_steps(run))


def _steps(run: Run) -> list[Mapping[str, Any]]:
    return [row for row in run.rows() if "tokens_trained" in row]


def record_of(base: EpisodeConfig, runs: Mapping[str, Mapping[int, Run]]) -> dict[str, Any]:
    """Metrics of each arm over its seeds, and its difference from imitation over those that both have."""
    outcomes = {
        name: {seed: read_tested(run.folder).outcomes("after", seed) for seed, run in of_arm.items()}
        for name, of_arm in runs.items()
    }
    pairs = {name: outcomes.get(imitation(name), {}) for name in ARMS if name in outcomes}
    return {
        **stamp(),
        "config": recorded_config(base),
        "arms": {
            name: {
                "seeds": sorted(of_arm),
                **interval_values(intervals(_flat(of_arm, of_arm), SHOWN)),
                **{key: _mean(runs[name].values(), key) for key in ("tokens_trained", "tokens_sampled")},
            }
            for name, of_arm in outcomes.items()
        },
        "difference": {
            name: interval_values(paired_change(_flat(other, same), _flat(outcomes[name], same), SHOWN))
            for name, other in pairs.items()
            if (same := outcomes[name].keys() & other.keys())
        },
    }


def _mean(runs: Collection[Run], key: str) -> float:
    return sum(float(row.get(key, 0)) for run in runs for row in _steps(run)) / len(runs)


def _flat(outcomes: Mapping[int, Sequence[Outcome]], seeds: Any) -> list[Outcome]:
    return [outcome for seed in sorted(seeds) for outcome in outcomes[seed]]


def show(record: Mapping[str, Any]) -> None:
    """Print the arms, and how they differ from imitation."""
    for title, part in (("arm", record["arms"]), ("less imitation", record["difference"])):
        for name, row in part.items():
            cells = (f"{key} {_interval(row[key])}" for key in SHOWN)
            print(f"{title:14} {name:21} {'  '.join(cells)}")
    for name, row in record["arms"].items():
        print(
            f"{name}: {row['tokens_trained']:.0f} tokens trained, {row['tokens_sampled']:.0f} sampled a seed"
        )


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
