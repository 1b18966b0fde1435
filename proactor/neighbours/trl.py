"""Reward functions of TRL (1.16) here, and the rewards here in TRL's `GRPOTrainer`. TRL is not imported.

    # rewards.py; in a config: `reward: rewards:thinks`
    from trl.rewards import think_format_reward
    thinks = from_trl(think_format_reward)

    data = TrlData(dialogues, catalog)
    timing = data.reward(load_reward("weighted_metric"))
    GRPOTrainer(model, reward_funcs=timing, train_dataset=Dataset.from_list(data.rows)).train()

A function of the user's own takes ``(prompts, completions, **columns)`` in both. What differs: TRL's own
functions read completions as lists of one message, and may be coroutines or say None; a data set of TRL's
holds texts and numbers, where a reward here wants a dialogue and a board.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from proactor.dialogue import Dialogue
from proactor.dialogue.board import Board, BoardShares, draw_board
from proactor.dialogue.catalog import Catalog
from proactor.dialogue.prompt import PromptStyle, messages
from proactor.rewards import GroupReward, RewardError, RewardFunction, TurnReward, completion_text
from proactor.rewards.turn import Content

GIVEN = ("prompts", "completions", "dialogue", "turn", "board")
"""What a function gets here, by name; the last three are columns."""


def from_trl(function: Callable[..., Any], none: float | None = None) -> RewardFunction:
    """A reward function of TRL's, plain or a coroutine, as one of ours: prompts and completions as messages.

    A prompt that is a text becomes a message of the user. ``none``: the reward of an answer to which the
    function does not apply (it says None; in TRL's sum that is 0); by default such an answer is refused.
    Raises RewardError for a function that cannot do without what TRL's trainer alone gives.
    """
    name = _name(function)
    for parameter in inspect.signature(function).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if named and parameter.default is parameter.empty and parameter.name not in GIVEN:
            raise RewardError(
                f"reward {name!r}: needs {parameter.name!r}; here there are only {', '.join(GIVEN)}"
            )

    def reward(prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[Any]:
        values = function(
            prompts=[_messages(prompt, "user") for prompt in prompts],
            completions=[_messages(completion, "assistant") for completion in completions],
            **columns,
        )
        if inspect.isawaitable(values):
            values = _result(values)
        return [none if value is None else value for value in values]

    reward.__name__ = name
    return reward


class TrlData:
    """Every decision of some dialogues as a data set of TRL's, and rewards that know them again.

    ``rows``: ``prompt`` (messages), ``dialogue`` (its id) and ``turn``; for ``datasets.Dataset.from_list``.
    Boards are drawn once by ``shares`` and ``seed``, as in the first epoch of a run of ours. The prompt ends
    in two messages of the user (the turn, the board): a chat template that refuses that refuses these rows.
    Raises RewardError for two dialogues of one id.
    """

    def __init__(
        self,
        dialogues: Sequence[Dialogue],
        catalog: Catalog,
        style: PromptStyle | None = None,
        *,
        seed: int = 0,
        shares: BoardShares | None = None,
    ) -> None:
        self.rows: list[dict[str, Any]] = []
        self._boards: dict[tuple[str, int], Board] = {}
        self._catalog = catalog
        self._dialogues = {dialogue.id: dialogue for dialogue in dialogues}
        if len(self._dialogues) < len(dialogues):
            raise RewardError("two dialogues have one id: a reward could not tell them apart")
        for dialogue in dialogues:
            for turn in dialogue.decision_turns:
                board = draw_board(dialogue, turn, seed=seed, shares=shares)
                self._boards[dialogue.id, turn] = board
                prompt = messages(dialogue, turn, board, catalog, style)
                self.rows.append({"prompt": prompt, "dialogue": dialogue.id, "turn": turn})

    def reward(self, reward: RewardFunction | TurnReward) -> RewardFunction:
        """A reward of ours (built in, or a function) as one of ``GRPOTrainer``'s ``reward_funcs``.

        It knows these rows alone. What TRL passes beside their columns is not handed on. Raises RewardError
        for a reward that compares the answers of a group (a judge, a mixture), and in a call for another row.
        """
        if isinstance(reward, GroupReward):
            raise RewardError(f"{type(reward).__name__}: a reward that compares answers does not run in TRL")
        if isinstance(reward, TurnReward):
            reward.bind(None, self._catalog)  # type: ignore[arg-type] # the engine is for judges

        def scores(
            prompts: Sequence[Content],
            completions: Sequence[Content],
            dialogue: Sequence[str],
            turn: Sequence[int],
            **columns: Any,
        ) -> Sequence[float]:
            places = list(zip(dialogue, turn, strict=True))
            for name, at in places:
                if (name, at) not in self._boards:
                    raise RewardError(f"the data has no decision after turn {at} of dialogue {name!r}")
            return reward(
                prompts,
                [completion_text(completion) for completion in completions],
                dialogue=[self._dialogues[name] for name in dialogue],
                turn=list(turn),
                board=[self._boards[place] for place in places],
            )

        scores.__name__ = _name(reward)
        return scores


def _name(function: object) -> str:
    return str(getattr(function, "__name__", type(function).__name__))


def _messages(content: Content, role: str) -> list[Mapping[str, str]]:
    return [{"role": role, "content": content}] if isinstance(content, str) else list(content)


def _result(awaitable: Any) -> Any:
    """What a coroutine returns, from code that may itself run in an event loop."""

    async def wait() -> Any:
        return await awaitable

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, wait()).result()
