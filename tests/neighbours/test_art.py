"""ART 0.5: rollouts of its client through the server become groups, and groups of ours its trajectories,
whose tokens its own preprocessing reads: `make test-neighbours`.
"""

from __future__ import annotations

import asyncio
import json
import sysconfig
from pathlib import Path

import pytest

from proactor.engine import GRPO, Engine, Group, Sample, Sampling, ToolChat
from proactor.neighbours.art import ArtGroups
from tests.neighbours.conftest import Client
from tests.proactor.server.served import ASK, Served

NEXT = [{"role": "user", "content": "And Monday?"}]


@pytest.fixture
def art(engine: Engine) -> ArtGroups:
    assert engine.chat is not None
    return ArtGroups(ToolChat(engine.chat), version=engine.policy_version)


def test_rollouts_of_arts_client_train(
    client: Client, served: Served, engine: Engine, art: ArtGroups
) -> None:
    told = client("art", "art_client.py", "rollouts", served.url, "policy")
    [group] = art.read([told])
    assert art.counters["exceptions"] == 1 and "the world did not answer" in told["exceptions"][0]["message"]
    assert sorted(group.rewards) == [0.0, 1.0, 2.0] and group.prompt_ids == engine.encode(ASK)
    for sample, trajectory in zip(group.samples, told["trajectories"], strict=True):
        assert sample.info["metrics"].keys() == {"duration", "completion_tokens"}
        first, last = (m["message"] for m in trajectory["messages_and_choices"] if "message" in m)
        asked = [ASK, [*ASK, {"role": "assistant", "content": first["content"]}, *NEXT]]
        for messages, (start, end) in zip(asked, sample.turns(), strict=True):
            [drawn] = engine.sample(
                [art.chat.opening(messages)],
                Sampling(max_tokens=8, seed=sample.info["metadata"]["seed"], stop_ids=tuple(engine.eos_ids)),
            )[0].samples
            assert sample.token_ids[start:end] == drawn.token_ids
            assert sample.policy_logprobs[start:end] == drawn.policy_logprobs
        assert last["content"] == drawn.text
    start_of_all = engine.state_dict()
    stats = engine.train([group], GRPO(lr=1e-2))
    engine.load_state_dict(start_of_all)
    assert stats["grad_norm"] > 0 and stats["reward_mean"] == 1.0


async def play(engine: Engine, chat: ToolChat, key: int) -> Sample:
    """Two turns, drawn in a session; the second conversation ends after one."""
    async with engine.session() as session:
        sampling = Sampling(max_tokens=8, stop_ids=tuple(engine.eos_ids))
        sample = await session.sample(chat.opening(ASK), sampling)
        if key != 1:
            await session.advance(sample, chat.observation(sample.token_ids, NEXT), sampling)
            sample.info["between_turns"] = [NEXT]
    sample.reward = float(key)
    return sample


def test_art_reads_our_groups_token_by_token(
    client: Client, engine: Engine, art: ArtGroups, folder: Path, tmp_path: Path
) -> None:
    samples = [asyncio.run(play(engine, art.chat, key)) for key in (0, 1, 5)]
    path = tmp_path / "groups.json"
    path.write_text(json.dumps(art.write([Group(samples[0].prompt_ids, samples)], [ASK])))
    results = client("art", "art_client.py", "tokens", path, folder, sysconfig.get_path("purelib"))
    assert [r["advantage"] for r in results] == pytest.approx([-0.9258, -0.4629, 1.3887], abs=1e-4)
    for result, sample in zip(results, samples, strict=True):
        prompt, trained = len(sample.prompt_ids), sample.trained_mask()
        assert result["ids"] == sample.prompt_ids + sample.token_ids
        assert [bool(on) for on in result["mask"]] == [False] * prompt + trained
        theirs = [p for p, on in zip(result["logprobs"], result["mask"], strict=True) if on]
        ours = [p for p, on in zip(sample.policy_logprobs, trained, strict=True) if on]
        assert theirs == ours
