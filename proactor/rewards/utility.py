"""The utility of single decisions (`proactor.scoring.utility`) as a reward [INFERRED]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from proactor.dialogue import Dialogue
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.parse import Parsed
from proactor.rewards.options import RewardError, read_options
from proactor.rewards.turn import TurnReward
from proactor.scoring.utility import CostError, CostTable, ToolCosts, total, turn_parts

if TYPE_CHECKING:  # an import at run time would import torch
    from proactor.engine import Engine


class UtilityOptions(ToolCosts):
    """Costs of every tool; ``tools`` has those of single ones by name."""

    tools: dict[str, ToolCosts] = Field(default_factory=dict)


class Utility(TurnReward):
    """The utility of a decision, in the units of its costs. It has no range: a mixture must declare one."""

    def __init__(self, **options: Any) -> None:
        read = read_options(UtilityOptions, options, "reward 'utility'")
        self.costs = CostTable(default=ToolCosts(**read.model_dump(exclude={"tools"})), tools=read.tools)

    def bind(self, engine: Engine, catalog: Catalog) -> None:
        """Take from the catalog which tools need assent. Raises RewardError for costs of an unknown tool."""
        try:
            self.costs = self.costs.with_assent(catalog)
        except CostError as error:
            raise RewardError(f"reward 'utility': {error}") from None

    def parts(self, dialogue: Dialogue, turn: int, parsed: Parsed, board: Board = EMPTY) -> dict[str, float]:
        """{"reward", "utility/benefit", "utility/false", "utility/missed", "utility/interrupt"}.

        The last three are subtracted.
        """
        costs = turn_parts(dialogue, turn, parsed, board, self.costs)
        return {"reward": total(costs)} | {f"utility/{name}": value for name, value in costs.items()}
