"""Progress of a run as it is reported, and the exception by which a run ends early."""

from __future__ import annotations

from typing import Protocol


class Stopped(Exception):
    """The process received ``signal`` (SIGTERM, SIGINT), saved its state and ends."""

    def __init__(self, number: int, update: int) -> None:
        super().__init__(f"stopped after step {update}, saved; --resume continues")
        self.signal = number


class Progress(Protocol):
    """Receives the progress of a run; the command line draws bars from it."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """A phase of ``total`` steps begins, ``done`` of them already completed."""

    def step(self, text: str) -> None:
        """A step of the phase was completed; ``text`` sums it up."""

    def substep(self, name: str, done: int, total: int) -> None:
        """Work ``name`` inside a step is at ``done`` of ``total``."""

    def say(self, text: str) -> None:
        """A line that stays on the screen."""


class Quiet:
    """A `Progress` that shows nothing."""

    def phase(self, name: str, total: int, done: int = 0) -> None:
        """Ignore it."""

    def step(self, text: str) -> None:
        """Ignore it."""

    def substep(self, name: str, done: int, total: int) -> None:
        """Ignore it."""

    def say(self, text: str) -> None:
        """Ignore it."""
