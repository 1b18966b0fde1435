"""TensorBoard's event files, appended in the foreground: a row is there when the call returns, or the call
raises. TensorBoard's own writer works in a thread, which dies of a full disk with a traceback.
"""

from __future__ import annotations

import io
import os
import socket
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path

from proactor.engine import append

_numbers = count()
"""Tells apart the event files that one process begins in one second."""


class Scalars:
    """One event file in ``folder``. It hides the scalars of earlier files from ``step`` on, which are written
    again.
    """

    def __init__(self, folder: str | Path, step: int) -> None:
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_numbers)}"
        self.file = Path(folder) / f"events.out.tfevents.{name}"
        self._write(
            {"step": step, "file_version": "brain.Event:2"},
            {"step": step, "session_log": {"status": 1}},  # START: purges from this step on
        )

    def add(self, values: Mapping[str, float], step: int) -> None:
        """Append ``values`` by tag. Raises OSError, naming the file, with nothing written."""
        tags = [{"tag": tag, "simple_value": value} for tag, value in values.items()]
        self._write({"step": step, "summary": {"value": tags}})

    def _write(self, *events: Mapping[str, object]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # not at the start of every command
        from tensorboard.summary.writer.record_writer import RecordWriter

        records = io.BytesIO()
        for event in events:
            RecordWriter(records).write(Event(wall_time=time.time(), **event).SerializeToString())
        append(self.file, records.getvalue())
