"""ART's trajectories in and out, with OpenAI's own choices; ART itself: `tests/neighbours/test_art.py`."""

from __future__ import annotations

import asyncio
import copy
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from openai.types.chat.chat_completion import Choice

from proactor.engine import GRPO, Engine, Group, Sample, Sampling, ToolChat
from proactor.neighbours.art import ArtError, ArtGroups
from tests.engine.chat_templates import save_chat_model
from tests.engine.engines import load
from tests.engine.test_tool_chat import RESULT, WEATHER, call

ASK = [{"role": "user", "content": "Is Friday dry?"}]
NEXT = [{"role": "user", "content": "And Monday?"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = save_chat_model(tmp_path_factory.mktemp("art") / "model", context=1024)
    engine = load(folder, deterministic=True, kv_tokens=4096)
    yield engine
    engine.release()


@pytest.fixture
def art(engine: Engine) -> ArtGroups:
    assert engine.chat is not None
    return ArtGroups(ToolChat(engine.chat))


async def play(engine: Engine, chat: ToolChat, turns: int) -> Sample:
    """A conversation of some turns, drawn in a session."""
    async with engine.session() as session:
        sampling = Sampling(max_tokens=6, stop_ids=tuple(engine.eos_ids))
        sample = await session.sample(chat.opening(ASK), sampling)
        for _ in range(turns - 1):
            observed = chat.observation(sample.token_ids, NEXT)
            await session.advance(sample, observed, sampling)
    return sample


@pytest.fixture(scope="module")
def group(engine: Engine) -> Group:
    """Two conversations, of three turns and of one."""
    assert engine.chat is not None
    chat = ToolChat(engine.chat)
    samples = [asyncio.run(play(engine, chat, turns)) for turns in (3, 1)]
    for reward, sample in enumerate(samples):
        sample.reward = float(reward)
        sample.info["between_turns"] = [NEXT] * (len(sample.turns()) - 1)
    return Group(samples[0].prompt_ids, samples)


def told(group: Group) -> list[Any]:
    return [
        (s.prompt_ids, s.token_ids, s.trained_mask(), s.policy_logprobs, s.reward, s.finish_reason)
        for s in group.samples
    ]


@pytest.mark.parametrize("dumped", [False, True])
def test_what_is_written_is_read_again(art: ArtGroups, group: Group, dumped: bool) -> None:
    """As objects with attributes that hold OpenAI's choices, and as the mappings of a dump."""
    [written] = art.write([group], [ASK], choice=dict if dumped else Choice.model_validate)
    first, second = written["trajectories"]
    assert [type(m) for m in first["messages_and_choices"][:2]] == [dict, dict if dumped else Choice]
    assert first["initial_policy_version"] == group.samples[0].policy_version and second["reward"] == 1.0
    outside: Any = written
    if not dumped:
        outside = SimpleNamespace(trajectories=[SimpleNamespace(**t) for t in written["trajectories"]])
    [read] = art.read([outside])
    assert told(read) == told(group)
    assert read.samples[0].info["between_turns"] == [NEXT, NEXT]


def test_it_trains_as_the_samples_themselves(art: ArtGroups, group: Group, engine: Engine) -> None:
    own = [Group(group.prompt_ids, copy.deepcopy(group.samples))]
    read = art.read(art.write([group], [ASK]))
    start = engine.state_dict()
    stats = []
    for groups in (own, read):
        engine.load_state_dict(start)
        stats.append(engine.train(groups, GRPO(lr=1e-2)))
    engine.load_state_dict(start)
    assert stats[0]["grad_norm"] > 0
    assert stats[0] == stats[1]


def choice(*ids: int, **message: Any) -> dict[str, Any]:
    """A choice of these tokens, each of log-probability -1."""
    content = [{"token": f"token_id:{i}", "logprob": -1.0, "bytes": None, "top_logprobs": []} for i in ids]
    spoken = {"role": "assistant", "content": "x", **message}
    return {"finish_reason": "stop", "index": 0, "message": spoken, "logprobs": {"content": content}}


def one(*messages: Any, **fields: Any) -> list[Any]:
    return [{"trajectories": [{"messages_and_choices": messages, "reward": 0.5, **fields}]}]


def test_tools_their_results_and_answers_of_others(art: ArtGroups) -> None:
    """The ids of the choices as drawn; all else as the template writes it."""
    chat, untrained = art.chat, {**choice(), "logprobs": None}
    [end] = chat.template.chat.end_ids
    last = {"role": "user", "content": "thanks"}
    [group] = art.read(
        one(*ASK, choice(1, end, **call()), RESULT, untrained, *NEXT, choice(2, 3), last, tools=[WEATHER])
    )
    [sample] = group.samples
    first, spoken = [1, end], chat.answer({"role": "assistant", "content": "x"})
    assert group.prompt_ids == sample.prompt_ids == chat.opening(ASK, [WEATHER])
    observed = [*chat.observation(first, [RESULT]), *spoken, *chat.observation(spoken, NEXT)]
    assert sample.token_ids == [*first, *observed, 2, 3]
    assert sample.trained_mask() == [True] * 2 + [False] * len(observed) + [True] * 2
    assert sample.policy_logprobs == [-1.0] * 2 + [0.0] * len(observed) + [-1.0] * 2
    assert art.counters["choices_without_logprobs"] == 1
    assert art.counters["turns_reencoded"] == 1  # no text gives the ids 1 and end


def test_prompts_that_differ_share_their_beginning(art: ArtGroups) -> None:
    other = [{"role": "user", "content": "Is Friday wet?"}]
    [group] = art.read(
        [{"trajectories": [{"messages_and_choices": [*m, choice(7)], "reward": 1} for m in (ASK, other)]}]
    )
    for messages, sample in zip((ASK, other), group.samples, strict=True):
        assert sample.prompt_ids == group.prompt_ids
        assert sample.prompt_ids + sample.token_ids == [*art.chat.opening(messages), 7]
        assert sample.trained_mask() == [False] * (len(sample.token_ids) - 1) + [True]
        assert len(sample.logprobs) == len(sample.policy_logprobs) == len(sample.token_ids)
    assert group.samples[0].token_ids != group.samples[1].token_ids


def test_the_version_is_the_trajectorys_or_the_readers(engine: Engine) -> None:
    assert engine.chat is not None
    art = ArtGroups(ToolChat(engine.chat), version=3, temperature=0.7)
    [own] = art.read(one(*ASK, choice(7)))
    [said] = art.read(one(*ASK, choice(7), initial_policy_version=1))
    assert [own.samples[0].policy_version, said.samples[0].policy_version] == [3, 1]
    assert own.samples[0].temperature == 0.7


def test_failures_and_empty_groups_are_counted(art: ArtGroups) -> None:
    failed = {"trajectories": [], "exceptions": [{"type": "ValueError"}, {"type": "KeyError"}]}
    [group] = art.read([failed, *one(*ASK, choice(7))])
    assert group.index == 1 and group.rewards == [0.5]
    assert art.counters["exceptions"] == 2 and art.counters["groups_without_trajectories"] == 1


@pytest.mark.parametrize(
    ("messages", "fields", "error"),
    [
        ([*ASK, {"role": "assistant", "content": "x"}], {}, "trajectory 0: no choice has log-probabilities"),
        ([*ASK, choice(7), "x"], {}, "message 2: neither a message nor a choice: 'x'"),
        ([choice(7)], {}, "message 0: "),
        ([*ASK, choice(7), choice(8)], {}, "message 2: an observation is one message or more"),
        ([*ASK, choice(7)], {"additional_histories": [{}]}, "additional histories are not read"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    art: ArtGroups, messages: list[Any], fields: dict[str, Any], error: str
) -> None:
    with pytest.raises(ArtError, match=error) as raised:
        art.read(one(*messages, **fields))
    assert str(raised.value).startswith("group 0, trajectory 0") and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"token": "Fri"}, "token 0: 'Fri' names no id: .*return_tokens_as_token_ids"),
        ({"token": "token_id:-3"}, "names no id"),
        ({"logprob": float("nan")}, "token 0: its log-probability is nan"),
    ],
)
def test_tokens_that_cannot_be_trained(art: ArtGroups, changed: dict[str, Any], error: str) -> None:
    drawn = choice(7)
    drawn["logprobs"]["content"][0].update(changed)
    with pytest.raises(ArtError, match=f"message 1, {error}" if "token 0" in error else error):
        art.read(one(*ASK, drawn))


def test_what_cannot_be_written_is_refused(art: ArtGroups, group: Group) -> None:
    bare = [Group(group.prompt_ids, copy.deepcopy(group.samples))]
    bare[0].samples[0].info.clear()
    with pytest.raises(ArtError, match=r"group 0, sample 0: 3 turns, .* messages of 0 places"):
        art.write(bare, [ASK])
    for missing in ([], [math.nan] * len(bare[0].samples[0].token_ids)):
        bare[0].samples[0].policy_logprobs = missing
        with pytest.raises(ArtError, match="group 0, sample 0: a trained token has no log-probability"):
            art.write(bare, [ASK])
    bare[0].samples[0].reward = None
    with pytest.raises(ArtError, match="group 0, sample 0: it has no reward"):
        art.write(bare, [ASK])
