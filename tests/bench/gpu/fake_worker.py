"""A worker's life without torch: tasks named after what happens to the process."""

from __future__ import annotations

import os
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

TASKS = ("fine", "die", "hang", "lost", "last")


def serve(pipe: Connection, log: Path) -> None:
    try:
        job, _, done = pipe.recv()
    except EOFError:
        return
    if job.name == "never":
        log.write_text("no such device\n")
        sys.exit(3)
    for name in TASKS:
        if name in done:
            continue
        pipe.send((name, None))
        if name == "die":
            log.write_text("first words\na last word\n")
            os._exit(7)
        if name == "hang":
            time.sleep(600)
        pipe.send((name, [{"name": name, "pid": os.getpid()}]))
        if name == "lost":
            os._exit(1)
    pipe.send(("", None))
