"""Utility of an agent's timing: turns won, less the costs of wrong, missed and bothersome acts.

All of it is [INFERRED]: the methods name the four costs, not how they add up. Over a dialogue that the agent
plays on its own board,

    utility = Σ on-time first fires   benefit_per_turn · (e_j - u)
            - Σ false fires           false_cost
            - Σ missed references     miss_cost
            - Σ interruptions         interrupt_cost

- (e_j - u): turns (of either speaker) between the fire and the end of the ready window. Acting at the last
  good moment is worth 0, so in logs whose agent acted then, the logged agent's utility is 0.
- False: unmatched, a repeat, or early on a tool that needs assent (acting without consent). Any other early
  fire earns and costs nothing.
- Missed: unfired (early fires count as fired) when its last decision point passes. A late fire changes
  nothing. A window without a decision point cannot be missed.
- Interruption: a PENDING announcement of something that the user has not begun, or an unreadable output.
  Announcing what was begun is free.
- Actions of unknown windows, and repeats after an early fire, are masked: worth 0.

The sum over decision points of `turn_utility` is the dialogue's `utility`: both a metric and a turn reward.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from proactor.dialogue import Action, Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.matching import THETA, ClassifiedAction, MatchRule, Timing, classify
from proactor.dialogue.parse import Parsed
from proactor.dialogue.windows import due_at
from proactor.engine import ProactorError

PARTS = ("benefit", "false", "missed", "interrupt")
"""Parts of a utility; `benefit` is added, the others are subtracted."""


class ToolCosts(BaseModel):
    """Benefit and costs of one tool's acts, in one unit of the user's choice. Defaults [INFERRED]: a wrong or
    a missed act costs as much as ten turns win.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    benefit_per_turn: float = Field(default=0.1, ge=0)
    false_cost: float = Field(default=1.0, ge=0)
    miss_cost: float = Field(default=1.0, ge=0)
    interrupt_cost: float = Field(default=0.1, ge=0)


class CostError(ProactorError):
    """Costs that name a tool outside the catalog."""


class CostTable(BaseModel):
    """Costs by tool, ``default`` for tools not listed. ``assent``: tools that must not fire before the user
    agrees (the catalog's `confirm`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    default: ToolCosts = ToolCosts()
    tools: dict[str, ToolCosts] = Field(default_factory=dict)
    assent: frozenset[str] = frozenset()

    def of(self, tool: str) -> ToolCosts:
        """Costs of a tool."""
        return self.tools.get(tool, self.default)

    def with_assent(self, catalog: Catalog) -> CostTable:
        """This table with the catalog's tools that need assent. Raises CostError for an unknown tool."""
        for name in self.tools:
            if name not in catalog:
                raise CostError(f"costs: no tool {name!r} in the catalog")
        return self.model_copy(update={"assent": self.assent | needs_assent(catalog)})


Costs = ToolCosts | CostTable


def needs_assent(catalog: Catalog) -> frozenset[str]:
    """Names of the tools that must not fire before the user agrees."""
    return frozenset(t.name for t in catalog.tools if t.confirm)


def cost_table(costs: Costs | None) -> CostTable:
    """Costs in any form as a table; None: the defaults."""
    return costs if isinstance(costs, CostTable) else CostTable(default=costs or ToolCosts())


def utility_parts(
    dialogue: Dialogue,
    turn: int,
    classified: Iterable[ClassifiedAction],
    fired: Iterable[str],
    unread: bool,
    costs: CostTable,
) -> dict[str, float]:
    """PARTS of one decision, all at least 0. ``fired``: ids of the references fired by the end of this turn.
    ``unread``: part of the output could not be read.
    """
    parts = dict.fromkeys(PARTS, 0.0)
    parts["interrupt"] = costs.default.interrupt_cost * unread
    for j in classified:
        cost = costs.of(j.action.name)
        if j.masked:
            continue
        if j.timing is None:
            parts["interrupt"] += cost.interrupt_cost * (j.reference is None)
        elif j.timing is Timing.ON_TIME and j.reference is not None and j.reference.ready is not None:
            parts["benefit"] += cost.benefit_per_turn * (j.reference.ready[1] - turn)
        elif is_false(j.timing, j.action.name in costs.assent):
            parts["false"] += cost.false_cost
    ids = set(fired)
    missed = [costs.of(r.name).miss_cost for r in due_at(dialogue, turn) if r.id not in ids]
    parts["missed"] = float(sum(missed))
    return parts


def is_false(timing: Timing, assent: bool) -> bool:
    """Whether the fire was wrong: unmatched, a repeat, or before an assent that its tool needs [INFERRED]."""
    return timing in (Timing.FALSE, Timing.REPEAT) or (assent and timing is Timing.EARLY)


def total(parts: Mapping[str, float]) -> float:
    """The utility that ``parts`` add up to."""
    return parts["benefit"] - parts["false"] - parts["missed"] - parts["interrupt"]


def turn_parts(
    dialogue: Dialogue,
    turn: int,
    parsed: Parsed,
    board: Board = EMPTY,
    costs: Costs | None = None,
    theta: float = THETA,
) -> dict[str, float]:
    """PARTS of the decision after ``turn`` on ``board``."""
    classified = classify(dialogue, turn, parsed.actions, fired=board.fired, rule=MatchRule(theta))
    now = {j.reference.id for j in classified if j.timing is not None and j.reference is not None}
    return utility_parts(
        dialogue, turn, classified, now | board.fired.keys(), not parsed.ok, cost_table(costs)
    )


def turn_utility(
    dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY, costs: Costs | None = None
) -> float:
    """Utility of one decision: its benefit less its costs."""
    return total(turn_parts(dialogue, turn, parsed, board, costs))


def utility(
    dialogue: Dialogue, outputs: Mapping[int, Parsed | Sequence[Action]], costs: Costs | None = None
) -> float:
    """Utility of a dialogue played through on the agent's own board. ``outputs``: decision turn -> output; a
    turn without one is a wait.
    """
    board, result = EMPTY, 0.0
    for turn in sorted({*dialogue.decision_turns, *outputs}):
        output = outputs.get(turn, ())
        parsed = output if isinstance(output, Parsed) else Parsed(tuple(output))
        result += turn_utility(dialogue, turn, parsed, board, costs)
        board = board.after(dialogue, turn, parsed.actions)
    return result
