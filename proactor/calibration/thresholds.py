"""Thresholds on the tools' probabilities, chosen on development data within a budget of wrong fires.

Pure functions on score tables. All choices are [INFERRED]:

- What counts as a match is a `MatchRule`, by default exact: all required values right.
- A first fire is *wrong* when it is unmatched, a repeat, or before the assent that its tool needs. Late fires
  are counted apart. The budget limits wrong fires in 100 dialogues. It is rounded down to whole fires on the
  data chosen on: at 1 in 100, 64 dialogues allow none.
- Within the budget, the choice maximises turns saved against the logged human trigger. Ties go to more right
  fires, then fewer wrong ones, then the higher threshold.
- Tools are independent: matching compares names first, and a replay remembers tool and values. So a knapsack
  over wrong fires finds the best thresholds of all tools together, exactly.
- A tool that does not occur in the data takes the best common threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from proactor.calibration.score_table import ScoreTable, ToolScore, replay
from proactor.dialogue import Action, Dialogue
from proactor.dialogue.matching import EXACT, MatchRule, Timing, first_fires
from proactor.dialogue.windows import turns_won
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
"""Sums over a policy's first fires in a dialogue: at turn u, of a window that opens at s; tau: the human's.

false: unmatched and repeats; right: on time, or early where no assent is needed; lead: `s - u` of right ones;
saved, saved_turns: those on time and no later than tau, and `tau - u` of these; early_turns: `tau - u` of
right early ones.
"""

Value = tuple[float, float, float]
"""What a choice is compared by: turns saved, right fires, minus wrong fires."""


class Thresholds(BaseModel):
    """Fire a tool where its probability is at least its threshold; ``default`` for tools not listed.

    ``budget``: wrong fires allowed in 100 dialogues; ``dialogues``: how many the thresholds were chosen on;
    ``adapter``, ``adapter_digest``: for which adapter (`training.adapters`), "" in files of older versions.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: float = NEVER
    tools: dict[str, float] = Field(default_factory=dict)
    budget: float = BUDGET
    dialogues: int = 0
    adapter: str = ""
    adapter_digest: str = ""

    def of(self, tool: str) -> float:
        """The threshold of a tool."""
        return self.tools.get(tool, self.default)

    def admits(self, tool: str, probability: float) -> bool:
        """Whether the tool fires."""
        return probability >= self.of(tool)

    def replay(self, table: ScoreTable) -> dict[str, dict[int, tuple[Action, ...]]]:
        """Dialogue id -> its fires, by turn."""
        return {name: replay(rows, self.admits) for name, rows in table.by_dialogue().items()}


def outcome(
    dialogue: Dialogue,
    outputs: Mapping[int, Iterable[Action]],
    assent: frozenset[str] = frozenset(),
    rule: MatchRule = EXACT,
) -> Array:
    """[len(OUTCOME)] sums of a dialogue. ``assent``: tools that need assent (`utility.needs_assent`)."""
    sums = dict.fromkeys(OUTCOME, 0.0)
    for turn, fire in first_fires(dialogue, outputs, rule):
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
            if (won := turns_won(dialogue, reference, turn)) is not None:
                sums["saved"] += timing is Timing.ON_TIME
                sums["saved_turns" if timing is Timing.ON_TIME else "early_turns"] += won
    return np.array([sums[name] for name in OUTCOME])


@dataclass(frozen=True, slots=True)
class Steps:
    """How outcomes change as thresholds fall: event i adds ``change[i]`` at ``threshold[i]`` of ``tool[i]``.

    ``change``: [events, len(OUTCOME)]. Events are sorted by falling threshold. The outcome of a common
    threshold t is the sum of all events with threshold >= t.
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
        """(distinct thresholds [levels], falling, NEVER first; sums at each [levels, len(OUTCOME)])."""
        sums = np.concatenate([np.zeros((1, len(OUTCOME))), np.cumsum(self.change, axis=0)])
        thresholds = np.concatenate([[NEVER], self.threshold])
        last_of_level = np.append(thresholds[1:] != thresholds[:-1], True)
        return thresholds[last_of_level], sums[last_of_level]


def steps(
    table: ScoreTable,
    dialogues: Sequence[Dialogue],
    assent: frozenset[str] = frozenset(),
    rule: MatchRule = EXACT,
) -> Steps:
    """The events of a table. Raises ProactorError for a dialogue that was not scored."""
    rows = table.by_dialogue()
    events: list[tuple[float, str, Array]] = []
    for dialogue in dialogues:
        if dialogue.id not in rows:
            raise ProactorError(f"thresholds: dialogue {dialogue.id!r} was not scored")
        by_tool: dict[str, list[ToolScore]] = {}
        for row in rows[dialogue.id]:
            by_tool.setdefault(row.tool, []).append(row)
        for tool, tool_rows in by_tool.items():
            before = np.zeros(len(OUTCOME))
            for level in sorted({row.probability for row in tool_rows}, reverse=True):
                after = outcome(dialogue, replay(tool_rows, _at_least(level)), assent, rule)
                events.append((level, tool, after - before))
                before = after
    events.sort(key=lambda event: -event[0])
    change = np.array([c for _, _, c in events]).reshape(len(events), len(OUTCOME))
    return Steps(
        np.array([t for t, _, _ in events]), tuple(tool for _, tool, _ in events), change, len(dialogues)
    )


def _at_least(level: float) -> Callable[[str, float], bool]:
    return lambda tool, probability: probability >= level


def wrong_fires(sums: Array) -> Array:
    """Wrong fires [...] of sums [..., len(OUTCOME)]: false, or before the assent."""
    return sums[..., OUTCOME.index("false")] + sums[..., OUTCOME.index("before_assent")]


def wrong_fire_limit(budget: float, dialogues: int) -> int:
    """Whole wrong fires that a budget per 100 allows in ``dialogues``. Raises ProactorError if negative."""
    if budget < 0:
        raise ProactorError(f"thresholds: a budget of {budget:g} false fires is negative")
    return int(budget * dialogues / 100 + 1e-9)


def _value(sums: Array) -> Value:
    return (
        float(sums[OUTCOME.index("saved_turns")]),
        float(sums[OUTCOME.index("right")]),
        -float(wrong_fires(sums)),
    )


def choose_common(events: Steps, budget: float = BUDGET) -> float:
    """The best common threshold within the budget; NEVER when not even the surest fire fits."""
    levels, sums = events.levels()
    room = wrong_fire_limit(budget, events.dialogues)
    fitting = [i for i in range(len(levels)) if wrong_fires(sums[i]) <= room]
    return float(levels[max(fitting, key=lambda i: (_value(sums[i]), -i))])


def choose(events: Steps, budget: float = BUDGET) -> Thresholds:
    """The best threshold of each tool, all tools together within the budget."""
    room = wrong_fire_limit(budget, events.dialogues)
    tools = sorted(set(events.tool))
    # best[k]: (value, thresholds of the tools so far) with at most k wrong fires.
    best: list[tuple[Value, tuple[float, ...]]] = [((0.0, 0.0, 0.0), ())] * (room + 1)
    for tool in tools:
        options = _best_by_wrong(*events.of(tool).levels(), room)
        best = [
            max(
                (_plus(best[k - spent][0], value), (*best[k - spent][1], level))
                for spent, value, level in options
                if spent <= k
            )
            for k in range(room + 1)
        ]
    return Thresholds(
        default=choose_common(events, budget),
        tools=dict(zip(tools, best[room][1], strict=True)),
        budget=budget,
        dialogues=events.dialogues,
    )


def _best_by_wrong(levels: Array, sums: Array, room: int) -> list[tuple[int, Value, float]]:
    """(wrong fires, value, threshold): the best level for each number of wrong fires within ``room``.

    Ties go to the highest threshold.
    """
    best: dict[int, tuple[int, Value, float]] = {}
    for level, row in zip(levels, sums):
        spent = int(wrong_fires(row))
        if spent <= room and (spent not in best or _value(row) > best[spent][1]):
            best[spent] = spent, _value(row), float(level)
    return list(best.values())


def _plus(a: Value, b: Value) -> Value:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]
