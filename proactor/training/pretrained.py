"""What a small model of a `pretrain` section has seen, noted beside it: a test on unseen domains says nothing
of a model that was built on them.
"""

from __future__ import annotations

import json
from pathlib import Path

from proactor.config import ConfigError, Data
from proactor.evaluations import write_whole

NAME = "pretrained.json"


def note(folder: str | Path, data: Data) -> None:
    """Write down what the model in ``folder`` was built on."""
    seen = data.model_dump(mode="json", include={"source", "unseen", "labels", "keep", "seed", "options"})
    write_whole(Path(folder) / NAME, (json.dumps(seen, indent=1) + "\n").encode())


def check(folder: str | Path, data: Data) -> None:
    """ConfigError when ``data.unseen`` names what the model in ``folder`` may have seen."""
    if not data.unseen:
        return
    file = Path(folder) / NAME
    other = "model=… names another folder, where one is built without them"
    if not file.is_file():
        raise ConfigError(
            f"model {folder}: no {NAME} says whether it has seen what data.unseen keeps from training; "
            f"{other}"
        )
    noted = json.loads(file.read_text(encoding="utf-8"))
    for kind in ("domains", "tools"):
        kept_out = noted["unseen"][kind] if noted["source"] == data.source else ()
        if seen := sorted(set(getattr(data.unseen, kind)) - set(kept_out)):
            raise ConfigError(
                f"model {folder}: was built on dialogues of the {kind[:-1]} {seen[0]!r}, which data.unseen "
                f"keeps from training; {other}"
            )
