"""The utility of single decisions as a reward: what tools win and cost by `proactor.scoring.utility`
[INFERRED].
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.parse import Parsed
from proactor.rewards.options import RewardError, read
from proactor.rewards.turn import batch_parts
from proactor.scoring.utility import CostError, CostTable, ToolCosts, total, turn_parts

if TYPE_CHECKING:
    from proactor.engine import Engine


class UtilityOptions(ToolCosts):
    """Costs of every tool, and those of single ones by name."""

    tools: dict[str, ToolCosts] = Field(default_factory=dict)


class Utility:
    """A `TurnReward` in the units of the costs: it has no range of its own, so in a mixture it needs one
    declared.
    """

    def __init__(self, **options: Any) -> None:
        found = read(UtilityOptions, options, "reward 'utility'")
        self.costs = CostTable(default=ToolCosts(**found.model_dump(exclude={"tools"})), tools=found.tools)

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Learn which tools need assent. RewardError for costs of a tool that is not there."""
        try:
            self.costs = self.costs.with_assent(catalog)
        except CostError as error:
            raise RewardError(f"reward 'utility': {error}") from None

    def parts(self, dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY) -> dict[str, float]:
        """{"reward", "utility/benefit", "utility/false", "utility/missed", "utility/interrupt"}; the last
        three are subtracted.
        """
        found = turn_parts(dialogue, turn, parsed, board, self.costs)
        return {"reward": total(found)} | {f"utility/{name}": value for name, value in found.items()}

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        return [p["reward"] for p in batch_parts(self, completions, columns)]
