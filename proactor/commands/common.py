"""Shared by the commands: the console, options, and a workspace opened with a progress bar.

Commands import what is slow to import (pydantic, numpy, torch and all that uses them) where they use it, so
that help comes at once.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proactor.engine import ProactorError
from proactor.output import Output
from proactor.progress import Quiet

if TYPE_CHECKING:
    from proactor.config import RunConfig
    from proactor.dialogue import Dialogue
    from proactor.training.workspace import Workspace

console = Output(quiet=os.environ.get("RANK", "0") != "0", highlight=False)
if not console.is_terminal and "COLUMNS" not in os.environ:
    console.width = 120  # a file or a pipe has no width of its own, and 80 cuts tables

ConfigFile = Annotated[
    Path, typer.Argument(metavar="CONFIG", help="a YAML file; see configs/", show_default=False)
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="e.g. grpo.lr=1e-4 data.train.limit=50", show_default=False
    ),
]
TrustCode = Annotated[
    bool, typer.Option("--trust-code", help="tools of a Python module: its code may run, to read them")
]
Adapter = Annotated[str, typer.Option(help="start, best, last, none, or a folder with an adapter")]
Split = Annotated[str, typer.Option(help="train, dev or test")]


class UsageError(ProactorError):
    """An argument or option of a command that cannot work. One line."""


def open_workspace(settings: RunConfig, adapter: str) -> Workspace:
    """The workspace of a config, with one of its adapters (see `Adapter`) loaded.

    Raises ConfigError when the adapter does not exist.
    """
    from proactor.training.adapters import adapter_folder

    folder = adapter_folder(settings.folder, adapter)
    from proactor.training.workspace import Workspace

    with terminal() as ui:
        workspace = Workspace.open(settings, ui)
    if folder is not None:
        workspace.engine.load_adapter(folder)
    return workspace


def writing_to(settings: RunConfig, adapter: str) -> AbstractContextManager[None]:
    """The lock on a run's folder (`sole_writer`), on the rank that writes; ``adapter`` is looked up first.

    Raises ConfigError when the adapter does not exist, so that no folder is made for nothing.
    """
    from proactor.sole_writer import sole_writer
    from proactor.training.adapters import adapter_folder

    adapter_folder(settings.folder, adapter)
    return nullcontext() if console.quiet else sole_writer(settings.folder)


def check_split(split: str, option: str = "--split") -> None:
    """Raise UsageError unless ``split`` is a part of the data; asked before a model is loaded."""
    if split not in ("train", "dev", "test"):
        raise UsageError(f"{option} {split}: train, dev or test")


def dialogues_of(workspace: Workspace, split: str) -> tuple[Dialogue, ...]:
    """The dialogues of the part called ``split``. Raises UsageError for another name."""
    check_split(split)
    dialogues: tuple[Dialogue, ...] = getattr(workspace, split)
    return dialogues


def find_dialogue(dialogues: tuple[Dialogue, ...], name: str) -> Dialogue:
    """The dialogue with the id, or at the position, ``name``. Raises UsageError when there is none."""
    for i, dialogue in enumerate(dialogues):
        if name in (dialogue.id, str(i)):
            return dialogue
    raise UsageError(f"--dialogue {name}: neither an id nor a position below {len(dialogues)}")


def parse_pair(text: str) -> tuple[str, Any]:
    """(key, value) of a reader's option; the value is YAML, as in a config."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--option {text}: KEY=VALUE is wanted")
    from proactor.yaml_values import parse_yaml

    return key, parse_yaml(value, f"--option {text}")


def pretrain_command(config: Path, overrides: Sequence[str]) -> str:
    """The command that builds the small model of a config, as a shell takes it."""
    return shlex.join(("proactor", "pretrain", str(config), *overrides))


def run_folder(run: Path) -> Path:
    """The folder of a run, given that folder or the run's config.

    Raises UsageError where there is nothing, SourceError for a folder that is not a run's.
    """
    if not run.exists():
        raise UsageError(f"{run}: no such run, nor a config")
    if not run.is_file():
        from proactor.training.record import check_run

        check_run(run)
        return run
    from proactor.config_file import read_run

    folder = read_run(run).folder
    if not folder.exists():
        raise UsageError(f"{folder}: no such run; {run} is its config (proactor train)")
    return folder


def all_in_environment(folders: Sequence[Path]) -> bool:
    """Whether runs are in an environment. Raises UsageError where some are, others on dialogues."""
    from proactor.training.record import RunRecord

    kinds = [RunRecord.read(folder).in_environment for folder in folders]
    if len(set(kinds)) > 1:
        inside, outside = folders[kinds.index(True)], folders[kinds.index(False)]
        raise UsageError(f"{inside}: a run in an environment, {outside} is one on dialogues")
    return kinds[0]


def terminal() -> AbstractContextManager[Any]:
    """A progress display on the console; a silent one on ranks that print nothing."""
    from proactor.console import Terminal

    return nullcontext(Quiet()) if console.quiet else Terminal(console)
