"""Runs in environments on two ranks: the same rows and adapters as on one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.forked import Ended, fork_ranks
from proactor.environments.gyms import catalog
from proactor.environments.gyms.function_family import FunctionFamily
from proactor.methods.omit_format import OmitWording, omission
from proactor.training.episodes_loop import train_episodes
from tests.proactor.environments.test_event_streams import line, write
from tests.proactor.training.episodes import (
    PLAY,
    Guess,
    GuessGym,
    calling_folder,
    config,
    events_folder,
    guess_folder,
)
from tests.proactor.training.test_loop import assert_equal, rows

FAMILY = {"signs": "+-", "largest": 3, "train": 6, "test": 3, "seed": 0, "max_turns": 6}
LONG = {"sampling": {"max_tokens": 8}, "max_tokens": 1500}
ENGINE = {"deterministic": True, "kv_tokens": 4096, "rank_timeout": 3600}
OTHER = {"redraws": 2, "redraw": "other"}
DELIBERATE = {
    "candidates": 1,
    "iterations": 2,
    "updates": 1,
    "batch_tasks": 3,
    "tasks": 3,
    "eval_every": 2,
    "update": {"lr": 1e-3},
    "critic": "rule",
}


def by_steps(reward: str) -> dict[str, Any]:
    """StepAgent, in batches as in "both stages"; with a discriminator that never rests."""
    options = {"reward": reward, "thoughts": False, "rest_at": 1.0}
    return {
        "environment": {"gym": "function_family", "options": FAMILY, "dev": 2, "play": PLAY},
        "method": {"name": "stepagent", "options": options},
        "grpo": {"lr": 1e-2, "n": 3, "batch_tasks": 3, "steps": 2, "eval_every": 2},
    }


SCENES: dict[str, tuple[str, dict[str, Any]]] = {
    # 4 tasks in batches of 3: in every other step one rank has no task
    "both stages": (
        "function",
        {
            "environment": {"gym": "function_family", "options": FAMILY, "dev": 2, "play": PLAY},
            "sft": {"lr": 1e-3, "batch_tasks": 3, "max_steps": 2, "eval_every": 1, "thoughts": False},
            "grpo": {"lr": 1e-2, "n": 4, "batch_tasks": 3, "steps": 3, "eval_every": 2},
        },
    ),
    # some worlds raise; rewards whose sum depends on their order; a method that looks at the whole batch
    "broken worlds": (
        "guess",
        {
            "environment": {"gym": "guess", "dev": 5, "options": {"broken": 8, "right": 0.3}, "play": PLAY},
            "method": {"name": "infopo", "options": {"info_norm": "token", "bounded": True}},
            "grpo": {"lr": 1e-2, "n": 4, "batch_tasks": 5, "steps": 3, "eval_every": 2},
        },
    ),
    "no spread": (
        "guess",
        {
            "environment": {"gym": "guess", "dev": 2, "options": {"right": 0.0}, "play": PLAY},
            "method": {"name": "userrl"},
            "grpo": {"lr": 1e-2, "n": 4, "batch_tasks": 3, "steps": 9, "max_flat_steps": 2} | OTHER,
        },
    ),
    "the same again": (
        "guess",
        {
            "environment": {"gym": "guess", "dev": 2, "options": {"right": 0.0}, "play": PLAY},
            "method": {"name": "userrl"},
            "grpo": {"lr": 1e-2, "n": 2, "batch_tasks": 3, "steps": 1, "redraws": 1},
        },
    ),
    "deliberations": (
        "function",
        {
            "environment": {"gym": "function_family", "options": FAMILY, "dev": 2, "play": LONG},
            "engine": ENGINE | {"kv_tokens": 8192},
            "method": {"name": "sand", "options": DELIBERATE},
            "grpo": None,
        },
    ),
    # advantages of episodes and of partial samples; in the last step one rank has no task
    "omissions": (
        "omitting",
        {
            "environment": {
                "gym": "guess",
                "options": {"train": 6},
                "dev": 2,
                "play": {"sampling": {"max_tokens": 24}, "max_tokens": 300},
            },
            "method": {"name": "agent_omit", "options": {"instruct": False}},
            "grpo": {"lr": 1e-2, "n": 8, "batch_tasks": 3, "steps": 2, "eval_every": 2},
        },
    ),
    "cold start": (
        "function",
        {
            "environment": {"gym": "function_family", "options": FAMILY, "dev": 1, "play": LONG},
            "engine": ENGINE | {"kv_tokens": 8192},
            "method": {"name": "agent_omit", "options": {"instruct": False, "cold_tasks": 2, "tries": 1}},
            "sft": {"lr": 1e-3, "batch_tasks": 3, "max_steps": 2, "eval_every": 2},
            "grpo": {"lr": 1e-2, "n": 2, "batch_tasks": 1, "steps": 1},
        },
    ),
    # the run on one rank trains the judge, the run on two reads it
    "judged proposals": (
        "events",
        {
            "environment": {
                "gym": "events",
                "path": "streams",
                "user": {
                    "kind": "accept_reject",
                    "adapter": "judge",
                    "train": {"lr": 1e-2, "steps": 30, "batch_lines": 24},
                    "engine": {"kv_tokens": 4096},
                },
                "dev": 1,
                "host": {"timeout": 600},
                "play": {"sampling": {"max_tokens": 12}, "max_tokens": 40},
            },
            "method": {"name": "userrl"},
            "grpo": {"lr": 1e-2, "n": 6, "batch_tasks": 3, "steps": 2, "eval_every": 2},
        },
    ),
    "pairs": ("function", by_steps("implicit")),
    "discriminator": ("function", by_steps("inverse")),
}


def drive(models: Path, folder: Path) -> dict[str, list[Ended]]:
    """How the ranks of each scene ended, on one rank and on two; and of one that is resumed on one."""
    catalog.GYMS["guess"] = GuessGym
    os.chdir(folder)  # where "judged proposals" finds its streams and leaves its judge
    ended = {}
    for name, (model, sections) in SCENES.items():
        for count in (1, 2):
            ended[f"{name} {count}"] = train(folder / f"{name} {count}", models / model, count, sections)
    model, sections = SCENES["both stages"]
    half = {**sections, "grpo": {**sections["grpo"], "steps": 2}}
    ended["resumed 2"] = train(folder / "resumed", models / model, 2, half)
    ended["resumed 1"] = train(folder / "resumed", models / model, 1, sections)
    return ended


def train(folder: Path, model: Path, count: int, sections: dict[str, Any]) -> list[Ended]:
    folder.mkdir(exist_ok=True)
    settings = config(folder, model, **({"engine": ENGINE} | sections))
    resume = settings.folder.is_dir()
    ranks = fork_ranks(count, folder, lambda rank: train_episodes(settings, resume=resume))
    return [rank.end(600) for rank in ranks]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    """The folder of all runs."""
    models, folder = tmp_path_factory.mktemp("models"), tmp_path_factory.mktemp("runs")
    guess_folder(models / "guess")
    gym = FunctionFamily(**FAMILY)  # type: ignore[arg-type]
    opening = gym.make(gym.tasks("train")[0]).reset(0)
    calling_folder(models / "function", opening, context=1024)
    said = ("<think>go</think>", "<think></think>" + omission(1))
    started = Guess("0").reset(0)
    calling_folder(models / "omitting", started, context=512, said=said, wording=OmitWording(False))
    events_folder(models / "events")
    (folder / "streams").mkdir()
    tasks = ("good", "bad", None)
    write(folder / "streams", *(line(n, t, t == "good", s) for s in "abcdefg" for n in (1, 2) for t in tasks))
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "TORCH_CPP_LOG_LEVEL": "FATAL"}
    command = [sys.executable, __file__, str(models), str(folder)]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name, ranks in json.loads(done.stdout).items():
        for code, _, errors in ranks:
            assert code == 0, f"{name}: {errors}"
    return folder


def of(runs: Path, scene: str) -> Path:
    return runs / scene / "runs" / "tiny"


@pytest.mark.slow
@pytest.mark.parametrize("scene", SCENES)
def test_two_ranks_leave_what_one_leaves(runs: Path, scene: str) -> None:
    assert_equal(of(runs, f"{scene} 2"), of(runs, f"{scene} 1"))


@pytest.mark.slow
def test_a_run_on_two_ranks_continues_on_one(runs: Path) -> None:
    assert_equal(of(runs, "resumed"), of(runs, "both stages 1"))


@pytest.mark.slow
def test_what_the_scenes_are_about(runs: Path) -> None:
    both = rows(of(runs, "both stages 2"))
    assert [row["demonstrations"] for row in both if row["kind"] == "sft"] == [3, 1]
    assert [row["episodes"] for row in both if row["kind"] == "grpo"] == [12, 4, 12]
    assert any(row["grad_norm"] > 0 for row in both if row["kind"] == "grpo")
    broken = [row for row in rows(of(runs, "broken worlds 2")) if row["kind"] == "grpo"]
    assert sum(row["episodes_failed"] for row in broken) == sum(row["host/errors"] for row in broken) > 0
    flat = of(runs, "no spread 2")
    steps = [row for row in rows(flat) if row["kind"] == "grpo"]
    assert [row["flat_steps"] for row in steps] == [1, 2]
    assert [row["groups_redrawn"] for row in steps] == [6, 6] and steps[0]["episodes"] == 12
    again = [row for row in rows(of(runs, "the same again 2")) if row["kind"] == "grpo"]
    assert [(row["groups_redrawn"], row["episodes"]) for row in again] == [(3, 6)]
    assert "GRPO stopped after step 2 of 9" in json.loads((flat / "summary.json").read_text())["stopped"]
    first, last = (row for row in rows(of(runs, "deliberations 2")) if row["kind"] == "sand")
    assert first["sand/flagged"] > 0 and (first["demonstrations"], last["demonstrations"]) == (3, 1)
    steps = [row for row in rows(of(runs, "omissions 2")) if row["kind"] == "grpo"]
    assert [row["episodes"] for row in steps] == [24, 8]
    assert all(row["grad_norm"] > 0 and row["omit/observations"] > 0 for row in steps)
    assert all(row["omit/partials"] > 0 for row in steps)
    tried = (of(runs, "cold start 2") / "samples" / "omit-000000.jsonl").read_text().splitlines()
    assert len(tried) == 3 and sum(json.loads(row)["counts"]["omit/kept"] for row in tried) > 0
    judged = [row for row in rows(of(runs, "judged proposals 2")) if row["kind"] == "grpo"]
    assert all(row["user/requests"] > 0 and row["grad_norm"] > 0 for row in judged)
    for scene, learned in (("pairs", "pairs"), ("discriminator", "groups_with_spread")):
        steps = [row for row in rows(of(runs, f"{scene} 2")) if row["kind"] == "grpo"]
        assert [row["demonstrations"] for row in steps] == [3, 1]
        assert all(row[learned] > 0 and row["grad_norm"] > 0 for row in steps)
        assert scene == "pairs" or any(row["discriminator_perfect"] for row in steps), "it never rests"


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]), Path(sys.argv[2]))))
