"""Records what UserRL's own classes answer, unmodified, as the fixtures beside this file.

    export USERRL=<its repository> TAU_BENCH=<sierra-research/tau-bench>
    python -m tests.proactor.environments.upstream.record "$PROACTOR_DATA/userrl"

needs gymnasium. The texts of the episodes are ours (`scripts`), and so are the user and the judge (`stubs`).
Of episodes on UserRL's tasks and tau-bench's database only hashes of the feedback are kept, with rewards and
flags. Those on tasks and a shop of our own, which the same classes are given instead of their files, are kept
as they are. Of tau-bench's listing of tools only the names count, of its help nothing: ours are in other
words.
"""

from __future__ import annotations

import asyncio
import copy
import hashlib
import importlib
import json
import random
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from proactor.files import read_json
from tests.proactor.environments import own_tasks, shop
from tests.proactor.environments.upstream import scripts, stubs

HERE = Path(__file__).parent
EPISODES = 50
CAPS = (3, 8, 30, 30)
"""On turns; one is drawn for each episode."""

Turn = tuple[str, str, float, bool, bool]
Say = Callable[[dict[str, Any], random.Random], list[str]]


def comparable(text: str, feedback: str) -> str:
    """A feedback without what is in other words here: the listing of tools, and the help on it."""
    if feedback.startswith("Available Tools:"):
        return " ".join(re.findall(r"^ *- (\w+):", feedback, re.MULTILINE))
    return "help" if text == "[search] help" else feedback


def hashed(text: str) -> str:
    """The first 16 digits of its SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def script(record: dict[str, Any], number: int, say: Say) -> tuple[int, list[str]]:
    """The cap on turns and the agent's texts of the episode of this number."""
    rng = random.Random(number)
    return rng.choice(CAPS), say(record, rng)


def played(environment: Any, texts: Iterable[str]) -> list[Turn]:
    """An episode of UserRL's class."""
    environment.reset()
    turns = []
    for text in texts:
        observation, reward, terminated, truncated, _ = asyncio.run(environment.step_async(text))
        feedback = comparable(text, observation["feedback"])
        turns.append((text, feedback, float(reward), bool(terminated), bool(truncated)))
        if terminated or truncated:
            break
    return turns


def record(
    name: str, records: list[dict[str, Any]], build: Callable[[str, int], Any], say: Say, own: bool
) -> None:
    """Write 50 episodes over the records in turn, one a line; ``own``: with their texts and feedback."""
    rows, turns = [], 0
    for number in range(EPISODES):
        task = records[number % len(records)]
        cap, texts = script(task, number, say)
        episode = played(build(task["id"], cap), texts)
        turns += len(episode)
        row = {"task": task["id"], "max_turns": cap, "script": hashed("\n".join(texts)), "turns": episode}
        if not own:
            row["turns"] = [(hashed(feedback), *rest) for _, feedback, *rest in episode]
        rows.append(json.dumps(row, separators=(",", ":")))
    (HERE / f"{name}.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")
    print(f"{name}: {EPISODES} episodes, {turns} turns")


def built(module: str, environment: str, config: str, **options: Any) -> Callable[[str, int], Any]:
    """How an environment of a task is made."""
    there = importlib.import_module(module)

    def build(task: str, cap: int) -> Any:
        settings = getattr(there, config)(data_mode="single", data_source=task, max_steps=cap, **options)
        return getattr(there, environment)(settings)

    return build


def given(module: str, name: str, records: list[dict[str, Any]]) -> None:
    """Let a gym find our records where it looks for one by its id."""
    by_id = {record["id"]: record for record in records}
    setattr(importlib.import_module(module), name, lambda task: copy.deepcopy(by_id[task]))


def main(folder: Path) -> None:
    """Record all of them."""
    build = built("functiongym", "FunctionEnv", "FunctionGymConfig")
    record("function", read_json(folder / "functions.json.gz")[::8], build, scripts.function_turns, own=False)
    given("functiongym.env.function_env", "get_function_by_id", own_tasks.FUNCTIONS)
    record("function_own", own_tasks.FUNCTIONS, build, scripts.function_turns, own=True)

    build = built("intentiongym", "IntentionEnv", "IntentionGymConfig", api_key="none")
    record(
        "intention", read_json(folder / "intentions.json.gz")[::20], build, scripts.intention_turns, own=False
    )
    given("intentiongym.env.intention_env", "get_task_by_id", own_tasks.INTENTIONS)
    record("intention_own", own_tasks.INTENTIONS, build, scripts.intention_turns, own=True)

    tasks = read_json(folder / "tau.json.gz")
    stubs.remember([*tasks, *shop.TASKS])
    build = built("taugym", "TauEnv", "TauGymConfig", task_category="retail", task_split="train")
    record("tau", tasks[::10], build, scripts.tau_turns, own=False)
    importlib.import_module("tau_bench.envs.retail.env").load_data = lambda: copy.deepcopy(shop.TABLES)
    kinds = importlib.import_module("tau_bench.types")
    there = importlib.import_module("tau_bench.envs.retail.tasks_train")
    there.TASKS_TRAIN = [kinds.Task(**task["info"]["task"]) for task in shop.TASKS]
    record("tau_own", shop.TASKS, build, scripts.tau_turns, own=True)


if __name__ == "__main__":
    if why := stubs.missing(stubs.USERRL, stubs.TAU_BENCH):
        raise SystemExit(why)
    stubs.make_importable()
    stubs.with_rule_users()
    main(Path(sys.argv[1]))
