"""Does a method push the frontier of success against user involvement?

    python -m bench.frontier CONFIG [--experiment frontier] [--arms a,b] [--seeds 5] [--report] [key=value …]

Arms are in `bench.frontier_arms`: ``frontier`` sets BAO beside UserRL's GRPO at several prices of a user's
turn, ``infopo`` sets InfoPO beside GRPO. Each run is a process, `proactor train CONFIG name=… seed=…`; a
finished run is reused and an interrupted one goes on, so the command can be repeated after a stop. Of a seed,
stage A is trained once, and every GRPO arm begins there and plays as many episodes as the others.

Every GRPO arm ends with its last adapter: the best on dev by score would undo what a price buys. Beside the
arms stand scripted players (`function_scripts.lines`).

``--report`` trains nothing and reports on what has ended. Prints a table and writes
``bench/results/<machine>/<experiment>-<name>.json``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from bench.arms import arms_parser, chosen_arms, read_base
from bench.frontier_arms import EXPERIMENTS, SFT, Experiment
from bench.frontier_record import record_of, show
from bench.learning import ensure, ensure_model, has_summary
from bench.records import say, write_record
from proactor.config_file import load_run
from proactor.episode_config import EpisodeConfig
from proactor.training.runs import Run


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module."""
    parser = arms_parser("bench.frontier", "success against user involvement")
    parser.add_argument("--experiment", choices=EXPERIMENTS, default="frontier")
    options = parser.parse_intermixed_args(arguments)
    base = read_base(parser, options)
    experiment = EXPERIMENTS[options.experiment]
    arms = chosen_arms(parser, options.arms, experiment.arms)
    if not options.report:
        train(options.config, options.overrides, base, experiment, arms, options.seeds)
    ended = finished(options.config, options.overrides, base, experiment, options.seeds)
    if not ended:
        parser.error("no run has ended")
    record = record_of(base, experiment, ended) | {"experiment": options.experiment}
    file = write_record(options.results, f"{options.experiment}-{base.name}", record)
    show(record)
    print(f"record: {file}")


def train(
    config: Path,
    overrides: Sequence[str],
    base: EpisodeConfig,
    experiment: Experiment,
    arms: Sequence[str],
    seeds: int,
) -> None:
    """Every run that has not ended, seed by seed, so that a stop leaves whole sets of arms."""
    ensure_model(config, overrides)
    names = list(dict.fromkeys([SFT, *arms]))
    wanted = [
        [*overrides, *experiment.arms[name].overrides(base, name, seed)]
        for seed in range(seeds)
        for name in names
    ]
    missing = [s for s in wanted if not has_summary(Run(load_run(config, s).folder))]
    spent: list[float] = []
    for settings in wanted:
        began = time.monotonic()
        run = ensure(config, settings)  # also checks that an ended run has these settings
        if settings in missing:
            spent.append(time.monotonic() - began)
            left = sum(spent) / len(spent) * (len(missing) - len(spent)) / 60
            counted = f"{len(spent)} of {len(missing)} runs, about {left:.0f} min left"
            say(f"{run.folder.name}: {spent[-1]:.0f} s; {counted}")


def finished(
    config: Path, overrides: Sequence[str], base: EpisodeConfig, experiment: Experiment, seeds: int
) -> dict[str, dict[int, Run]]:
    """The runs that have ended, by arm and seed; arms without one are left out.

    Exits, as `ensure`, where one has other settings than its arm.
    """
    ended: dict[str, dict[int, Run]] = {}
    for name, arm in experiment.arms.items():
        for seed in range(seeds):
            settings = [*overrides, *arm.overrides(base, name, seed)]
            if has_summary(Run(load_run(config, settings).folder)):
                ended.setdefault(name, {})[seed] = ensure(config, settings)
    return ended


if __name__ == "__main__":
    main()
