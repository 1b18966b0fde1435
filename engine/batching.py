"""What decides on an engine's batches: the load controller, with or without a log, or fixed limits."""

from __future__ import annotations

import os
from pathlib import Path

from proactor.engine.config import EngineConfig
from proactor.engine.controller import (
    Controller,
    ControllerConfig,
    Decision,
    Readings,
    buckets_to,
    log_head,
    log_row,
)
from proactor.engine.files import append
from proactor.engine.load import FixedLimits, LoadPolicy

PROMPT_ROWS = 2048
"""Most rows of prompts in a step that the controller decides on: decoding does not wait long for it."""


class LoggedController(Controller):
    """A controller that appends each decision with its readings to a file, for `controller.replay`.

    Raises OSError, naming the file, where it cannot be written.
    """

    def __init__(self, config: ControllerConfig, file: Path) -> None:
        super().__init__(config)
        self._file, self._run = file, os.getpid()
        append(file, (log_head(config, self._run) + "\n").encode())

    def decide(self, readings: Readings) -> Decision:
        """As `Controller.decide`."""
        decision = super().decide(readings)
        append(self._file, (log_row(readings, decision, self._run) + "\n").encode())
        return decision


def load_policy(options: EngineConfig, max_rows: int) -> LoadPolicy:
    """What an engine's options ask for; ``max_rows``: rows a step."""
    if options.batching == "fixed":
        return FixedLimits(options.max_batch, max_rows)
    config = ControllerConfig(
        max_seqs=options.max_batch,
        max_rows=min(PROMPT_ROWS, max_rows),
        page_size=options.page_size,
        deterministic=options.deterministic,
        buckets=buckets_to(options.max_batch),
    )
    if options.batching_log is None:
        return Controller(config)
    return LoggedController(config, Path(options.batching_log))
