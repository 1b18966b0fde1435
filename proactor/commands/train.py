"""``proactor train``, ``pretrain`` and ``demo``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from proactor.commands.common import ConfigFile, Overrides, console, terminal
from proactor.commands.report import write as write_report
from proactor.config import ConfigError, RunConfig
from proactor.config_file import load_config
from proactor.console import metrics_table
from proactor.scoring.bootstrap import KEYS


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    overfit: Annotated[
        int,
        typer.Option(metavar="N", min=0, help="self-test: learn N dialogues to their maximum, write nothing"),
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last save")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="replace the run of this name")] = False,
) -> None:
    """Train a run; its folder, runs/<name>/, holds metrics, samples, adapters and the state to resume
    from.
    """
    from proactor.training.loop import train as run_training

    settings = load_config(config, overrides or [])
    _ensure_model(settings)
    if overfit:
        _overfit(settings, overfit)
        return
    with terminal() as ui:
        summary = run_training(settings, resume=resume, fresh=fresh, ui=ui)
    if summary and not console.quiet:
        systems = {
            k: v
            for k, v in summary.items()
            if isinstance(v, dict) and set(KEYS) <= v.keys() and k != "difference"
        }
        console.print(
            metrics_table(
                f"{settings.name}: {summary['dialogues']} test dialogues",
                systems,
                KEYS,
                summary["difference"],
                summary["windows"],
            )
        )
        write_report(settings.folder)
    console.print(f"{settings.folder}: done", markup=False)


def _overfit(settings: RunConfig, count: int) -> None:
    from proactor.training.overfit import overfit

    with terminal() as ui:
        result = overfit(settings, count, ui)
    console.print(str(result), markup=False)
    if not result.passed:
        raise typer.Exit(1)


def pretrain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Build the small model that a config with a `pretrain` section trains (`train` does it too, when there
    is none yet).
    """
    settings = load_config(config, overrides or [])
    if settings.pretrain is None:
        raise ConfigError(f"{config}: no pretrain section, nothing to build")
    _ensure_model(settings)


def _ensure_model(settings: RunConfig) -> None:
    if settings.pretrain is None or Path(settings.model).is_dir():
        return
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError(
            f"model {settings.model}: not there yet; build it in one process first (proactor pretrain CONFIG)"
        )
    from proactor.training.model_folder import build_small_model

    with terminal() as ui:
        build_small_model(settings, settings.pretrain, ui)


def demo(overrides: Overrides = None) -> None:
    """Pre-train a small 4-bit model on synthetic dialogues, train it with GRPO, show it before and after."""
    config = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"
    if not config.is_file():
        raise ConfigError(f"{config}: not there; the demo runs from a checkout of the repository")
    train(config, overrides, fresh=True)
