"""TRL's reward functions score answers here, and rewards here score `GRPOTrainer`'s completions."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer
from trl.rewards import get_cosine_scaled_reward, think_format_reward

from proactor.dialogue.board import BoardShares, draw_board
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.parse import parse
from proactor.neighbours.trl import TrlData, from_trl
from proactor.rewards import RewardError, load_reward, run_reward
from tests.engine.chat_templates import save_chat_model
from tests.proactor.dialogues import worked_example

TOOLS = Catalog(
    tools=tuple(
        Tool(name=name, parameters=tuple(Parameter(name=p) for p in parameters))
        for name, parameters in {"book": ("dest", "date"), "email": ("to",), "refund": ()}.items()
    )
)
DIALOGUE = worked_example()[0]
ANSWERS = ("<think>\nwait\n</think>\n[]", "[]")
CANDIDATES = Candidates(DIALOGUE, 1, ANSWERS, TOOLS)
FIRE = '[{"READY":"book","dest":"SFO","date":"Mon"}]'
ACTED = BoardShares(logged=0.0, acted=1.0)

thinks = from_trl(think_format_reward)


@pytest.mark.parametrize("prompt", ["a text", [{"role": "user", "content": "a message"}]])
def test_a_reward_of_trls_by_its_name_in_a_config(prompt: Any) -> None:
    reward = load_reward(f"{__name__}:thinks")
    scores = run_reward("thinks", reward, CANDIDATES, lambda: [prompt] * 2)
    assert [s["reward"] for s in scores] == [1.0, 0.0]


def test_coroutines_also_from_inside_an_event_loop() -> None:
    async def turns(prompts: list[Any], completions: list[Any], turn: list[int], **_: Any) -> list[float]:
        await asyncio.sleep(0)
        assert [p[0]["role"] for p in prompts] == ["user"] * 2
        return [at + len(c[0]["content"]) for c, at in zip(completions, turn, strict=True)]

    async def inside() -> Any:
        return run_reward("turns", from_trl(turns), CANDIDATES, lambda: ["p"] * 2)

    expected = [{"reward": float(1 + len(answer))} for answer in ANSWERS]
    assert run_reward("turns", from_trl(turns), CANDIDATES, lambda: ["p"] * 2) == expected
    assert asyncio.run(inside()) == expected


def test_none_is_refused_or_the_value_that_stands_for_it() -> None:
    def seldom(completions: list[Any], **_: Any) -> list[float | None]:
        return [None, 2.0]

    assert from_trl(seldom, none=0.5)(["p"] * 2, ["a", "b"]) == [0.5, 2.0]
    with pytest.raises(RewardError, match="'seldom' gave None for completion 0"):
        run_reward("seldom", from_trl(seldom), CANDIDATES, lambda: ["p"] * 2)


def test_a_function_that_needs_what_only_trl_has() -> None:
    with pytest.raises(RewardError, match="needs 'solution'; here there are only prompts, completions"):
        from_trl(get_cosine_scaled_reward(max_len=9))


def test_rewards_get_the_dialogue_and_the_board_of_a_row() -> None:
    """Numbers as `parts` gives them, with boards on which the action may stand already."""
    data = TrlData([DIALOGUE], TOOLS, seed=3, shares=ACTED)
    rows = Dataset.from_list(data.rows)  # texts and numbers only
    boards = [draw_board(DIALOGUE, turn, seed=3, shares=ACTED) for turn in rows["turn"]]
    assert len({bool(board.fired) for board in boards}) == 2
    for completions in ([FIRE] * 4, [[{"role": "assistant", "content": FIRE}]] * 4):
        metric = load_reward("weighted_metric")
        got = data.reward(metric)(
            list(rows["prompt"]),
            completions,
            dialogue=rows["dialogue"],
            turn=rows["turn"],
            trainer_state=None,
        )
        assert got == [
            metric.parts(DIALOGUE, turn, parse(FIRE), board)["reward"]
            for turn, board in zip(rows["turn"], boards, strict=True)
        ]
        assert len(set(got)) == 2  # right before it stands on the board, a repeat after
    for row, board in zip(rows, boards, strict=True):
        assert row["prompt"][-1]["content"] == board.render()
        assert [m["content"] for m in row["prompt"][1:-1]] == [t.text for t in DIALOGUE.turns[: row["turn"]]]


def test_the_catalog_reaches_the_reward() -> None:
    """A tool that reads may fire with half of its values; what is not known to read writes."""
    reads = Catalog(tools=tuple(tool.model_copy(update={"effect": "read"}) for tool in TOOLS.tools))
    half, ask = '[{"READY":"book","dest":"SFO"}]', {"dialogue": [DIALOGUE.id], "turn": [2]}
    boards = BoardShares(logged=0.0, acted=0.0)
    [writing], [reading] = (
        TrlData([DIALOGUE], catalog, shares=boards).reward(
            load_reward("weighted_metric", {"values": "exact"})
        )(["p"], [half], **ask)
        for catalog in (TOOLS, reads)
    )
    assert writing < 0 < reading


def test_what_does_not_run_in_trl_is_refused() -> None:
    data = TrlData([DIALOGUE], TOOLS)
    with pytest.raises(RewardError, match="Mixture: a reward that compares answers does not run in TRL"):
        data.reward(load_reward("adaptive_metric"))
    with pytest.raises(RewardError, match="no decision after turn 9 of dialogue 'd'"):
        data.reward(load_reward("rac"))(["p"], ["[]"], dialogue=["d"], turn=[9])
    with pytest.raises(RewardError, match="two dialogues have one id"):
        TrlData([DIALOGUE, DIALOGUE], TOOLS)


def test_grpo_trainer_trains_on_our_rewards(tmp_path: Path) -> None:
    """One step of the real trainer; its log has the means of what the rewards gave for its own texts."""
    folder = save_chat_model(tmp_path / "model", context=1024)
    seen: list[tuple[str, float]] = []

    def letters(prompts: Any, completions: Any, dialogue: Any, turn: Any, board: Any) -> list[float]:
        seen.extend((text, len(text) + at) for text, at in zip(completions, turn, strict=True))
        assert all(d is DIALOGUE for d in dialogue)
        return [value for _, value in seen[-len(completions) :]]

    data = TrlData([DIALOGUE], TOOLS)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    trainer = GRPOTrainer(
        AutoModelForCausalLM.from_pretrained(folder),
        reward_funcs=[data.reward(letters), data.reward(load_reward("rac"))],
        train_dataset=Dataset.from_list(data.rows),
        processing_class=tokenizer,
        args=GRPOConfig(
            output_dir=str(tmp_path / "out"),
            per_device_train_batch_size=4,
            num_generations=2,
            max_completion_length=6,
            max_steps=1,
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
    )
    trainer.train()
    [log] = [row for row in trainer.state.log_history if "rewards/letters/mean" in row]
    assert len(seen) == 4 and log["rewards/letters/mean"] == pytest.approx(sum(v for _, v in seen) / 4)
    assert "rewards/Consistency/mean" in log
