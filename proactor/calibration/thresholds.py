"""When to fire: thresholds on the tools' probabilities, chosen on development data for a stated budget of
false fires.

Pure functions on score tables. All choices are [INFERRED]:

- A first fire is *wrong* when it is unmatched, a repeat, or, on a tool that needs assent, before the assent;
  late ones are counted apart. The budget is on wrong fires in 100 dialogues, and is rounded down to whole
  fires of the data chosen on: 64 dialogues at 1 in 100 allow none.
- Within the budget a choice wins by turns saved against the logged human trigger, then by right fires, then
  by fewer wrong ones, then by the higher threshold.
- Tools are independent: matching compares names first, and a replay's memory holds tool and values. So the
  best thresholds for all tools together are found exactly, by a knapsack over wrong fires.
- A tool that the data never showed takes the best common threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from proactor.calibration.score_table import Score, ScoreTable, replay
from proactor.dialogue import Action, Dialogue
from proactor.dialogue.matching import THETA, Timing, first_fires
from proactor.engine import ProactorError
from proactor.scoring.arrays import Array
from proactor.scoring.utility import is_false

BUDGET = 1.0
"""Wrong fires allowed in 100 dialogues."""

NEVER = 2.0
"""A threshold that no probability reaches."""

OUTCOME = (
    "fires",
    "false",
    "before_assent",
    "late",
    "right",
    "on_time",
    "lead",
    "saved",
    "saved_turns",
    "early_turns",
)
"""Sums of what a policy's first fires came to, in one dialogue. false: unmatched and repeats; right: on time,
or early where no assent is needed; lead: of `s - u` over right ones; saved, saved_turns: on time and no later
than the logged human trigger tau, and `tau - u` of these; early_turns: `tau - u` of right early ones.
"""

Value = tuple[float, float, float]


class Thresholds(BaseModel):
    """Fire a tool where its probability is at least its threshold; `default` for tools not listed; NEVER is
    out of reach. `dialogues`: how many they were chosen on.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: float = NEVER
    tools: dict[str, float] = Field(default_factory=dict)
    budget: float = BUDGET
    dialogues: int = 0

    def admits(self, tool: str, probability: float) -> bool:
        """Does the tool fire?"""
        return probability >= self.tools.get(tool, self.default)

    def replay(self, table: ScoreTable) -> dict[str, dict[int, tuple[Action, ...]]]:
        """Dialogue id -> what is fired there."""
        return {name: replay(rows, self.admits) for name, rows in table.by_dialogue().items()}


def outcome(
    dialogue: Dialogue,
    outputs: Mapping[int, Iterable[Action]],
    assent: frozenset[str] = frozenset(),
    theta: float = THETA,
) -> Array:
    """[len(OUTCOME)] sums of a dialogue. `assent`: tools that need it (`utility.needs_assent`)."""
    sums = dict.fromkeys(OUTCOME, 0.0)
    for turn, fire in first_fires(dialogue, outputs, theta):
        timing, reference = fire.timing, fire.reference
        sums["fires"] += 1
        if timing is None or reference is None or reference.ready is None or timing is Timing.REPEAT:
            sums["false"] += 1
        elif is_false(timing, fire.action.name in assent):
            sums["before_assent"] += 1
        elif timing is Timing.LATE:
            sums["late"] += 1
        else:
            sums["right"] += 1
            sums["on_time"] += timing is Timing.ON_TIME
            sums["lead"] += reference.ready[0] - turn
            if reference.observed_trigger is not None and turn <= reference.observed_trigger:
                won = reference.observed_trigger - turn
                sums["saved"] += timing is Timing.ON_TIME
                sums["saved_turns" if timing is Timing.ON_TIME else "early_turns"] += won
    return np.array([sums[name] for name in OUTCOME])


@dataclass(frozen=True, slots=True)
class Steps:
    """How outcomes change as thresholds fall: event i happens at `threshold[i]`, in dialogue and tool, and
    adds `change[i]` [len(OUTCOME)].

    Events are sorted by falling threshold. The sums of a common threshold t are those of all events with
    threshold >= t.
    """

    threshold: Array
    tool: tuple[str, ...]
    change: Array
    dialogues: int

    def of(self, tool: str) -> Steps:
        """The events of one tool."""
        kept = [i for i, name in enumerate(self.tool) if name == tool]
        return Steps(self.threshold[kept], (tool,) * len(kept), self.change[kept], self.dialogues)

    def levels(self) -> tuple[Array, Array]:
        """(distinct thresholds, falling, NEVER first; [levels, len(OUTCOME)] sums at each)."""
        sums = np.concatenate([np.zeros((1, len(OUTCOME))), np.cumsum(self.change, axis=0)])
        at = np.concatenate([[NEVER], self.threshold])
        last = np.append(at[1:] != at[:-1], True)
        return at[last], sums[last]


def steps(
    table: ScoreTable,
    dialogues: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    theta: float = THETA,
) -> Steps:
    """The events of a table. ValueError names a dialogue that was not scored."""
    rows = table.by_dialogue()
    events: list[tuple[float, str, Array]] = []
    for dialogue in dialogues:
        if dialogue.id not in rows:
            raise ProactorError(f"thresholds: dialogue {dialogue.id!r} was not scored")
        by_tool: dict[str, list[Score]] = {}
        for row in rows[dialogue.id]:
            by_tool.setdefault(row.tool, []).append(row)
        for tool, own in by_tool.items():
            before = np.zeros(len(OUTCOME))
            for level in sorted({row.probability for row in own}, reverse=True):
                after = outcome(dialogue, replay(own, _at_least(level)), assent, theta)
                events.append((level, tool, after - before))
                before = after
    events.sort(key=lambda event: -event[0])
    change = np.array([c for _, _, c in events]).reshape(len(events), len(OUTCOME))
    return Steps(
        np.array([t for t, _, _ in events]), tuple(tool for _, tool, _ in events), change, len(dialogues)
    )


def _at_least(level: float) -> Callable[[str, float], bool]:
    return lambda tool, probability: probability >= level


def wrong(sums: Array) -> Array:
    """[...] wrong fires of sums [..., len(OUTCOME)]: false and before the assent."""
    return sums[..., OUTCOME.index("false")] + sums[..., OUTCOME.index("before_assent")]


def allowed(budget: float, dialogues: int) -> int:
    """Whole wrong fires that a budget in 100 dialogues allows in `dialogues`. ValueError for a negative
    budget.
    """
    if budget < 0:
        raise ProactorError(f"thresholds: a budget of {budget:g} false fires is negative")
    return int(budget * dialogues / 100 + 1e-9)


def _value(sums: Array) -> Value:
    return float(sums[OUTCOME.index("saved_turns")]), float(sums[OUTCOME.index("right")]), -float(wrong(sums))


def choose_common(found: Steps, budget: float = BUDGET) -> float:
    """The best threshold for all tools alike within the budget; NEVER when not even the surest fire fits."""
    at, sums = found.levels()
    room = allowed(budget, found.dialogues)
    fitting = [i for i in range(len(at)) if wrong(sums[i]) <= room]
    return float(at[max(fitting, key=lambda i: (_value(sums[i]), -i))])


def choose(found: Steps, budget: float = BUDGET) -> Thresholds:
    """The best threshold for each tool, together within the budget."""
    room = allowed(budget, found.dialogues)
    tools = sorted(set(found.tool))
    # best[k]: (value, thresholds so far) with at most k wrong fires among the tools seen.
    best: list[tuple[Value, tuple[float, ...]]] = [((0.0, 0.0, 0.0), ())] * (room + 1)
    for tool in tools:
        at, sums = found.of(tool).levels()
        options = _fronts(at, sums, room)
        best = [
            max(
                (
                    (_plus(best[k - spent][0], value), (*best[k - spent][1], level))
                    for spent, value, level in options
                    if spent <= k
                ),
                key=lambda candidate: (candidate[0], candidate[1]),
            )
            for k in range(room + 1)
        ]
    chosen = dict(zip(tools, best[room][1], strict=True))
    return Thresholds(
        default=choose_common(found, budget), tools=chosen, budget=budget, dialogues=found.dialogues
    )


def _fronts(at: Array, sums: Array, room: int) -> list[tuple[int, Value, float]]:
    """(wrong fires, value, threshold): for each number of wrong fires within `room` the best level, the
    highest of equals.
    """
    found: dict[int, tuple[int, Value, float]] = {}
    for level, row in zip(at, sums):
        spent = int(wrong(row))
        if spent <= room and (spent not in found or _value(row) > found[spent][1]):
            found[spent] = spent, _value(row), float(level)
    return list(found.values())


def _plus(a: Value, b: Value) -> Value:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
