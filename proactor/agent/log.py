"""`DecisionLog`: events appended to a file as they come, whole lines, from any thread and process."""

from __future__ import annotations

import json
import secrets
from pathlib import Path

from proactor.dialogue.agent_log import Event
from proactor.engine import append
from proactor.files import valid_utf8


class DecisionLog:
    """``file`` None writes nothing. ``agent``: a name that tells the events of several agents in one file
    apart.
    """

    def __init__(self, file: str | Path | None) -> None:
        self.file = None if file is None else Path(file)
        self.agent = secrets.token_hex(4)

    def write(self, event: Event) -> None:
        """Append an event. Raises OSError, naming the file, where it cannot be written whole."""
        if self.file is None:
            return
        values = event.model_dump(mode="json", exclude_defaults=True, fallback=repr)
        values = {"event": event.event, "at": event.at, "agent": self.agent, **values}
        append(self.file, valid_utf8(json.dumps(values, ensure_ascii=False)).encode() + b"\n")
