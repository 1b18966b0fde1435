"""Episodes on an engine: spans, endings, and tokens that are drawn once and never encoded again."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import Engine, Sampling, ToolChat
from proactor.environments.calls import INTERACT
from proactor.environments.episode import Episode
from proactor.environments.host import Host, HostConfig
from proactor.environments.player import PlayConfig, Player
from proactor.environments.protocol import Call, Opening, Outcome
from tests.engine.chat_templates import save_chat_model
from tests.engine.engines import load
from tests.engine.sessions import run
from tests.proactor.environments.worlds import Counting, Gym


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_chat_model(tmp_path_factory.mktemp("chat") / "model", context=2048)


@pytest.fixture(scope="module")
def engine(folder: Path) -> Engine:
    return load(folder, kv_tokens=8192)


def call(choice: str, content: str) -> str:
    arguments = {"choice": choice, "content": content}
    written = json.dumps({"name": INTERACT["function"]["name"], "arguments": arguments})
    return f"<tool_call>\n{written}\n</tool_call>"


def saying(engine: Engine, *replies: str, **changes: Any) -> Sampling:
    """Settings under which the model says these replies, turn after turn, and the last one again."""
    assert engine.chat is not None
    size = engine.config.vocab_size
    ids = [engine.chat.encode_answer(reply) for reply in replies]
    turns = iter([*ids, *itertools.repeat(ids[-1], 99)])
    said: list[list[int]] = []

    def only(_: list[int], position: int) -> torch.Tensor:
        if position == 0:
            said.append(next(turns))
        return torch.arange(size) == said[-1][position]

    return Sampling(**{"max_tokens": 200, "logit_mask": only, **changes})


def play(
    engine: Engine,
    task: str,
    sampling: Sampling,
    gym: Any = None,
    n: int = 1,
    host: HostConfig | None = None,
    **config: Any,
) -> tuple[list[Episode], Player]:
    async def played() -> tuple[list[Episode], Player]:
        assert engine.chat is not None
        async with engine.session() as session, Host(gym or Gym(), host) as hosting:
            player = Player(
                session,
                ToolChat(engine.chat),
                hosting,
                PlayConfig(sampling=sampling, **config),
                engine.config.context_length,
            )
            return await player.group(task, 3, n, key=7), player

    return run(played())


def test_an_episode_has_its_turns_with_spans_rewards_and_the_sampled_ids(engine: Engine) -> None:
    replies = [call("action", "1 2"), call("search", "x"), call("answer", "3")]
    [episode], player = play(engine, "fine", saying(engine, *replies))
    assert engine.chat is not None
    assert [turn.verb for turn in episode.turns] == ["action", "search", "answer"]
    assert episode.rewards == [0.1, 0.2, 0.3] and episode.ending == "terminated"
    assert [turn.user_involved for turn in episode.turns] == [False, False, True]
    assert episode.user_actions == 1 and (episode.gym, episode.task, episode.seed) == ("bad", "fine", 3)
    assert [turn.action for turn in episode.turns] == episode.sample.turns()
    for turn, reply in zip(episode.turns, replies, strict=True):
        assert episode.sample.token_ids[slice(*turn.action)] == engine.chat.encode_answer(reply)
        arguments = json.loads(reply.split("\n")[1])["arguments"]
        assert turn.calls == (Call(arguments["choice"], arguments["content"], arguments),)
    for turn, after in itertools.pairwise(episode.turns):
        assert turn.observation == (turn.action[1], after.action[0])
        shown = engine.chat.tokenizer.decode(episode.sample.token_ids[slice(*turn.observation)])
        assert turn.feedback in shown
    last = episode.turns[-1]
    assert last.observation == (last.action[1], last.action[1])
    assert last.action[1] == len(episode.sample.token_ids)
    assert player.counters == {"terminated": 1}


def test_an_episode_keeps_the_last_that_its_environment_told_of_it(engine: Engine) -> None:
    replies = [call("action", "1"), call("action", "2"), "I give up."]
    [episode], _ = play(engine, "scored", saying(engine, *replies))
    assert episode.ending == "no_call" and len(episode.turns) == 3
    assert episode.info == {"score": 0.7, "solved": True} and episode.score == 0.7 and episode.solves()


def test_recorded_logprobs_are_those_of_a_rescoring(engine: Engine) -> None:
    [episode], _ = play(engine, "fine", saying(engine, call("action", "a"), call("answer", "b")))
    sample = episode.sample
    [scored] = engine.logprobs([sample.prompt_ids + sample.token_ids])
    of_sample = scored[-len(sample.token_ids) :].tolist()
    for turn in episode.turns:
        assert episode.logprobs(turn) == pytest.approx(of_sample[slice(*turn.action)], abs=1e-5)
        assert episode.versions(turn) == [engine.policy_version] * (turn.action[1] - turn.action[0])


@pytest.mark.parametrize(
    ("task", "reply", "config", "ending", "turns"),
    [
        ("fine", "no call at all", {}, "no_call", 1),
        ("raises", call("action", "x"), {}, "error", 2),
        ("reset", call("action", "x"), {}, "error", 0),
        ("absent", call("action", "x"), {}, "error", 0),
        ("long", call("action", "x"), {}, "turns", 5),
        ("long", call("action", "x"), {"max_tokens": 150}, "tokens", 1),
        ("long", call("action", "x" * 100), {"max_tokens": 60}, "tokens", 1),
    ],
)
def test_endings(
    engine: Engine, task: str, reply: str, config: dict[str, Any], ending: str, turns: int
) -> None:
    [episode], player = play(engine, task, saying(engine, reply), **config)
    assert (episode.ending, len(episode.turns)) == (ending, turns)
    assert bool(episode.error) == (ending == "error") and player.counters == {ending: 1}
    assert len(episode.sample.token_ids) <= config.get("max_tokens", 9999)


def test_the_context_ends_an_episode(engine: Engine) -> None:
    class Wordy(Counting):
        def step(self, call: Call) -> Outcome:
            return Outcome("many words " * 60)

    class Words(Gym):
        max_turns = 99

        def make(self, task: str) -> Any:
            return Wordy()

    [episode], _ = play(engine, "fine", saying(engine, call("action", "x")), Words(), max_tokens=99999)
    assert episode.ending == "context" and len(episode.turns) > 1
    assert len(episode.sample.prompt_ids + episode.sample.token_ids) < engine.config.context_length


def test_an_opening_too_long_for_the_context_is_an_episode_without_turns(engine: Engine) -> None:
    class Epic(Counting):
        def reset(self, seed: int) -> Opening:
            return Opening([{"role": "user", "content": "word " * 3000}])

    class Epics(Gym):
        def make(self, task: str) -> Any:
            return Epic()

    [episode], _ = play(engine, "fine", saying(engine, "x"), Epics())
    assert episode.ending == "context" and not episode.turns and not episode.sample.token_ids


def test_latency_and_company_change_no_token(folder: Path) -> None:
    """Names decide the noise, however long an environment takes and whoever else plays."""
    engine = load(folder, kv_tokens=8192, deterministic=True)

    def drawn(delays: Callable[[int], float], workers: int, n: int) -> list[list[int]]:
        class Slow(Counting):
            async def step_async(self, call: Call) -> Outcome:
                await asyncio.sleep(delays(self.count))
                return self.step(call)

        class Slowly(Gym):
            def make(self, task: str) -> Any:
                return Slow()

        def verb(ids: Sequence[int], position: int) -> torch.Tensor | None:
            if position < len(start):
                return torch.arange(engine.config.vocab_size) == start[position]
            if position < len(start) + 6:
                return letters
            at = position - len(start) - 6
            return torch.arange(engine.config.vocab_size) == end[min(at, len(end) - 1)]

        assert engine.chat is not None
        whole = engine.chat.encode_answer(call("action", "@"))
        split = next(i for i, t in enumerate(whole) if "@" in engine.chat.tokenizer.decode([t]))
        start, end = whole[:split], whole[split + 1 :]
        letters = torch.zeros(engine.config.vocab_size, dtype=torch.bool)
        letters[engine.chat.tokenizer("a b c d e f")["input_ids"]] = True
        sampling = Sampling(max_tokens=200, logit_mask=verb)
        episodes, _ = play(engine, "fine", sampling, Slowly(), n, HostConfig(in_flight=workers))
        assert all(len(episode.turns) == 3 for episode in episodes)
        return [episode.sample.token_ids for episode in episodes]

    calm = drawn(lambda count: 0.0, 8, 2)
    busy = drawn(lambda count: 0.03 * (count % 2), 2, 3)
    assert busy[:2] == calm and len({tuple(ids) for ids in calm}) > 1
