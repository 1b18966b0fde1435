"""Three ranks of which one is killed or stopped: the others end with one line that names it and the phase."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from bench.forked import fork_ranks
from proactor.engine.meeting import RankError
from proactor.engine.parallel import Parallel

TIMEOUT = 10.0


def lives(rank: int, timeout: float = TIMEOUT) -> Parallel:
    parallel = Parallel(torch.device("cpu"), timeout)
    assert parallel.gather(rank * 2, "start") == [0, 2, 4]
    return parallel


def reported(call: Callable[[], object]) -> None:
    """Print what a call is refused with, twice: the second time nobody waits."""
    for _ in range(2):
        try:
            call()
            print("nothing")
        except RankError as error:
            print(error)


def lost_in(phase: str, number: signal.Signals) -> Callable[[int], None]:
    def work(rank: int) -> None:
        parallel = lives(rank)
        if rank == 1:
            os.kill(os.getpid(), number)
        if phase == "sum":
            reported(lambda: parallel.sum(torch.ones(3), "sum"))
        else:
            reported(lambda: parallel.gather(rank, "evaluation"))
        parallel.release()

    return work


def different_calls(rank: int) -> None:
    parallel = lives(rank)
    reported(lambda: parallel.gather(None, "this" if rank else "that"))


def test_a_gpu_is_named_to_the_process_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `Parallel` passes on for a card; without one nothing is bound."""
    import torch.distributed as dist

    asked: list[dict[str, object]] = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: False)
    monkeypatch.setattr(
        dist, "init_process_group", lambda backend, **k: asked.append({"backend": backend, **k})
    )
    monkeypatch.setattr(dist, "new_group", lambda **k: asked.append(k))
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: None)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: None)
    card = torch.device("cuda", 1)
    for device in (card, torch.device("cpu")):
        Parallel(device, timeout=7200.0).release()
    limit = timedelta(hours=2)
    assert asked == [
        {"backend": "cpu:gloo,cuda:nccl", "timeout": limit, "device_id": card},
        {"backend": "gloo", "timeout": limit},
        {"backend": "gloo", "timeout": limit, "device_id": None},
        {"backend": "gloo", "timeout": limit},
    ]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_the_last_engine_of_a_process_leaves_the_group(
    monkeypatch: pytest.MonkeyPatch, order: tuple[int, int]
) -> None:
    import torch.distributed as dist

    world: list[str] = []
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(dist, "is_initialized", lambda: bool(world))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **k: world.append(backend))
    monkeypatch.setattr(dist, "destroy_process_group", world.pop)
    monkeypatch.setattr(dist, "new_group", lambda **k: None)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: None)
    for _ in range(2):  # a group that was left can be joined anew
        both = [Parallel(torch.device("cpu")) for _ in range(2)]
        both[order[0]].release()
        both[order[0]].release()
        assert len(world) == 1
        both[order[1]].release()
        assert not world
    world.append("the caller's own")
    Parallel(torch.device("cpu")).release()
    assert len(world) == 1


def wakes_up(rank: int) -> None:
    """Rank 1 goes on when the others have given it up."""
    parallel = lives(rank)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGSTOP)
    reported(lambda: parallel.gather(rank, "evaluation"))
    parallel.release()


def unexpected(rank: int) -> None:
    """A bug on rank 2, inside two blocks, while the others wait in the inner one."""
    parallel = lives(rank)
    try:
        with parallel.together("outer"), parallel.together("inner"):
            if rank == 2:
                raise ZeroDivisionError("no luck")
            parallel.gather(None, "elsewhere")
    except (RankError, ZeroDivisionError) as error:
        print(type(error).__name__, error)
    print(parallel.gather(rank, "after"))


def alike(rank: int) -> None:
    """All ranks refuse the same: nobody is blamed."""
    parallel = lives(rank)
    try:
        with parallel.together("block"):
            raise FileNotFoundError(2, "No such file or directory", "a")
    except FileNotFoundError as error:
        print(error.filename)
    print(parallel.gather(rank, "after"))


def joins_late(late: int) -> Callable[[int], None]:
    """Rank 0 holds the store at which the others look for the ranks."""

    def work(rank: int) -> None:
        if rank == late:
            os.kill(os.getpid(), signal.SIGSTOP)
        try:
            lives(rank, 2.0)
        except RankError as error:
            print(error)

    return work


def drive(folder: Path) -> dict[str, list[tuple[int, str]]]:
    outcome = {}
    for name, work in {
        "killed": lost_in("evaluation", signal.SIGKILL),
        "stopped": lost_in("evaluation", signal.SIGSTOP),
        "killed before a sum": lost_in("sum", signal.SIGKILL),
        "different calls": different_calls,
        "unexpected": unexpected,
        "alike": alike,
        "wakes up": wakes_up,
        "joins late": joins_late(1),
        "first joins late": joins_late(0),
    }.items():
        ranks = fork_ranks(3, folder / name.replace(" ", "-"), work)
        lost = 0 if "first" in name else 1
        ends = {rank: ranks[rank].end() for rank in range(3) if rank != lost}
        ranks[lost].kill(signal.SIGCONT if name == "wakes up" else signal.SIGKILL)
        ends[lost] = ranks[lost].end()
        outcome[name] = [(ends[rank].code, ends[rank].output + ends[rank].errors) for rank in range(3)]
    return outcome


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> dict[str, list[tuple[int, list[str]]]]:
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "TORCH_CPP_LOG_LEVEL": "FATAL"}
    command = [sys.executable, __file__, str(tmp_path_factory.mktemp("meeting"))]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    return {name: [(code, text.splitlines()) for code, text in ranks] for name, ranks in outcome.items()}


LATE = f"not heard of for {TIMEOUT:g} s (engine.rank_timeout)"


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("killed", "evaluation: rank 1 ended"),
        ("killed before a sum", "sum: rank 1 ended"),
        ("stopped", f"evaluation: rank 1 {LATE}"),
        ("wakes up", f"evaluation: rank 1 {LATE}"),
    ],
)
def test_the_others_name_a_lost_rank(
    ends: dict[str, list[tuple[int, list[str]]]], name: str, line: str
) -> None:
    assert ends[name][0] == ends[name][2] == (0, [line, line])


def test_a_rank_that_wakes_up_is_told_that_it_is_alone(
    ends: dict[str, list[tuple[int, list[str]]]],
) -> None:
    assert ends["wakes up"][1] == (0, ["evaluation: ranks 0, 2 ended"] * 2)


@pytest.mark.parametrize(("name", "others"), [("joins late", (0, 2)), ("first joins late", (1, 2))])
def test_ranks_that_do_not_join_are_one_line(
    ends: dict[str, list[tuple[int, list[str]]]], name: str, others: tuple[int, int]
) -> None:
    for rank in others:
        code, [line] = ends[name][rank]
        assert code == 0
        assert line.startswith(f"rank {rank}: not all 3 ranks joined within 2 s (engine.rank_timeout): ")


def test_calls_that_do_not_match_are_refused(ends: dict[str, list[tuple[int, list[str]]]]) -> None:
    assert ends["different calls"] == [(0, ["ranks met for different things: that, this, this"] * 2)] * 3


def test_a_bug_on_one_rank_stays_itself_there(ends: dict[str, list[tuple[int, list[str]]]]) -> None:
    told = (0, ["RankError rank 2: ZeroDivisionError: no luck", "[0, 1, 2]"])
    assert ends["unexpected"] == [told, told, (0, ["ZeroDivisionError no luck", "[0, 1, 2]"])]


def test_what_all_refuse_stays_itself(ends: dict[str, list[tuple[int, list[str]]]]) -> None:
    assert ends["alike"] == [(0, ["a", "[0, 1, 2]"])] * 3


if __name__ == "__main__":
    print(json.dumps(drive(Path(sys.argv[1]))))
