"""`own_process`: a test that runs in a process of its own, where the pretended card is known to PyTorch.

A server registers the card and imports the engine once; each test is a fork of it. Nothing of a test is left
behind, and no other test meets a PyTorch with a third kind of device.
"""

from __future__ import annotations

import atexit
import importlib
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache, wraps
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


def own_process(test: Callable[..., None]) -> Callable[..., None]:
    """Decorator of a test; its arguments are pickled."""

    @wraps(test)
    def run(**arguments: Any) -> None:
        server = _server()
        assert server.stdin is not None and server.stdout is not None
        pickle.dump((test.__module__, test.__name__, arguments), server.stdin)
        server.stdin.flush()
        failure = pickle.load(server.stdout)
        if failure:
            pytest.fail(failure, pytrace=False)

    return run


@cache
def _server() -> subprocess.Popen[bytes]:
    """This process's server, started when it is first needed."""
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", __name__]
    server = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    atexit.register(server.kill)
    return server


def serve() -> None:
    """Fork for each (module, test, arguments) on stdin; answer what failed on stdout, "" for nothing."""
    import torch

    from tests.card import card

    torch.set_num_threads(1)
    card.register()
    importlib.import_module("tests.card.engines")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a test prints is no answer
    while sys.stdin.buffer.peek(1):
        request = pickle.load(sys.stdin.buffer)
        receive, send = os.pipe()
        child = os.fork()
        if not child:
            with os.fdopen(send, "wb") as report:
                report.write(_failure(*request).encode())
            os._exit(0)
        os.close(send)
        with os.fdopen(receive, "rb") as report:
            failure = report.read().decode()
        status = os.waitpid(child, 0)[1]
        pickle.dump(failure or (f"the test's process ended with status {status}" if status else ""), answers)
        answers.flush()


def _failure(module: str, name: str, arguments: dict[str, Any]) -> str:
    try:
        getattr(importlib.import_module(module), name).__wrapped__(**arguments)
    except BaseException:  # noqa: BLE001 (a process boundary: whatever it was, the parent reports it)
        return traceback.format_exc()
    return ""


if __name__ == "__main__":
    serve()
