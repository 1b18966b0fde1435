"""What an agent's timing is worth to whoever runs it: turns won on one side, wrong, missed and bothersome
acts on the other.

Everything here is [INFERRED]: the methods name the four costs, not how they add up. Over a dialogue that the
agent plays on its own board,

    utility = Σ on-time first fires   benefit_per_turn · (e_j - u)
            - Σ false fires           false_cost
            - Σ missed references     miss_cost
            - Σ interruptions         interrupt_cost

- (e_j - u): turns (of either speaker) between the fire and the end of the ready window. Acting at the last
  good moment is worth 0, so that in logs whose agent acted then, the logged agent's utility is 0.
- False: unmatched, a repeat, or early on a tool that needs assent, which is acting without consent. Any other
  early fire earns nothing and costs nothing.
- Missed: unfired (early fires count as fired) when its last decision point passes. A late fire changes
  nothing. A window without a decision point cannot be missed.
- Interruption: a PENDING announcement of something the user has not begun, or an output that could not be
  read. Announcing what was begun is free.
- Actions of unknown windows, and repeats after an early fire, are masked: worth 0.

The sum over decision points of `turn_utility` is the dialogue's `utility`: it serves as a metric and as a
turn reward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from proactor.dialogue import Action, Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.matching import THETA, Judged, Timing, judge
from proactor.dialogue.parse import Parsed
from proactor.dialogue.windows import due_at
from proactor.engine import ProactorError

PARTS = ("benefit", "false", "missed", "interrupt")
"""What a utility is made of; `benefit` is added, the others are subtracted."""


class ToolCosts(BaseModel):
    """Worth and costs of one tool's acts, in one unit of the user's choice. The defaults are [INFERRED]: a
    wrong act costs ten turns, a missed one too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    benefit_per_turn: float = Field(default=0.1, ge=0)
    false_cost: float = Field(default=1.0, ge=0)
    miss_cost: float = Field(default=1.0, ge=0)
    interrupt_cost: float = Field(default=0.1, ge=0)


class CostError(ProactorError):
    """Costs that name a tool which the catalog does not have."""


class CostTable(BaseModel):
    """Costs by tool; `default` for tools not listed. `assent`: tools that must not fire before the user
    agreed (the catalog's `confirm`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: ToolCosts = ToolCosts()
    tools: dict[str, ToolCosts] = Field(default_factory=dict)
    assent: frozenset[str] = frozenset()

    def of(self, tool: str) -> ToolCosts:
        """Costs of the tool."""
        return self.tools.get(tool, self.default)

    def with_assent(self, catalog: Catalog) -> CostTable:
        """This table with the catalog's tools that need assent. CostError names a tool with costs that the
        catalog does not have.
        """
        for name in self.tools:
            if name not in catalog:
                raise CostError(f"costs: no tool {name!r} in the catalog")
        return self.model_copy(update={"assent": self.assent | needs_assent(catalog)})


Costs = ToolCosts | CostTable


def needs_assent(catalog: Catalog) -> frozenset[str]:
    """Names of the tools that must not fire before the user agreed."""
    return frozenset(t.name for t in catalog.tools if t.confirm)


def cost_table(costs: Costs | None) -> CostTable:
    """Any way to state costs, as a table; None is the default."""
    return costs if isinstance(costs, CostTable) else CostTable(default=costs or ToolCosts())


def judged_parts(
    dialogue: Dialogue,
    turn: int,
    judged: Iterable[Judged],
    fired: Iterable[str],
    unread: bool,
    costs: CostTable,
) -> dict[str, float]:
    """PARTS of one decision, all at least 0. `fired`: ids of the references fired by the end of this turn;
    `unread`: could some of it not be read?
    """
    parts = dict.fromkeys(PARTS, 0.0)
    parts["interrupt"] = costs.default.interrupt_cost * unread
    for j in judged:
        cost = costs.of(j.action.name)
        if j.masked:
            continue
        if j.timing is None:
            parts["interrupt"] += cost.interrupt_cost * (j.reference is None)
        elif j.timing is Timing.ON_TIME and j.reference is not None and j.reference.ready is not None:
            parts["benefit"] += cost.benefit_per_turn * (j.reference.ready[1] - turn)
        elif is_false(j.timing, j.action.name in costs.assent):
            parts["false"] += cost.false_cost
    done = set(fired)
    parts["missed"] = float(
        sum(costs.of(r.name).miss_cost for r in due_at(dialogue, turn) if r.id not in done)
    )
    return parts


def is_false(timing: Timing, assent: bool) -> bool:
    """Should the fire not have been made: unmatched, a repeat, or, on a tool that needs assent, before the
    assent [INFERRED]?
    """
    return timing in (Timing.FALSE, Timing.REPEAT) or (assent and timing is Timing.EARLY)


def total(parts: Mapping[str, float]) -> float:
    """The utility that parts add up to."""
    return parts["benefit"] - parts["false"] - parts["missed"] - parts["interrupt"]


def turn_parts(
    dialogue: Dialogue,
    turn: int,
    parsed: Parsed,
    board: Board = EMPTY,
    costs: Costs | None = None,
    theta: float = THETA,
) -> dict[str, float]:
    """PARTS of the decision after `turn` on `board`."""
    judged = judge(dialogue, turn, parsed.actions, fired=board.fired, theta=theta)
    now = {j.reference.id for j in judged if j.timing is not None and j.reference is not None}
    return judged_parts(dialogue, turn, judged, now | board.fired.keys(), not parsed.ok, cost_table(costs))


def turn_utility(
    dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY, costs: Costs | None = None
) -> float:
    """Utility of one decision: what it wins, less what it costs."""
    return total(turn_parts(dialogue, turn, parsed, board, costs))


def utility(
    dialogue: Dialogue, outputs: Mapping[int, Parsed | Sequence[Action]], costs: Costs | None = None
) -> float:
    """Utility of a dialogue played through on the agent's own board. `outputs`: decision turn -> what was
    read there, absent ones are waits.
    """
    board, found = EMPTY, 0.0
    for turn in sorted({*dialogue.decision_turns, *outputs}):
        output = outputs.get(turn, ())
        parsed = output if isinstance(output, Parsed) else Parsed(tuple(output))
        found += turn_utility(dialogue, turn, parsed, board, costs)
        board = board.after(dialogue, turn, parsed.actions)
    return found
