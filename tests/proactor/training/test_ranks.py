"""Two ranks that train: one is killed, stopped or refuses, and the other ends with one line."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.forked import Child, Ended, fork_ranks
from proactor.engine import Engine, EngineError
from proactor.training import loop
from tests.proactor.runs import config_file

TIMEOUT = 10


def at_step(step: int, action: Callable[[], object]) -> None:
    """Run ``action`` before a supervised step of this process."""
    train = loop.sft_step

    def stepped(workspace: Any, stage: Any, number: int) -> Any:
        if number == step:
            action()
        return train(workspace, stage, number)

    loop.sft_step = stepped


def signals_itself(number: signal.Signals, rank: int = 1) -> Callable[[int], None]:
    def prepare(mine: int) -> None:
        if mine == rank:
            at_step(2, lambda: os.kill(os.getpid(), number))

    return prepare


def full_disk(rank: int) -> None:
    def fail() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "metrics.jsonl")

    if rank == 0:
        at_step(2, fail)


def bug(rank: int) -> None:
    if rank == 1:
        at_step(2, lambda: 1 / 0)


def no_start(rank: int) -> None:
    """Rank 1 cannot read the adapter that the run is to start with."""

    def fail(self: Engine, folder: str) -> None:
        if rank == 1:
            raise EngineError(f"{folder}: no adapter")

    Engine.load_adapter = fail  # type: ignore[method-assign,assignment]


def nothing(rank: int) -> None:
    pass


def twice(second: signal.Signals) -> Callable[[list[Child]], None]:
    """Rank 1 is stuck; rank 0, which waits for it, gets SIGTERM and another signal."""

    def act(ranks: list[Child]) -> None:
        ranks[1].wait_until_stopped()
        ranks[0].kill(signal.SIGTERM)
        ranks[0].wait_until_default(signal.SIGTERM)
        ranks[0].kill(second)

    return act


def train(settings: Path, *overrides: str) -> None:
    """The command, as a process of its own runs it."""
    sys.argv = ["proactor", "train", str(settings), *overrides]
    from proactor.cli import main

    main()


OLD = '{"phase": "sft", "kind": "sft", "step": 1}\n'
"""The rows of a run that is to be replaced."""
LONG = "engine.rank_timeout=600"
SHORT = f"engine.rank_timeout={TIMEOUT}"
SCENES: dict[str, tuple[Callable[[int], None], tuple[str, ...], Callable[[list[Child]], None]]] = {
    "killed": (signals_itself(signal.SIGKILL), (LONG,), lambda ranks: None),
    "stopped": (signals_itself(signal.SIGSTOP), (SHORT,), lambda ranks: None),
    "first stopped": (signals_itself(signal.SIGSTOP, 0), (SHORT,), lambda ranks: None),
    "refused": (
        nothing,
        (LONG, "sft=null", "reward=tests.proactor.runs:nan_reward_on_rank_1"),
        lambda ranks: None,
    ),
    "full disk": (full_disk, (LONG,), lambda ranks: None),
    "no start": (no_start, (LONG, "start=other", "--fresh"), lambda ranks: None),
    "bug": (bug, (LONG,), lambda ranks: None),
    "SIGTERM": (signals_itself(signal.SIGSTOP), (LONG,), twice(signal.SIGTERM)),
    "SIGINT": (signals_itself(signal.SIGSTOP), (LONG,), twice(signal.SIGINT)),
}


def drive(model: Path, folder: Path) -> dict[str, list[Ended]]:
    """How both ranks of each scene ended; a rank that was stopped is killed at last."""
    outcome = {}
    for name, (prepare, overrides, act) in SCENES.items():
        scene = folder / name
        scene.mkdir()
        settings = config_file(scene, model)
        if "--fresh" in overrides:
            metrics = scene / "runs" / "tiny" / "metrics.jsonl"
            metrics.parent.mkdir(parents=True)
            metrics.write_text(OLD)

        def work(
            rank: int, settings: Path = settings, prepare: Any = prepare, overrides: Any = overrides
        ) -> None:
            prepare(rank)
            train(settings, *overrides)

        ranks = fork_ranks(2, scene, work)
        act(ranks)
        stuck = 0 if name == "first stopped" else 1
        ends = {1 - stuck: ranks[1 - stuck].end()}
        if "stopped" in name or "SIG" in name:
            ranks[stuck].kill()
        ends[stuck] = ranks[stuck].end()
        outcome[name] = [ends[0], ends[1]]
    return outcome


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the scenes' folders."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def ends(tiny_model: Path, scenes: Path, repo_root: Path) -> dict[str, list[Ended]]:
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "TORCH_CPP_LOG_LEVEL": "FATAL"}
    command = [sys.executable, __file__, str(tiny_model), str(scenes)]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: [Ended(*rank) for rank in ranks] for name, ranks in json.loads(done.stdout).items()}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rank", "line"),
    [
        ("killed", 0, "train: gradients: rank 1 ended"),
        ("stopped", 0, f"train: gradients: rank 1 not heard of for {TIMEOUT} s (engine.rank_timeout)"),
        ("first stopped", 1, f"train: gradients: rank 0 not heard of for {TIMEOUT} s (engine.rank_timeout)"),
    ],
)
def test_a_lost_rank_is_one_line(ends: dict[str, list[Ended]], name: str, rank: int, line: str) -> None:
    assert (ends[name][rank].code, ends[name][rank].errors) == (2, f"proactor: {line}\n")
    assert ends[name][1 - rank].code == -signal.SIGKILL


@pytest.mark.slow
def test_a_refusal_on_one_rank_is_the_same_line_on_all(ends: dict[str, list[Ended]]) -> None:
    first, second = ends["refused"]
    assert first.code == second.code == 2 and first.errors == second.errors
    assert first.errors.startswith("proactor: rank 1: reward ") and first.errors.count("\n") == 1
    assert "gave nan" in first.errors


@pytest.mark.slow
def test_a_run_is_not_given_up_where_one_rank_cannot_begin(
    ends: dict[str, list[Ended]], scenes: Path
) -> None:
    line = "proactor: rank 1: other: no adapter\n"
    assert [(end.code, end.errors) for end in ends["no start"]] == [(2, line), (2, line)]
    assert (scenes / "no start" / "runs" / "tiny" / "metrics.jsonl").read_text() == OLD


@pytest.mark.slow
def test_a_full_disk_of_one_rank_ends_all(ends: dict[str, list[Ended]]) -> None:
    words = "metrics.jsonl: No space left on device\n"
    assert [(end.code, end.errors) for end in ends["full disk"]] == [
        (2, f"proactor: {words}"),
        (2, f"proactor: rank 0: {words}"),
    ]


@pytest.mark.slow
def test_a_bug_on_one_rank_shows_its_traceback_once(ends: dict[str, list[Ended]]) -> None:
    first, second = ends["bug"]
    assert (first.code, first.errors) == (2, "proactor: rank 1: ZeroDivisionError: division by zero\n")
    assert second.code == 1 and "Traceback" in second.errors


@pytest.mark.slow
def test_a_second_signal_ends_a_rank_that_waits(ends: dict[str, list[Ended]]) -> None:
    assert ends["SIGTERM"][0][::2] == (-signal.SIGTERM, "")
    assert ends["SIGINT"][0].code == 130 and "Traceback" not in ends["SIGINT"][0].errors


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]), Path(sys.argv[2]))))
