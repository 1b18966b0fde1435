"""The load controller: how many sequences decode, how many rows of prompts run beside them, who gives way.

`Controller.decide` is fed with readings before each step and answers with a decision:

- **Batch.** A step costs more with more sequences, but less a sequence, up to a knee. The controller times
  steps by bucket and lets as many sequences run as the smallest bucket whose rate is near the best one's: the
  nearer, the more wait. A batch beyond the knee would only make everyone slower.
- **Prompts.** As many rows as keep that batch filled, more while many wait and few run.
- **Pages.** New work is promised the pages that it is expected to need, not those of ``max_tokens``: the mean
  of what samples of its age went on to draw, and a margin.
- **Preemption.** Where pages run out in spite of that, the least computed sequences give theirs back and are
  computed again later. The margin widens then, and narrows slowly.

Pure: no clock, no random numbers. In deterministic mode the cost of a step is counted in tokens, so that
decisions do not depend on seconds. A row holds the readings and the decision made from them; `replay` finds
the rows that this code would decide differently.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from pydantic import Field, field_validator, model_validator

from proactor.engine.estimates import LengthEstimate, StepEstimate
from proactor.engine.frozen import Config
from proactor.engine.types import EngineError

Key = TypeVar("Key")


def buckets_to(most: int) -> tuple[int, ...]:
    """Batch sizes up to the first that holds ``most``: powers of two and, from 16 on, the middle of two."""
    sizes = [1, 2, 4, 8]
    while sizes[-1] < most:
        sizes += [2 * sizes[-1], 3 * sizes[-1]] if sizes[-1] == 8 else [sizes[-2] * 2, sizes[-1] * 2]
    return tuple(sizes[: next(i for i, size in enumerate(sizes) if size >= most) + 1])


BUCKETS = buckets_to(256)


class ControllerConfig(Config):
    """The limits and the constants of a `Controller`."""

    max_seqs: int = Field(256, ge=1, description="most sequences that decode at once")
    max_rows: int = Field(2048, ge=1, description="most rows of prompts in a step")
    page_size: int = Field(16, ge=1, description="tokens of a KV page")
    deterministic: bool = Field(False, description="steps are costed by their tokens, not by their seconds")
    buckets: tuple[int, ...] = Field(BUCKETS, description="batch sizes that a step may be rounded up to")
    start: int = Field(32, ge=1, description="sequences that may run before any step was timed")
    slack: float = Field(
        0.1,
        gt=0,
        lt=1,
        description="share of the best rate given up when none wait; half when as many as run",
    )
    stall: float = Field(2.0, gt=0, description="seconds of prompts beside a second of decoding")
    least_rows: int = Field(64, ge=1, description="least rows of prompts in a step that has any")
    probe: int = Field(16, ge=2, description="of so many steps with prompts one is left without, to be timed")
    lengths: int = Field(256, ge=1, description="ended samples that are remembered")
    enough: int = Field(32, ge=1, description="ended samples before their lengths are believed")
    headroom: float = Field(0.02, ge=0, lt=1, description="share of the pages that is not promised")
    caution: float = Field(1.0, ge=0, description="margin of the expected pages, in standard deviations")
    most_caution: float = Field(8.0, ge=0, description="the margin after many preemptions")
    relax: float = Field(1 / 256, gt=0, le=1, description="share of the widened margin given up a decision")

    @field_validator("buckets")
    @classmethod
    def _rising(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or value[0] < 1 or list(value) != sorted(set(value)):
            raise ValueError(f"{list(value)}: should be rising numbers from 1 on")
        return value

    @model_validator(mode="after")
    def _agree(self) -> ControllerConfig:
        if self.buckets[-1] < self.max_seqs:
            raise ValueError(f"buckets: the last one, {self.buckets[-1]}, holds no max_seqs={self.max_seqs}")
        if self.caution > self.most_caution:
            raise ValueError(f"caution={self.caution} should not be above most_caution={self.most_caution}")
        return self


@dataclass(frozen=True, slots=True)
class Readings:
    """What a decision is made from. ``last_…``: the step that ran since the last decision, 0 for none."""

    waiting: int = 0  # sequences of requests that are not admitted
    admitted: int = 0  # sequences of admitted requests that have not ended
    decoding: int = 0  # of those, the ones that decode
    backlog: int = 0  # tokens of prompts that are not computed, of waiting and of admitted requests
    pages_total: int = 1
    pages_used: int = 0
    pages_promised: int = 0  # further pages that admitted work is expected to need: `Controller.expected`
    pages_short: int = 0  # pages that the next step needs and the pool has not
    last_decodes: int = 0
    last_kv: int = 0  # tokens that its decoding sequences read
    last_rows: int = 0  # its rows of prompts
    last_seconds: float = 0.0
    ended: tuple[int, ...] = ()  # tokens of the samples that ended


@dataclass(frozen=True, slots=True)
class Decision:
    """What the next step may do."""

    max_seqs: int  # admit while fewer sequences than this are admitted: the knee, whatever the pages say
    room: int  # pages that may be promised to new work
    prefill_rows: int  # rows of prompts in this step
    free_pages: int  # pages that preempted sequences have to give back first
    caution: float  # the margin, in standard deviations


class Controller:
    """Makes the decisions of one run. Feed every reading to `decide`, in order."""

    def __init__(self, config: ControllerConfig | None = None) -> None:
        self.config = config or ControllerConfig()
        self._lengths = LengthEstimate(self.config.lengths, self.config.enough)
        self._steps = StepEstimate(self.config.buckets, window=64, memory=4096)
        self._caution = self.config.caution
        self._since_probe = 0
        self._prompt_ratio = 0.0  # tokens of prompts for each token that is drawn

    def expected(self, age: int, limit: int) -> float:
        """Tokens that a sample of ``age`` tokens, of at most ``limit``, is expected to draw yet."""
        return self._lengths.remaining(age, limit)

    def decide(self, readings: Readings) -> Decision:
        """The decision for the next step."""
        self._observe(readings)
        knee = self._knee(readings)
        return Decision(
            max_seqs=knee,
            room=self._room(readings),
            prefill_rows=self._prefill_rows(readings, knee),
            free_pages=self._free_pages(readings),
            caution=round(self._caution, 6),
        )

    def _observe(self, r: Readings) -> None:
        config = self.config
        self._lengths.observe(r.ended)
        unready = r.waiting + r.admitted - r.decoding
        if unready > 0 and self._lengths.mean:
            ratio = r.backlog / unready / self._lengths.mean
            self._prompt_ratio += (ratio - self._prompt_ratio) / 64
        cost = r.last_seconds
        if config.deterministic:
            cost = token_cost(r.last_decodes, r.last_kv, r.last_rows)
        if r.last_decodes + r.last_rows and cost > 0:
            self._steps.observe(r.last_decodes, r.last_kv, r.last_rows, cost)
        if r.pages_short:
            self._caution = min(config.most_caution, self._caution + 1)
        else:
            self._caution += (config.caution - self._caution) * config.relax

    def _context(self, r: Readings) -> float:
        """Tokens that a sequence reads, by the last step."""
        return r.last_kv / r.last_decodes if r.last_decodes else 0.0

    def _knee(self, r: Readings) -> int:
        """The smallest bucket whose rate is near enough to the best rate of all that are timed, and the next.

        Under pressure the bucket after those is taken to cost no more than they do, so it is tried.
        """
        config, visited = self.config, self._steps.visited
        if not visited:
            return min(config.start, config.max_seqs)
        pressure = r.waiting / max(1, r.admitted)
        untried = next((b for b in config.buckets if b > max(visited[-1], config.start - 1)), visited[-1])
        sizes = [min(b, config.max_seqs) for b in config.buckets if b <= untried]
        context = self._context(r)
        prompts = self._prompt_ratio * self._steps.row_cost  # of each token: they cost the same at any size
        rates = [1 / (self._steps.cost(size, context, min(1.0, pressure)) / size + prompts) for size in sizes]
        least = (1 - config.slack / (1 + pressure)) * max(rates)
        return next(size for size, rate in zip(sizes, rates, strict=True) if rate >= least)

    def _room(self, r: Readings) -> int:
        """Pages for new work: what is left of the pool beyond promises, headroom and margin."""
        config = self.config
        spread = self._lengths.deviation * max(1, r.admitted) ** 0.5 / config.page_size
        kept = config.headroom * r.pages_total + self._caution * spread
        return max(0, int(r.pages_total - r.pages_used - r.pages_promised - kept)) if not r.pages_short else 0

    def _free_pages(self, r: Readings) -> int:
        """The missing pages, and the headroom again: otherwise the next step would be short as well."""
        return r.pages_short + int(self.config.headroom * r.pages_total) if r.pages_short else 0

    def _prefill_rows(self, r: Readings, knee: int) -> int:
        config = self.config
        if not r.backlog:
            return 0
        if not r.decoding:
            self._since_probe = 0
            return config.max_rows
        if not self._steps.visited or not self._steps.row_cost:
            return self._probed(config.max_rows)
        balanced = 1.25 * knee * self._prompt_ratio
        patience = config.stall * min(4.0, max(1.0, r.waiting / r.decoding))
        alone = self._steps.cost(r.decoding, self._context(r))
        rows = max(balanced, patience * alone / self._steps.row_cost, config.least_rows)
        return self._probed(min(config.max_rows, -(-int(rows) // config.page_size) * config.page_size))

    def _probed(self, rows: int) -> int:
        """``rows``, but now and then none, so that decoding alone is timed."""
        self._since_probe += 1
        if self._since_probe < self.config.probe:
            return rows
        self._since_probe = 0
        return 0


def token_cost(decodes: int, kv: int, rows: int) -> float:
    """A step's cost in deterministic mode, in rows: 32 for the step itself, and one for 256 tokens read."""
    return 32 + decodes + rows + kv / 256


def choose_victims(candidates: Sequence[tuple[Key, int, int]], pages: int) -> list[Key]:
    """Who gives its pages back: (key, tokens computed, pages freed), least computed first, the later one of
    equals, until ``pages`` are free. The one with most tokens stays, so that something always ends.
    """
    order = sorted(range(len(candidates)), key=lambda i: (candidates[i][1], -i))
    chosen: list[Key] = []
    for i in order[:-1]:
        if pages <= 0:
            break
        chosen.append(candidates[i][0])
        pages -= candidates[i][2]
    return chosen


# -- the log ---


def log_head(config: ControllerConfig, run: int = 0) -> str:
    """The line that begins a run; ``run`` tells apart those of processes that share a file."""
    return json.dumps({"run": run, "config": config.model_dump(mode="json")})


def log_row(readings: Readings, decision: Decision, run: int = 0) -> str:
    """The line of a decision and its readings."""
    return json.dumps({"run": run, "readings": asdict(readings), "decision": asdict(decision)})


def log_lines(config: ControllerConfig, rows: Iterable[tuple[Readings, Decision]]) -> Iterator[str]:
    """JSON lines of a run: the config, then each decision with its readings."""
    yield log_head(config)
    for readings, decision in rows:
        yield log_row(readings, decision)


def replay(lines: Iterable[str]) -> Iterator[tuple[int, dict[str, Any], dict[str, Any]]]:
    """(line, logged, decided now) for each decision of a log that this code makes differently.

    Raises EngineError, naming the line, for one that is no log.
    """
    controllers: dict[int, Controller] = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            run = row.get("run", 0)
            if "config" in row:
                controllers[run] = Controller(ControllerConfig(**row["config"]))
                continue
            controller = controllers[run]
            readings = Readings(**{**row["readings"], "ended": tuple(row["readings"]["ended"])})
            logged = row["decision"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise EngineError(f"line {number}: no row of a controller's log: {error!r}") from error
        decided = asdict(controller.decide(readings))
        if decided != logged:
            yield number, logged, decided
