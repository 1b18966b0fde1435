"""The engine of a run."""

from __future__ import annotations

from proactor.config_base import RunBase
from proactor.engine import Engine
from proactor.progress import Progress


def load_engine(config: RunBase, ui: Progress) -> Engine:
    """The engine that a config describes. Raises EngineError or CheckpointError as `Engine.load`."""
    return Engine.load(
        config.model,
        config.engine,
        lora=config.lora,
        seed=config.seed,
        progress=lambda done, total: ui.substep("loading the model", done, total),
    )
