"""What the scheduler reads before a step, and what decides on it: the load controller, or fixed limits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from proactor.engine.controller import Decision, Readings
from proactor.engine.step import Step


class LoadPolicy(Protocol):
    """What decides before each step."""

    def decide(self, readings: Readings) -> Decision:
        """As `Controller.decide`."""
        ...

    def expected(self, age: int, limit: int) -> float:
        """As `Controller.expected`."""
        ...


@dataclass(frozen=True, slots=True)
class FixedLimits:
    """Limits that never change: ``size`` sequences, ``max_rows`` rows a step. Pages are promised for the
    worst case, so that no sequence is preempted.
    """

    size: int
    max_rows: int = 8192

    def decide(self, readings: Readings) -> Decision:
        """The same limits always."""
        room = readings.pages_total - readings.pages_used - readings.pages_promised
        rows = self.max_rows - min(readings.decoding, self.size)
        return Decision(self.size, room, rows, 0, 0.0)

    def expected(self, age: int, limit: int) -> float:
        """All that it may draw."""
        return limit - age


class Load:
    """Puts together a policy's readings.

    A step that draws nothing does not wait for a GPU. Its rows and seconds count with the next one that does.
    """

    def __init__(self, policy: LoadPolicy) -> None:
        self.policy = policy
        self._decodes = self._kv = self._rows = 0
        self._seconds = 0.0
        self._drew = False
        self._ended: list[int] = []

    def took(self, seconds: float) -> None:
        """The last step took so long."""
        self._seconds += seconds

    def ran(self, step: Step) -> None:
        """A step was run; call it before its tokens are appended."""
        self._decodes += len(step.decodes)
        self._kv += sum(decode.length for decode in step.decodes)
        self._rows += step.rows - len(step.decodes)
        self._drew = step.draws

    def ended(self, tokens: int) -> None:
        """A sample ended with so many tokens."""
        self._ended.append(tokens)

    def decide(
        self,
        *,
        waiting: int,
        admitted: int,
        decoding: int,
        backlog: int,
        pages_total: int,
        pages_used: int,
        pages_promised: int,
        pages_short: int,
    ) -> Decision:
        """The decision for the next step; arguments as in `Readings`."""
        last = (self._decodes, self._kv, self._rows, self._seconds) if self._drew else (0, 0, 0, 0.0)
        decision = self.policy.decide(
            Readings(
                waiting,
                admitted,
                decoding,
                backlog,
                pages_total,
                pages_used,
                pages_promised,
                pages_short,
                *last,
                ended=tuple(self._ended),
            )
        )
        self._ended.clear()
        if self._drew:
            self._decodes = self._kv = self._rows = 0
            self._seconds, self._drew = 0.0, False
        return decision
