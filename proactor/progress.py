"""What a run tells while it works, and how it ends early."""

from __future__ import annotations

from typing import Protocol


class Stopped(Exception):
    """The process was asked to end (SIGTERM, Ctrl-C) and has saved; ``signal`` is what asked."""

    def __init__(self, number: int, update: int) -> None:
        super().__init__(f"stopped after step {update}, saved; --resume continues")
        self.signal = number


class Progress(Protocol):
    """What a run tells while it works; the command line draws bars from it."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """A phase of ``total`` steps begins, ``done`` of them already made."""

    def step(self, text: str) -> None:
        """A step of the phase was made; ``text`` sums it up."""

    def substep(self, name: str, done: int, total: int) -> None:
        """Something inside a step has come to ``done`` of ``total``."""

    def say(self, text: str) -> None:
        """A line worth keeping."""


class Quiet:
    """Says nothing."""

    def phase(self, name: str, total: int, done: int = 0) -> None: ...
    def step(self, text: str) -> None: ...
    def substep(self, name: str, done: int, total: int) -> None: ...
    def say(self, text: str) -> None: ...
