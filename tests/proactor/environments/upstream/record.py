"""Records what UserRL's own classes answer, unmodified, as the fixtures beside this file.

    USERRL=<its repository> TAU_BENCH=<sierra-research/tau-bench> python -m
    tests.proactor.environments.upstream.record

needs gymnasium. The texts of the episodes are ours (`scripts`), and so are the user and the judge (`stubs`).
A feedback of tau-bench's real database is kept as a hash, its listing of tools as names alone, its help not
at all.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import json
import os
import random
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tests.proactor.environments import shop
from tests.proactor.environments.upstream import scripts, stubs

HERE = Path(__file__).parent
EPISODES = 50
LONGEST = 120
"""Characters of a feedback that is kept as it is where it may come from tau-bench's database."""

Turn = tuple[str, str, float, bool, bool]


def brief(feedback: str) -> str:
    """A feedback of tau-bench as the fixtures hold it."""
    if feedback.startswith("Available Tools:"):
        return " ".join(re.findall(r"^ *- (\w+):", feedback, re.MULTILINE))
    if len(feedback) > LONGEST:
        return f"sha256 {hashlib.sha256(feedback.encode()).hexdigest()[:16]}"
    return feedback


def played(environment: Any, texts: Iterable[str]) -> list[Turn]:
    """An episode of UserRL's class."""
    environment.reset()
    turns = []
    for text in texts:
        observation, reward, terminated, truncated, _ = asyncio.run(environment.step_async(text))
        turns.append((text, observation["feedback"], float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    return turns


def episodes(
    records: list[dict[str, Any]],
    build: Callable[[str, int], Any],
    say: Callable[[dict[str, Any], random.Random], list[str]],
    count: int = EPISODES,
) -> list[dict[str, Any]]:
    """``count`` episodes over the records in turn, each with its own script and cap on turns."""
    recorded = []
    for number in range(count):
        record, rng = records[number % len(records)], random.Random(number)
        cap = rng.choice([3, 8, 30, 30])
        recorded.append(
            {
                "task": record["id"],
                "max_turns": cap,
                "turns": played(build(record["id"], cap), say(record, rng)),
            }
        )
    return recorded


def write(name: str, recorded: list[dict[str, Any]], records: list[dict[str, Any]] | None = None) -> None:
    """A fixture: the tasks where they may be needed, and one line an episode."""
    rows = ",\n".join(json.dumps(episode, separators=(",", ":")) for episode in recorded)
    tasks = ",\n".join(json.dumps(record, separators=(",", ":")) for record in records or [])
    (HERE / f"{name}.json").write_text(f'{{"tasks":[\n{tasks}],\n"episodes":[\n{rows}]}}\n')
    print(f"{name}: {len(recorded)} episodes, {sum(len(e['turns']) for e in recorded)} turns")


def built(module: str, environment: str, config: str, **options: Any) -> Callable[[str, int], Any]:
    """How an environment of a task is made."""
    there = importlib.import_module(module)

    def build(task: str, cap: int) -> Any:
        settings = getattr(there, config)(data_mode="single", data_source=task, max_steps=cap, **options)
        return getattr(there, environment)(settings)

    return build


def function() -> None:
    """FunctionGym, every tenth task."""
    root = Path(os.environ[stubs.USERRL], "gyms/FunctionGym/functiongym/data/functions.json")
    records = json.loads(root.read_text())[::10][:EPISODES]
    build = built("functiongym", "FunctionEnv", "FunctionGymConfig")
    write("function", episodes(records, build, scripts.function_turns), records)


def intention() -> None:
    """IntentionGym, 25 tasks twice."""
    root = Path(os.environ[stubs.USERRL], "gyms/IntentionGym/intentiongym/data/all_intentions_train.json")
    records = json.loads(root.read_text())[::40][: EPISODES // 2]
    build = built("intentiongym", "IntentionEnv", "IntentionGymConfig", api_key="none")
    write("intention", episodes(records, build, scripts.intention_turns), records)


def tau() -> None:
    """Tau: 50 of tau-bench's training tasks on its own database, and episodes in our small shop."""
    root = Path(os.environ[stubs.USERRL], "gyms/TauGym/taugym/data/tau_train.json")
    records = json.loads(root.read_text())[::10][:EPISODES]
    stubs.OPENINGS.update({r["info"]["task"]["instruction"]: r["obs"] for r in [*records, *shop.TASKS]})
    build = built("taugym", "TauEnv", "TauGymConfig", task_category="retail", task_split="train")
    recorded = episodes(records, build, scripts.tau_turns)
    for episode in recorded:
        episode["turns"] = [(text, brief(said), *rest) for text, said, *rest in episode["turns"]]
    write("tau", recorded)

    desk = importlib.import_module("tau_bench.envs.retail.env")
    desk.load_data = lambda: json.loads(json.dumps(shop.TABLES))
    kinds = importlib.import_module("tau_bench.types")
    tasks = importlib.import_module("tau_bench.envs.retail.tasks_train")
    tasks.TASKS_TRAIN = [kinds.Task(**task["info"]["task"]) for task in shop.TASKS]
    recorded = episodes(shop.TASKS, build, scripts.tau_turns)
    for episode in recorded:
        episode["turns"] = [
            (text, brief(said) if said.startswith("Available") else said, *rest)
            for text, said, *rest in episode["turns"]
        ]
    write("tau_shop", recorded)


if __name__ == "__main__":
    if why := stubs.missing(stubs.USERRL, stubs.TAU_BENCH):
        raise SystemExit(why)
    stubs.make_importable()
    stubs.with_rule_users()
    function()
    intention()
    tau()
