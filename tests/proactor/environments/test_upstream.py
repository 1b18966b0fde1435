"""Our gyms answer as UserRL's own classes did in the recorded episodes; and those classes run on the host."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proactor.environments.calls import from_text, to_text
from proactor.environments.gyms.function import FunctionGym
from proactor.environments.gyms.intention import IntentionGym
from proactor.environments.gyms.tau import HELP, TauGym
from proactor.environments.host import Host, HostConfig
from proactor.environments.protocol import Environment
from proactor.environments.userrl import userrl_gym
from tests.proactor.environments import shop
from tests.proactor.environments.upstream import stubs
from tests.proactor.environments.upstream.record import brief

HERE = Path(__file__).parent / "upstream"


def fixture(name: str) -> dict[str, Any]:
    return json.loads((HERE / f"{name}.json").read_text())


def compare(name: str, make: Callable[[str, int], Environment], shown: Callable[[str], str] = str) -> int:
    """Play each recorded episode in our gym, and count its turns; every field must be the recorded one."""
    turns = 0
    for episode in fixture(name)["episodes"]:
        world = make(episode["task"], episode["max_turns"])
        world.reset(0)
        for text, feedback, reward, terminated, truncated in episode["turns"]:
            outcome = world.step(from_text(text))
            if "should choose from one of the following" not in feedback and text != "[search] help":
                assert shown(outcome.observation) == feedback, (episode["task"], text)
            assert outcome.reward == pytest.approx(reward), (episode["task"], text)
            assert (outcome.terminated, outcome.truncated) == (terminated, truncated), (episode["task"], text)
            turns += 1
    return turns


def test_function_as_recorded(tmp_path: Path) -> None:
    (tmp_path / "functions.json").write_text(json.dumps(fixture("function")["tasks"]))
    gyms = {cap: FunctionGym(tmp_path, max_turns=cap, parity=True) for cap in (3, 8, 30)}
    assert compare("function", lambda task, cap: gyms[cap].make(task)) > 250


def test_strict_function_differs_only_in_what_it_takes_for_numbers(tmp_path: Path) -> None:
    (tmp_path / "functions.json").write_text(json.dumps(fixture("function")["tasks"]))
    gym = FunctionGym(tmp_path, max_turns=30)
    refused = set()
    for episode in fixture("function")["episodes"]:
        world = gym.make(episode["task"])
        world.reset(0)
        for text, feedback, *_ in episode["turns"]:
            if world.step(from_text(text)).observation != feedback:
                refused.add(text)
    assert refused and all(text.startswith("[action]") for text in refused)
    assert all("." in text or "e" in text or "one" in text for text in refused)


def test_intention_as_recorded(tmp_path: Path) -> None:
    (tmp_path / "intentions.json").write_text(json.dumps(fixture("intention")["tasks"]))
    gyms = {cap: IntentionGym(tmp_path, max_turns=cap) for cap in (3, 8, 30)}
    assert compare("intention", lambda task, cap: gyms[cap].make(task)) > 150


def test_tau_in_our_small_shop_as_recorded(tmp_path: Path) -> None:
    (tmp_path / "tau.json").write_text(json.dumps(shop.TASKS))
    for name, table in shop.TABLES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    gyms = {cap: TauGym(tmp_path, tmp_path, max_turns=cap) for cap in (3, 8, 30)}

    def shown(observation: str) -> str:
        return brief(observation) if observation.startswith("Available") else observation

    assert compare("tau_shop", lambda task, cap: gyms[cap].make(task), shown) > 250


def retail(data_dir: Path) -> Path:
    """tau-bench's retail tables: in its repository, or in the folder of real data."""
    places = [Path(os.environ.get(stubs.TAU_BENCH, ""), "tau_bench/envs/retail/data"), data_dir / "tau-bench"]
    for place in places:
        if (place / "orders.json").is_file():
            return place
    pytest.skip(f"no retail database of tau-bench: {stubs.TAU_BENCH} names no copy of its repository")


def test_tau_on_its_own_database_as_recorded(data_dir: Path) -> None:
    database = retail(data_dir)
    gyms = {cap: TauGym(data_dir / "userrl", database, max_turns=cap) for cap in (3, 8, 30)}
    assert compare("tau", lambda task, cap: gyms[cap].make(task), brief) > 200


@pytest.fixture
def upstream() -> Iterator[None]:
    if why := stubs.missing(stubs.USERRL):
        pytest.skip(f"UserRL's own classes cannot be driven: {why}")
    stubs.make_importable()
    stubs.with_rule_users()
    stubs.OPENINGS.update({t["info"]["task"]["instruction"]: t["obs"] for t in shop.TASKS})
    yield


@pytest.mark.parametrize("workers", ["threads", "isolated"])
@pytest.mark.parametrize("kind", ["function", "intention"])
def test_upstream_runs_on_the_host_as_recorded(upstream: None, kind: str, workers: str) -> None:
    options = {"intention": {"api_key": "none"}}.get(kind, {})
    recorded = [episode for episode in fixture(kind)["episodes"] if episode["max_turns"] == 30]
    gym = userrl_gym(kind, [episode["task"] for episode in recorded], max_turns=30, **options)

    async def play() -> list[list[tuple]]:
        host = Host(gym, HostConfig(isolate_random=workers == "isolated", show_reward=True))

        async def one(episode: dict[str, Any]) -> list[tuple]:
            hosted = await host.begin(episode["task"], 0)
            answers = [await hosted.step([from_text(turn[0])]) for turn in episode["turns"]]
            return [(a.feedback, a.reward, a.ending) for a in answers]

        return await asyncio.gather(*map(one, recorded))

    before = random.getstate()
    played = asyncio.run(play())
    if workers == "isolated":
        assert random.getstate() == before
    for episode, answers in zip(recorded, played):
        for (_, feedback, reward, terminated, truncated), answer in zip(episode["turns"], answers):
            ending = "terminated" if terminated else "truncated" if truncated else None
            assert answer == (f"{feedback}\nReward: {answer[1]}", pytest.approx(reward), ending)


def test_upstream_tau_runs_on_the_host(upstream: None) -> None:
    if why := stubs.missing(stubs.TAU_BENCH):
        pytest.skip(f"UserRL's Tau cannot be driven: {why}")
    recorded = [episode for episode in fixture("tau")["episodes"] if episode["max_turns"] == 30][:4]
    root = Path(os.environ[stubs.USERRL], "gyms/TauGym/taugym/data/tau_train.json")
    stubs.OPENINGS.update({r["info"]["task"]["instruction"]: r["obs"] for r in json.loads(root.read_text())})
    gym = userrl_gym("tau", [], max_turns=30, task_category="retail", task_split="train")

    async def play(episode: dict[str, Any]) -> list[tuple]:
        hosted = await Host(gym, HostConfig(timeout=300)).begin(episode["task"], 0)
        answers = [await hosted.step([from_text(turn[0])]) for turn in episode["turns"]]
        return [(brief(a.feedback), a.reward) for a in answers]

    for episode in recorded:
        assert asyncio.run(play(episode)) == [(turn[1], turn[2]) for turn in episode["turns"]]


def test_the_recorded_texts_survive_as_calls() -> None:
    for name in ("function", "intention", "tau", "tau_shop"):
        for episode in fixture(name)["episodes"]:
            for text, *_ in episode["turns"]:
                there = from_text(to_text(from_text(text)))
                assert there == from_text(text) or there.verb == "finish"
    assert "tools" in HELP
