"""StepAgent beside imitation of the same expert, on the same episodes and for as many trained tokens.

    python -m bench.stepagent CONFIG [--arms stepagent,sft] [--seeds 5] [--report] [key=value …]

CONFIG: configs/stepagent-small.yaml. Of a seed, stage A (``start``) is trained once, and every arm begins at
its best adapter. The first arm takes as many steps as the config says. Its trained tokens are the budget of
the others, whose steps follow from what a step of stage A takes. Tokens that are sampled stand beside, since
imitation samples none. Each run is a process, `proactor train CONFIG name=… seed=…`; a finished one is reused
and an interrupted one goes on.

``--report`` trains nothing and reports on what has ended. Prints each arm's metrics on the test tasks and the
differences from ``sft``, with intervals over runs and tasks; writes
``bench/results/<machine>/stepagent-<name>.json``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.learning import ensure, has_summary, recorded_config, run_command
from bench.records import run_parser, stamp, write_record
from proactor.config_file import load_run
from proactor.episode_config import EpisodeConfig
from proactor.methods.user_metrics import Outcome, intervals, paired_change
from proactor.training.episode_pairs import read_tested
from proactor.training.runs import Run
from proactor.training.summary import interval_values

START, REFERENCE = "start", "sft"
SHOWN = ("score", "solved", "user_actions", "tokens")


@dataclass(frozen=True, slots=True)
class Arm:
    """``steps``: the overrides that let it take so many."""

    says: str
    overrides: Callable[[EpisodeConfig], list[str]]
    steps: Callable[[int], list[str]]


def by_reward(reward: str) -> Callable[[EpisodeConfig], list[str]]:
    """StepAgent with this reward."""

    def overrides(base: EpisodeConfig) -> list[str]:
        options = {**(base.method.options if base.method.name == "stepagent" else {}), "reward": reward}
        assert base.sft is not None, "checked"
        options["thoughts"] = base.sft.thoughts
        return ["sft=null", f"method={json.dumps({'name': 'stepagent', 'options': options})}"]

    return overrides


ARMS: dict[str, Arm] = {
    "stepagent": Arm("StepAgent, pairs", by_reward("implicit"), lambda n: [f"grpo.steps={n}"]),
    "stepagent-inverse": Arm("StepAgent, discriminator", by_reward("inverse"), lambda n: [f"grpo.steps={n}"]),
    REFERENCE: Arm(
        "stage A, continued",
        lambda base: ["grpo=null"],
        lambda n: [f"sft.max_steps={n}", f"sft.patience={n}", f"sft.eval_every={max(1, n // 4)}"],
    ),
}
"""By name."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = run_parser("bench.stepagent", "StepAgent beside imitation of the same expert")
    parser.add_argument(
        "--arms", default=",".join(ARMS), help="names, with commas; the first sets the budget"
    )
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report", action="store_true", help="train nothing, report on what has ended")
    options = parser.parse_intermixed_args(arguments)
    base = load_run(options.config, options.overrides)
    if not isinstance(base, EpisodeConfig) or base.sft is None or base.grpo is None:
        parser.error(f"{options.config}: needs the sections environment, sft and grpo")
    arms = [name for name in options.arms.split(",") if name]
    if unknown := set(arms) - ARMS.keys():
        parser.error(f"--arms: {', '.join(sorted(unknown))}: there are {', '.join(ARMS)}")
    runs: dict[str, dict[int, Run]] = {}
    if base.pretrain is not None and not Path(base.model).exists() and not options.report:
        run_command("pretrain", options.config, options.overrides)
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

    def ended(given: Sequence[str]) -> Run | None:
        there = has_summary(Run(load_run(config, given).folder))
        return ensure(config, given) if there or not report else None

    start = ended(settings(START, "grpo=null"))
    if start is None:
        return {}
    runs: dict[str, Run] = {}
    budget: float | None = None
    for name in arms:
        arm = ARMS[name]
        own = [f"start={start.folder / 'best'}", *arm.overrides(base)]
        if budget is not None:
            own += arm.steps(max(1, math.ceil(budget / tokens_a_step(start, "sft"))))
        run = ended(settings(name, *own))
        if run is None:
            break
        runs[name] = run
        budget = trained_tokens(run) if budget is None else budget
    return runs


def trained_tokens(run: Run, kind: str = "") -> float:
    """Tokens of all training steps, or of those of one kind, that had a gradient."""
    return sum(row["tokens_trained"] for row in _steps(run, kind))


def tokens_a_step(run: Run, kind: str) -> float:
    """The mean over a run's steps of one kind."""
    return trained_tokens(run, kind) / len(_steps(run, kind))


def _steps(run: Run, kind: str = "") -> list[Mapping[str, Any]]:
    return [row for row in run.rows() if "tokens_trained" in row and kind in ("", row["kind"])]


def record_of(base: EpisodeConfig, runs: Mapping[str, Mapping[int, Run]]) -> dict[str, Any]:
    """Metrics of each arm over its seeds, and its difference from `REFERENCE` over those that both have."""
    outcomes = {
        name: {seed: read_tested(run.folder).outcomes("after", seed) for seed, run in of_arm.items()}
        for name, of_arm in runs.items()
    }
    reference = outcomes.get(REFERENCE, {})
    return {
        **stamp(),
        "config": recorded_config(base),
        "arms": {
            name: {
                "says": ARMS[name].says,
                "seeds": sorted(of_arm),
                **interval_values(intervals(_flat(of_arm, of_arm), SHOWN)),
                "tokens_trained": sum(map(trained_tokens, runs[name].values())) / len(of_arm),
                "tokens_sampled": sum(
                    row.get("tokens_sampled", 0) for run in runs[name].values() for row in _steps(run)
                )
                / len(of_arm),
            }
            for name, of_arm in outcomes.items()
        },
        "difference": {
            name: interval_values(paired_change(_flat(reference, same), _flat(of_arm, same), SHOWN))
            for name, of_arm in outcomes.items()
            if name != REFERENCE and (same := of_arm.keys() & reference.keys())
        },
    }


def _flat(outcomes: Mapping[int, Sequence[Outcome]], seeds: Any) -> list[Outcome]:
    return [outcome for seed in sorted(seeds) for outcome in outcomes[seed]]


def show(record: Mapping[str, Any]) -> None:
    """Print the arms, and how they differ from `REFERENCE`."""
    for title, part in (("arm", record["arms"]), (f"less {REFERENCE}", record["difference"])):
        for name, row in part.items():
            cells = (f"{key} {_interval(row[key])}" for key in SHOWN)
            print(f"{title:9} {name:18} {'  '.join(cells)}")
    for name, row in record["arms"].items():
        print(
            f"{name}: {row['tokens_trained']:.0f} tokens trained, {row['tokens_sampled']:.0f} sampled a seed"
        )


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['estimate']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


if __name__ == "__main__":
    main()
