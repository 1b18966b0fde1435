"""SAND: which steps are flagged, how their actions are tried, who writes, and what is replaced."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from proactor.config_base import ConfigError
from proactor.engine import ChatFormat, Sample, Sampling, ToolChat
from proactor.environments.demonstration import TOOL, Demonstration, turn_ids
from proactor.environments.host import Host
from proactor.environments.player import PlayConfig, Player
from proactor.environments.protocol import Call, Opening, Outcome
from proactor.environments.scripted import Move, play
from proactor.environments.turn_sampler import KEYS
from proactor.environments.users import UserModel
from proactor.environments.wording import Thinking
from proactor.episode_config import MethodOptions
from proactor.methods.sand import (
    Deliberated,
    ModelCritic,
    RuleCritic,
    build_critic,
    deliberated,
    distinct,
    first_sentences,
    flagged,
)
from proactor.training.method_credit import Credit
from proactor.training.small_model import train_tokenizer
from proactor.training.teaching import open_critic

EXPERT = ("one", "two", "right")


class World:
    """Solved by the word "right"; ``drift``: what it says beside that."""

    user_verbs = frozenset({"answer"})

    def __init__(self, drift: str) -> None:
        self.drift = drift

    def reset(self, seed: int) -> Opening:
        return Opening([{"role": "user", "content": "go"}])

    def step(self, call: Call) -> Outcome:
        solved = call.content == "right"
        return Outcome(f"{self.drift}heard {call.content}", float(solved), solved)


class WorldGym:
    """One task of `World`."""

    name, max_turns = "world", 6

    def __init__(self, drift: str = "") -> None:
        self.drift = drift

    def tasks(self, split: str) -> Sequence[str]:
        return ["a"]

    def make(self, task: str) -> World:
        return World(self.drift)


class Script:
    """Says `EXPERT`."""

    def __init__(self) -> None:
        self.left = iter(EXPERT)

    def move(self) -> Move | None:
        return Move(Call("action", next(self.left)))

    def see(self, call: Call, observation: str) -> None:
        pass


class Policy:
    """A session without a model: at turn t it draws what ``draws`` says of (t, place), and when it plays on,
    "right". ``played``: how often it played on.
    """

    def __init__(self, chat: ToolChat, draws: Callable[[int, int], str]) -> None:
        self.chat, self.draws, self.played = chat, draws, 0

    async def sample(self, ids: list[int], sampling: Sampling, *, key: int, index: int) -> Sample:
        self.played += key < KEYS
        said = reply(self.draws(key // KEYS, index)) if key >= KEYS else reply("right")
        drawn = self.chat.answer(said)
        return Sample(ids, drawn, [0.0] * len(drawn), [0.0] * len(drawn), noise=(0, 0, key, index))


def reply(content: str) -> dict[str, Any]:
    """A call with this content; none for an empty one."""
    arguments = json.dumps({"choice": "action", "content": content})
    call = {"id": "call_0", "type": "function", "function": {"name": TOOL, "arguments": arguments}}
    return {"role": "assistant", "content": "" if content else "hm", "tool_calls": [call] if content else []}


@pytest.fixture(scope="module")
def chat() -> ToolChat:
    return ToolChat(ChatFormat(train_tokenizer([], 259)))


@pytest.fixture
def expert() -> Demonstration:
    thoughts = tuple(f"<think>because of {word}</think>" for word in EXPERT)
    return Demonstration(play(WorldGym(), "a", Script()), World("").reset(0), thoughts, Thinking())


def thought_over(
    chat: ToolChat,
    expert: Demonstration,
    draws: Callable[[int, int], str],
    critic: Any = None,
    drift: str = "",
) -> tuple[Deliberated, int]:
    """What became of the expert's episode, and how many times the policy played on."""
    policy = Policy(chat, draws)

    async def go() -> Deliberated:
        async with Host(WorldGym(drift)) as host:
            player = Player(policy, chat, host, PlayConfig(), 10**5, Thinking())  # type: ignore[arg-type]
            return await deliberated(player, expert, 5, critic or RuleCritic(), 3)

    return asyncio.run(go()), policy.played


def at(number: int, *words: str) -> Callable[[int, int], str]:
    """Draws these words at turn ``number``, and the expert's own at others."""
    return lambda turn, place: words[place] if turn == number else EXPERT[turn - 1]


# --- flags ---


def calls(*words: str) -> list[tuple[Call, ...]]:
    return [(Call("action", word),) for word in words]


def test_a_step_is_flagged_where_not_all_actions_are_one() -> None:
    assert flagged(calls("A", "A", "A", "B", "A", "A")) and distinct(calls("A", "A", "A", "B", "A", "A")) == [
        0,
        3,
    ]
    assert not flagged(calls("A", "A", "A", "A", "A", "A"))
    assert flagged(calls("B", "A", "A", "A", "A", "A"))
    assert not flagged(calls("1  2", " 1 2", "1 2")) and not flagged(calls("Yes", "yes"))
    tools = [(Call("book", arguments=a),) for a in ({"x": 1, "y": 2}, {"y": 2, "x": 1})]
    assert not flagged(tools)
    read = (Call("action", "a", {"choice": "action", "content": "a"}),)
    assert not flagged([*calls("a"), read]), "an expert's call holds no arguments, a drawn one does"


def test_each_distinct_action_is_played_on_once(chat: ToolChat, expert: Demonstration) -> None:
    found, played = thought_over(chat, expert, at(2, "two", "two", "other", "two", "two"))
    assert found.candidates == {2: ["[action] two", "[action] other"]}
    assert found.counts["rollouts"] == 2 == played and found.counts["flagged"] == 1
    assert found.counts["steps"] == 3
    same, played = thought_over(chat, expert, at(2, *["two"] * 5))
    assert not same.thoughts and played == 0 and same.counts["rollouts"] == 0
    away, _ = thought_over(chat, expert, at(1, *["other"] * 5))
    assert away.candidates == {1: ["[action] one", "[action] other"]}


def test_replies_without_an_action_are_no_candidates(chat: ToolChat, expert: Demonstration) -> None:
    found, _ = thought_over(chat, expert, at(1, "", "one", "", "one", "one"))
    assert not found.thoughts and found.counts["unreadable"] == 2


def test_one_flag_replaces_one_thought_and_no_action(chat: ToolChat, expert: Demonstration) -> None:
    found, _ = thought_over(chat, expert, at(2, *["other"] * 5))
    assert list(found.thoughts) == [2]
    revised = found.revise(expert)
    assert [a == b for a, b in zip(revised.said, expert.said, strict=True)] == [True, False, True]
    assert [m.call for m in revised.played.moves] == [m.call for m in expert.played.moves]
    before, after = (d.episode(chat) for d in (expert, revised))
    assert [t.feedback for t in before.turns] == [t.feedback for t in after.turns]
    assert [t.calls for t in before.turns] == [t.calls for t in after.turns]
    old, new = turn_ids(before), turn_ids(after)
    assert (old[0], old[2]) == (new[0], new[2]) and old[1] != new[1]
    said = chat.read(new[1])
    assert said.thinking == found.thoughts[2] and said.calls == chat.read(old[1]).calls


def test_an_expert_that_the_environment_answers_otherwise_is_counted(
    chat: ToolChat, expert: Demonstration
) -> None:
    found, played = thought_over(chat, expert, at(2, *["other"] * 5), drift="now ")
    assert found.refused and found.counts["refused"] == 1 and not found.thoughts and played == 0


# --- critics ---


class Answers(UserModel):
    """Keeps what it is asked."""

    def __init__(self, says: str = " It helps. It is fast! Is it? And more </think>.") -> None:
        super().__init__()
        self.says = says
        self.asked: list[str] = []

    def _answer(self, question: str) -> str:
        self.asked.append(question)
        return self.says

    def _counted(self) -> Mapping[str, int]:
        return {}


def test_a_model_criticises_each_action_by_what_followed_and_then_deliberates(
    chat: ToolChat, expert: Demonstration
) -> None:
    model = Answers()
    found, _ = thought_over(chat, expert, at(2, *["other"] * 5), ModelCritic(model, "endpoint:some"))
    first, second, third = model.asked
    assert "Now it does this: [action] two" in first and "heard one" in first, "the expert's history"
    assert "heard other\n[action] right\nheard right" in second and "Final score: 1" in second
    assert "- [action] two: It helps. It is fast! Is it?\n" in third, "three sentences at most"
    assert "It will do this: [action] two" in third
    assert found.counts["critiques_cut"] == 2
    assert found.revise(expert).said[1] == "<think>It helps. It is fast! Is it? And more .</think>"


def test_a_critic_that_writes_nothing_leaves_the_thought(chat: ToolChat, expert: Demonstration) -> None:
    found, _ = thought_over(chat, expert, at(2, *["other"] * 5), ModelCritic(Answers(""), "endpoint:some"))
    assert (found.counts["flagged"], found.counts["unwritten"], found.thoughts) == (1, 1, {})
    assert found.revise(expert).said == expert.said


def test_the_rule_critic_says_how_each_action_ended(chat: ToolChat, expert: Demonstration) -> None:
    found, _ = thought_over(chat, expert, at(1, *["other"] * 5))
    assert found.thoughts[1] == (
        "[action] one: it solved it (1)\n[action] other: it solved it (1)\nso [action] one"
    )


def test_sentences_end_at_marks_before_space() -> None:
    assert first_sentences("A 1.5 is. B. C! D") == "A 1.5 is. B. C!"
    assert first_sentences("A. B. C.") == "A. B. C." and first_sentences("") == ""


def test_critics_are_named_and_wrong_ones_are_refused() -> None:
    assert build_critic("rule").name == "rule" and build_critic("engine").name == "engine:base"
    assert build_critic({"kind": "engine", "model": "policy"}).name == "engine:policy"
    method = Credit.of(
        MethodOptions(name="sand", options={"critic": {"kind": "engine", "model": "x"}})
    ).method
    with pytest.raises(ConfigError, match=r"method.options.critic: user engine: model 'x' is not one of"):
        open_critic(method)  # type: ignore[arg-type]
