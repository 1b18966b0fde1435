"""The adapters of a run, as commands name them."""

from __future__ import annotations

import hashlib
from pathlib import Path

from proactor.config_base import ConfigError

OWN = ("none", "start", "best", "last")
"""Names of the bare model and of a run's own adapters."""


def adapter_folder(run: Path, name: str) -> Path | None:
    """The folder of an adapter named on the command line: start, best, last or a path; None for "none".

    Raises ConfigError when it holds no adapter.
    """
    if name == "none":
        return None
    inside = run / name
    folder = inside if name in OWN else Path(name)
    if not (folder.is_dir() and _holds_adapter(folder)):
        raise ConfigError(f"{folder}: no adapter there (none, start, best, last of the run, or a folder)")
    return folder


def _holds_adapter(folder: Path) -> bool:
    from proactor.engine import has_adapter  # imports torch: only for a folder that exists

    return has_adapter(folder)


def adapter_digest(folder: Path | None) -> str:
    """What tells the adapter in a folder from others: a hash of its files, 16 hex digits; "none" for None."""
    from proactor.engine import read_regular

    if folder is None:
        return "none"
    digest = hashlib.sha256()
    for file in sorted(folder.glob("adapter_*")):
        digest.update(file.name.encode() + b"\0" + read_regular(file))
    return digest.hexdigest()[:16]
