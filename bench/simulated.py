"""What `bench.simulator` moves about: requests, what of them is queued or decodes, and what came of them."""

from __future__ import annotations

from dataclasses import dataclass, field

PAGE = 16


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    """A request: ``lengths`` are the tokens that each of its samples will draw, of at most ``max_tokens``."""

    time: float
    prompt: int
    lengths: tuple[int, ...]
    max_tokens: int

    def own_pages(self, tokens: int) -> int:
        """Pages of a sample that it shares with none, with the KV of so many of its own tokens."""
        return -(-(self.prompt % PAGE + tokens) // PAGE)


@dataclass(slots=True, eq=False)
class Piece:
    """What is queued: a request with its samples, or a preempted sample that had ``drawn`` tokens."""

    arrival: Arrival
    samples: tuple[int, ...]
    drawn: int = 0
    done: int = 0  # rows that are computed

    @property
    def rows(self) -> int:
        """Rows to compute before its samples decode: the last token drawn is an input, not one of them."""
        return self.arrival.prompt + max(0, self.drawn - 1)

    @property
    def own_pages(self) -> int:
        """Own pages of all samples, from admission until they decode."""
        return len(self.samples) * self.arrival.own_pages(max(self.drawn, 1))


@dataclass(slots=True, eq=False)
class Running:
    """A sample that decodes: it had ``drawn`` tokens before step ``since``, and draws one each step."""

    arrival: Arrival
    sample: int
    drawn: int
    since: int = 0

    @property
    def phase(self) -> int:
        """Before the steps that are this modulo `PAGE` it needs a further page."""
        return (self.since + 1 - self.arrival.prompt - self.drawn) % PAGE

    def age(self, step: int) -> int:
        """Tokens drawn before a step."""
        return self.drawn + step - self.since


@dataclass(slots=True)
class Outcome:
    """What became of the arrivals."""

    latency: list[float | None] = field(default_factory=list)  # seconds, by arrival; None: not finished
    seconds: float = 0.0  # at the end of the simulation
    drawn: int = 0  # tokens of samples
    prompt_rows: int = 0  # rows of prompts, those of preempted samples included
    recomputed: int = 0  # of those, rows that had been computed before
    preempted: int = 0
    steps: int = 0
    sequences: int = 0  # decoding, summed over steps
    window_drawn: int = 0  # of ``drawn``, until the end of the window
