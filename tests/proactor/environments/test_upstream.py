"""Our gyms answer as UserRL's own classes did in the recorded episodes; and those classes run on the host."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proactor.environments.calls import from_text
from proactor.environments.gyms.function import FunctionGym
from proactor.environments.gyms.intention import IntentionGym
from proactor.environments.gyms.tau import TauGym
from proactor.environments.host import Answer, Host, HostConfig
from proactor.environments.protocol import Gym
from proactor.environments.userrl import userrl_gym
from proactor.files import read_json
from tests.proactor.environments import own_tasks, shop
from tests.proactor.environments.upstream import scripts, stubs
from tests.proactor.environments.upstream.record import CAPS, EPISODES, Say, comparable, hashed, script

HERE = Path(__file__).parent / "upstream"
SAYS: dict[str, Say] = {
    "function": scripts.function_turns,
    "intention": scripts.intention_turns,
    "tau": scripts.tau_turns,
}


def recorded(name: str) -> list[dict[str, Any]]:
    """The episodes of a fixture."""
    episodes = read_json(HERE / f"{name}.json")
    assert len(episodes) == EPISODES
    return episodes


def with_texts(kind: str, records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The episodes on UserRL's tasks, each turn with its text, which its script draws again."""
    by_id = {record["id"]: record for record in records}
    episodes = recorded(kind)
    for number, episode in enumerate(episodes):
        _, texts = script(by_id[episode["task"]], number, SAYS[kind])
        assert hashed("\n".join(texts)) == episode["script"], (
            "the scripts have changed: record the episodes anew"
        )
        episode["turns"] = [(text, *turn) for text, turn in zip(texts, episode["turns"])]
    return episodes


def compare(
    episodes: list[dict[str, Any]], gyms: Callable[[int], Gym], shown: Callable[[str], str] = str
) -> None:
    """Play each episode in our gym; every field of every turn must be the recorded one."""
    capped = {cap: gyms(cap) for cap in CAPS}
    for episode in episodes:
        world = capped[episode["max_turns"]].make(episode["task"])
        world.reset(0)
        for text, feedback, reward, terminated, truncated in episode["turns"]:
            outcome = world.step(from_text(text))
            place = episode["task"], text, outcome.observation
            assert shown(comparable(text, outcome.observation)) == feedback, place
            assert outcome.reward == pytest.approx(reward), place
            assert (outcome.terminated, outcome.truncated) == (terminated, truncated), place


def lay_out(folder: Path) -> Path:
    """The tasks and the shop of our own as files."""
    (folder / "functions.json").write_text(json.dumps(own_tasks.FUNCTIONS))
    (folder / "intentions.json").write_text(json.dumps(own_tasks.INTENTIONS))
    (folder / "tau.json").write_text(json.dumps(shop.TASKS))
    for name, table in shop.TABLES.items():
        (folder / f"{name}.json").write_text(json.dumps(table))
    return folder


def gyms_of(kind: str, tasks: Path, database: Path) -> Callable[[int], Gym]:
    """Our gym of a kind, with UserRL's way to read numbers, for each cap on turns."""
    return {
        "function": lambda cap: FunctionGym(tasks, max_turns=cap, parity=True),
        "intention": lambda cap: IntentionGym(tasks, max_turns=cap),
        "tau": lambda cap: TauGym(tasks, database, max_turns=cap),
    }[kind]


@pytest.mark.parametrize("kind", SAYS)
def test_our_tasks_go_as_recorded(tmp_path: Path, kind: str) -> None:
    compare(recorded(f"{kind}_own"), gyms_of(kind, lay_out(tmp_path), tmp_path))


FILES = {"function": "functions", "intention": "intentions", "tau": "tau"}


@pytest.mark.parametrize("kind", SAYS)
def test_userrls_tasks_go_as_recorded(data_dir: Path, kind: str) -> None:
    folder = data_dir / "userrl"
    database = Path(os.environ.get(stubs.TAU_BENCH, "absent"), "tau_bench/envs/retail/data")
    if kind == "tau" and not (database / "orders.json").is_file():
        pytest.skip(f"no retail database of tau-bench: {stubs.TAU_BENCH} names no copy of its repository")
    episodes = with_texts(kind, read_json(folder / f"{FILES[kind]}.json.gz"))
    compare(episodes, gyms_of(kind, folder, database), hashed)


def test_strict_integers_differ_only_in_what_is_taken_for_numbers(tmp_path: Path) -> None:
    gym = FunctionGym(lay_out(tmp_path), max_turns=30)
    refused = set()
    for episode in recorded("function_own"):
        world = gym.make(episode["task"])
        world.reset(0)
        for text, feedback, *_ in episode["turns"]:
            if world.step(from_text(text)).observation != feedback:
                refused.add(text)
    assert refused and all(text.startswith("[action]") for text in refused)
    assert all("." in text or "e" in text for text in refused)


def drive(
    kind: str, options: dict[str, Any], episodes: list[dict[str, Any]], config: HostConfig
) -> list[list[Answer]]:
    """Play the episodes with UserRL's own classes on the host, all at once."""
    gym = userrl_gym(kind, [], max_turns=30, **options)

    async def one(host: Host, episode: dict[str, Any]) -> list[Answer]:
        hosted = await host.begin(episode["task"], 0)
        assert not hosted.error
        return [await hosted.step([from_text(turn[0])]) for turn in episode["turns"]]

    async def all_at_once() -> list[list[Answer]]:
        async with Host(gym, config) as host:
            return await asyncio.gather(*(one(host, episode) for episode in episodes))

    return asyncio.run(all_at_once())


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("function", HostConfig()),
        ("function", HostConfig(isolate_random=True, show_reward=True)),
        ("function", HostConfig(workers="processes", timeout=60)),
        ("intention", HostConfig(isolate_random=True)),
        ("tau", HostConfig(timeout=300)),
    ],
)
def test_upstream_runs_unmodified_on_the_host(data_dir: Path, kind: str, config: HostConfig) -> None:
    needed = [stubs.USERRL] + ([stubs.TAU_BENCH] if kind == "tau" else [])
    if why := stubs.missing(*needed):
        pytest.skip(f"UserRL's own classes cannot be driven: {why}")
    stubs.make_importable()
    stubs.with_rule_users()
    records = read_json(data_dir / "userrl" / f"{FILES[kind]}.json.gz")
    episodes = [episode for episode in with_texts(kind, records) if episode["max_turns"] == 30]
    episodes = episodes[: 3 if config.workers == "processes" or kind == "tau" else 12]
    options: dict[str, Any] = {}
    if kind == "intention":
        options = {"api_key": "none"}
    if kind == "tau":
        stubs.remember(records)
        options = {"task_category": "retail", "task_split": "train"}
    before = random.getstate()
    played = drive(kind, options, episodes, config)
    if config.isolate_random or config.workers == "processes":
        assert random.getstate() == before
    for episode, answers in zip(episodes, played):
        for (text, feedback, reward, terminated, truncated), answer in zip(episode["turns"], answers):
            line = f"\nReward: {answer.reward}" if config.show_reward else ""
            assert answer.feedback.endswith(line)
            assert hashed(comparable(text, answer.feedback.removesuffix(line))) == feedback
            assert answer.reward == pytest.approx(reward)
            assert answer.ending == ("terminated" if terminated else "truncated" if truncated else None)
