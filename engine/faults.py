"""Named points where a test may kill the process, to prove that a run survives being killed anywhere.

``PROACTOR_FAULT=save.write:3`` kills (SIGKILL) at the third passing of ``save.write``. Without the variable a
point costs one dictionary look-up.
"""

from __future__ import annotations

import os
import signal
from collections import Counter

_passed: Counter[str] = Counter()
_plan = os.environ.get("PROACTOR_FAULT", "")


def point(name: str) -> None:
    """Pass the point ``name``; the process ends here if ``PROACTOR_FAULT`` says so."""
    if not _plan:
        return
    _passed[name] += 1
    if f"{name}:{_passed[name]}" == _plan:
        os.kill(os.getpid(), signal.SIGKILL)
