"""Fault points: named places where a test can kill the process, to prove that a run survives a kill anywhere.

``PROACTOR_FAULT=save.write:3`` sends SIGKILL at the third passing of the point ``save.write``. Without the
variable a point does nothing.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_passed: Counter[str] = Counter()
_plan = os.environ.get("PROACTOR_FAULT", "")


def fault_point(name: str) -> None:
    """Pass the point ``name``; the process is killed here if ``PROACTOR_FAULT`` says so."""
    if not _plan:
        return
    _passed[name] += 1
    if f"{name}:{_passed[name]}" == _plan:
        os.kill(os.getpid(), signal.SIGKILL)
