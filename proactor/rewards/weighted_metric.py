"""The metric rewards: single decisions scored against the references alone.

The list of metrics is confirmed [NOTES, methods 1.6], their formulas are [INFERRED]. So are these choices:
- A reference is open when its coverage contains the turn, its window is known and it is not on the board.
  Masked actions count as not proposed.
- A repeat (a fire on what is on the board, or a second fire on one reference in the same turn) is false.
- A reference is due for the last time when no later decision turn lies in its ready window.
- An entry that could not be read is a false action of similarity 0: an unparsable output gets ``-false``, the
  lowest reward there is.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.matching import EXACT, THETA, ClassifiedAction, MatchRule, Timing, classify, exact_rule
from proactor.dialogue.parse import Parsed
from proactor.dialogue.windows import due_at, open_at, ready_at
from proactor.rewards.options import RewardError
from proactor.rewards.turn import TurnReward
from proactor.scoring.metrics import early_weight

if TYPE_CHECKING:  # an import at run time would import torch
    from proactor.engine import Engine


FALSE_FIRES = (Timing.FALSE, Timing.REPEAT)


@dataclass(frozen=True, slots=True)
class WeightedMetric(TurnReward):
    """``consistency * RAC + timing * T_u - false * F_u`` [INFERRED weights 0.5, 0.4, 0.1].

    For n proposed actions: RAC = mean similarity to the nearest open reference,
    ``T_u = (#early + #on_time) / n``, ``F_u = #false / n``. For an empty proposal: RAC = 1 if nothing is
    open, else 0; T_u = 0 if a reference is due for the last time, else 1; F_u = 0.

    The defaults are the methods' formula. Under it an early fire is worth as much as one on time, and waiting
    for an assent costs RAC at every turn: on synthetic dialogues, firing as soon as the values are known
    (0.77) beats perfect timing (0.73). Three options make perfect timing the optimum [INFERRED]:
    ``early``: value of an early fire in T_u; "linear" takes the weight of PT_w;
    ``waiting``: an empty proposal has RAC 0 while a reference is "open", or only while one is "ready";
    ``pending``: value in T_u of a PENDING action whose reference is covered and not ready yet.

    ``values`` "exact" [INFERRED]: a fire of a tool that writes is right only with all its required values
    (`exact_rule`), and a false one has similarity 0. It then earns ``-false``, less than waiting ever does,
    where by similarity half of the values right earn half of the consistency and all of the timing. Which
    tools write, and what they require, is the catalog's; until `bind` has told, all do and all is required.
    """

    consistency: float = 0.5
    timing: float = 0.4
    false: float = 0.1
    early: float | Literal["linear"] = 1.0
    waiting: Literal["open", "ready"] = "open"
    pending: float = 0.0
    theta: float = THETA
    values: Literal["similar", "exact"] = "similar"
    _exact: MatchRule = field(default=EXACT, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.early != "linear" and not isinstance(self.early, int | float):
            raise RewardError(f"reward weighted_metric: early is a number or 'linear', not {self.early!r}")
        if self.waiting not in ("open", "ready"):
            raise RewardError(f"reward weighted_metric: waiting is 'open' or 'ready', not {self.waiting!r}")
        if self.values not in ("similar", "exact"):
            raise RewardError(f"reward weighted_metric: values is 'similar' or 'exact', not {self.values!r}")

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Take from the catalog which tools write, and which values they require."""
        reads = frozenset(t.name for t in catalog.tools if t.effect == "read")
        object.__setattr__(self, "_exact", replace(exact_rule(catalog), tolerant=reads))

    @property
    def rule(self) -> MatchRule:
        """What counts as the reference's action."""
        return replace(self._exact, theta=self.theta) if self.values == "exact" else MatchRule(self.theta)

    def parts(self, dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY) -> dict[str, float]:
        """{"reward", "rac", "max_rac", "timing", "false", "unread"}, all finite."""
        classified = classify(dialogue, turn, parsed.actions, fired=board.fired, rule=self.rule)
        kept = [j for j in classified if not j.masked]
        unread = sum(parsed.unread.values())
        n = len(kept) + unread
        if n == 0:
            wanted = open_at(dialogue, turn) if self.waiting == "open" else ready_at(dialogue, turn)
            rac = max_rac = float(all(r.ready is None or r.id in board.fired for r in wanted))
            in_time, false = float(all(r.id in board.fired for r in due_at(dialogue, turn))), 0.0
        else:
            near = [self._similarity(j) for j in kept]
            rac, max_rac = sum(near) / n, max(near, default=0.0)
            in_time = sum(self._credit(j, turn) for j in kept) / n
            false = (unread + sum(j.timing in FALSE_FIRES for j in kept)) / n
        reward = self.consistency * rac + self.timing * in_time - self.false * false
        return {
            "reward": reward,
            "rac": rac,
            "max_rac": max_rac,
            "timing": in_time,
            "false": false,
            "unread": float(unread),
        }

    def _similarity(self, action: ClassifiedAction) -> float:
        """What one action adds to ``n * RAC``."""
        strict = self.values == "exact" and action.action.name not in self._exact.tolerant
        return 0.0 if strict and action.timing in FALSE_FIRES else action.similarity

    def _credit(self, action: ClassifiedAction, turn: int) -> float:
        """What one action adds to ``n * T_u``."""
        if action.timing is Timing.EARLY and action.reference is not None:
            return early_weight(action.reference, turn) if self.early == "linear" else float(self.early)
        if action.timing is None:
            begun = action.reference is not None and (
                action.reference.ready is None or turn < action.reference.ready[0]
            )
            return self.pending * begun
        return float(action.timing is Timing.ON_TIME)


def timing_range(metric: WeightedMetric) -> tuple[float, float]:
    """The least and the greatest value of T_u."""
    early = 0.0 if metric.early == "linear" else float(metric.early)
    return min(0.0, early, metric.pending), max(1.0, early, metric.pending)


def metric_range(metric: WeightedMetric) -> tuple[float, float]:
    """The least and the greatest value of the weighted metric."""
    timing = timing_range(metric)
    ends = [(0.0, metric.consistency), tuple(metric.timing * t for t in timing), (0.0, -metric.false)]
    return sum(min(e) for e in ends), sum(max(e) for e in ends)


@dataclass(frozen=True, slots=True)
class Consistency(TurnReward):
    """RAC or Max RAC alone [name NOTES, formula INFERRED], for ablations: it trains a timid agent.

    ``waiting``: as in `WeightedMetric`.
    """

    of: Literal["rac", "max_rac"] = "rac"
    theta: float = THETA
    waiting: Literal["open", "ready"] = "open"

    def parts(self, dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY) -> dict[str, float]:
        """The parts of `WeightedMetric`, with "reward" the one that ``of`` names."""
        parts = WeightedMetric(theta=self.theta, waiting=self.waiting).parts(dialogue, turn, parsed, board)
        return parts | {"reward": parts[self.of]}
