"""``proactor train``, ``pretrain`` and ``demo``."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proactor.commands.common import ConfigFile, Overrides, UsageError, console, pretrain_command, terminal
from proactor.commands.doctor import point_to_doctor
from proactor.commands.dry_run import TOKENIZER, dry_run
from proactor.commands.report import write_report

if TYPE_CHECKING:
    from proactor.config import RunConfig
    from proactor.episode_config import EpisodeConfig

DEMO = Path(__file__).parents[1] / "configs" / "demo.yaml"
"""A file of the wheel; in a checkout, `proactor/configs` links to `configs/`."""


def train(
    config: ConfigFile,
    overrides: Overrides = None,
    overfit: Annotated[
        int,
        typer.Option(
            metavar="N",
            min=0,
            help="self-test: learn N dialogues to their maximum and write nothing; 0: train",
        ),
    ] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="continue from the last save")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="replace the run of this name")] = False,
    plan_only: Annotated[
        bool,
        typer.Option("--dry-run", help="read the data and say what the run will compute; nothing is loaded"),
    ] = False,
    gpu: Annotated[
        float | None, typer.Option(help="dry run: 10^9 bytes of the card  \\[default: this machine]")
    ] = None,
    tflops: Annotated[
        float | None, typer.Option(help="dry run: 10^12 operations a second of products")
    ] = None,
    bandwidth: Annotated[float | None, typer.Option(help="dry run: 10^9 bytes a second of memory")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="dry run: ranks of the run")] = None,
    tokenizer: Annotated[Path | None, typer.Option(help=f"dry run: {TOKENIZER}")] = None,
) -> None:
    """Train a run; its metrics, samples, adapters and state go to runs/<name>/."""
    if not plan_only and any(given is not None for given in (gpu, tflops, bandwidth, ranks, tokenizer)):
        raise UsageError("--gpu, --tflops, --bandwidth, --ranks and --tokenizer belong to --dry-run")
    if resume and fresh:
        raise UsageError("--resume continues the run, --fresh replaces it: give one of them")
    from proactor.config_file import load_run
    from proactor.episode_config import EpisodeConfig

    settings = load_run(config, overrides or [])
    built_by = pretrain_command(config, overrides or [])
    if overfit and isinstance(settings, EpisodeConfig):
        raise UsageError("--overfit learns dialogues; a run in an environment has none")
    if plan_only:
        dry_run(settings, gpu, (tflops, bandwidth), ranks, tokenizer, built_by)
        return
    console.outlives = True
    _ensure_model(settings, built_by)
    if isinstance(settings, EpisodeConfig):
        _train_episodes(settings, resume, fresh)
        return
    if overfit:
        _overfit(settings, overfit)
        return
    from proactor.training.loop import train as run_training

    with terminal() as ui:
        summary = run_training(settings, resume=resume, fresh=fresh, ui=ui)
    if summary and not console.quiet:
        _print_summary(settings.name, summary)
        write_report(settings.folder)
    _end(settings.folder)


def _train_episodes(settings: EpisodeConfig, resume: bool, fresh: bool) -> None:
    """`train` of a run in an environment."""
    from proactor.training.episodes_loop import train_episodes

    with terminal() as ui:
        summary = train_episodes(settings, resume=resume, fresh=fresh, ui=ui)
    if summary and not console.quiet:
        from proactor.methods.user_metrics import KEYS
        from proactor.tables import metrics_table

        systems = {name: summary[name] for name in ("before", "after")}
        title = f"{settings.name}: {summary['tasks']} test tasks"
        console.print(metrics_table(title, systems, KEYS, summary["difference"]))
    if not console.quiet:
        write_report(settings.folder)
    _end(settings.folder)


def _end(folder: Path) -> None:
    """Say that a run is done, and whether it should be looked at."""
    if not console.quiet:
        point_to_doctor(folder)
    console.print(f"{folder}: done", markup=False)


def _print_summary(name: str, summary: Mapping[str, Any]) -> None:
    """The systems of `summary.json` side by side, with the change from before to after."""
    from proactor.scoring.bootstrap import KEYS
    from proactor.tables import metrics_table
    from proactor.training.outcome import Outcome

    systems = {
        key: values
        for key, values in summary.items()
        if isinstance(values, dict) and set(KEYS) <= values.keys() and key != "difference"
    }
    title = f"{name}: {summary['dialogues']} test dialogues"
    if "chosen" in summary:
        title += f"; {Outcome.model_validate(summary['chosen']).title}"
    console.print(metrics_table(title, systems, KEYS, summary["difference"], summary["windows"]))


def _overfit(settings: RunConfig, count: int) -> None:
    from proactor.training.overfit import overfit

    with terminal() as ui:
        result = overfit(settings, count, ui)
    console.print(str(result), markup=False)
    if not result.passed:
        raise typer.Exit(1)


def pretrain(config: ConfigFile, overrides: Overrides = None) -> None:
    """Build the small model of a config's `pretrain` section, as `train` does where it is missing."""
    from proactor.config_file import load_run

    settings = load_run(config, overrides or [])
    if settings.pretrain is None:
        raise UsageError(f"{config}: no pretrain section, nothing to build")
    console.outlives = True
    _ensure_model(settings, pretrain_command(config, overrides or []))


def _ensure_model(settings: RunConfig | EpisodeConfig, built_by: str) -> None:
    """Build the small model of a config with a `pretrain` section, unless it exists.

    ``built_by``: the command that does it alone, to name where this process must not. Raises ProactorError
    for a model of other origin, for a name that looks like a hub id, and for a reward or method that training
    could not use.
    """
    if settings.pretrain is None:
        return
    from proactor.config import RunConfig
    from proactor.training.provenance import check_destination

    check_destination(settings.model)
    if Path(settings.model).is_dir():
        return
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise UsageError(f"model {settings.model}: not there yet; this builds it, in one process: {built_by}")
    if isinstance(settings, RunConfig):
        from proactor.rewards import load_reward

        # Refuses a reward that does not exist before anybody waits, for torch too.
        load_reward(settings.reward, settings.reward_options)
        from proactor.training.model_folder import build_small_model

        with terminal() as ui:
            build_small_model(settings, settings.pretrain, ui)
        return
    from proactor.training.episodes_model import build_episode_model
    from proactor.training.method_credit import Credit

    Credit.of(settings.method)  # likewise
    with terminal() as ui:
        build_episode_model(settings, settings.pretrain, ui)


def demo(overrides: Overrides = None) -> None:
    """Pre-train a small 4-bit model on synthetic dialogues, train it with GRPO, and compare before and after.

    Writes to runs/demo in the working directory.
    """
    train(DEMO, overrides, fresh=True)
