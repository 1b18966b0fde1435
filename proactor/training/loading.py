"""The engine of a run, and the adapter that it starts with."""

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


def load_start(engine: Engine, config: RunBase) -> None:
    """Load `start` on every rank, or on none. Raises EngineError as `Engine.load_adapter`."""
    if config.start is not None:
        with engine.together("start"):
            engine.load_adapter(config.start)
