"""The command line of benchmarks that set arms beside one another: runs of one config in an environment."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from bench.records import run_parser
from proactor.config_file import load_run
from proactor.episode_config import EpisodeConfig


def arms_parser(prog: str, description: str) -> argparse.ArgumentParser:
    """`run_parser` with the options --arms, --seeds and --report."""
    parser = run_parser(prog, description)
    parser.add_argument("--arms", default="", help="names, with commas (all)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--report", action="store_true", help="train nothing, report on what has ended")
    return parser


def read_base(parser: argparse.ArgumentParser, options: argparse.Namespace) -> EpisodeConfig:
    """The config of the command line; one without an environment and both stages ends the command."""
    base = load_run(options.config, options.overrides)
    if not isinstance(base, EpisodeConfig) or base.sft is None or base.grpo is None:
        parser.error(f"{options.config}: needs the sections environment, sft and grpo")
    return base


def chosen_arms(parser: argparse.ArgumentParser, given: str, known: Collection[str]) -> list[str]:
    """The arms of --arms, all of them without one; an unknown name ends the command."""
    arms = [name for name in given.split(",") if name] or list(known)
    if unknown := set(arms) - set(known):
        parser.error(f"--arms: {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    return arms
