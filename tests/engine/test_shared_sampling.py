"""Ranks that sample together: whoever samples what, the groups and the adapter are the same, bitwise."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.forked import Ended, fork_ranks
from proactor.engine import GRPO, Engine, EngineError, Group, LoRA, Sampling, faults, shared_sampling
from proactor.engine.work_queue import Pulse, WorkQueue

SETTINGS: dict[str, Any] = {
    "lora": LoRA(rank=4, alpha=8),
    "page_size": 4,
    "kv_tokens": 512,
    "max_batch": 4,
    "deterministic": True,
    "rank_timeout": 20.0,
}
LOST = (("unit.leased:2", 0), ("sampling:3", 1), ("unit.ended:1", 0), ("unit.done:1", 1), ("", 0), ("", 1))
"""Where a rank is lost ("": stopped), and which; rank 0 holds the store."""
UNITS = [0, 0, 1, 1, 1, 2, 3, 4, 4, 5, 6]
"""Prompts of one unit begin alike."""


def prompts() -> list[list[int]]:
    return [[3 + unit, 9, 2, 4 + unit, 8, *range(20, 20 + i % 4)] for i, unit in enumerate(UNITS)]


def opened(model: str, **changes: Any) -> Engine:
    engine = Engine.load(model, **{**SETTINGS, **changes})
    assert engine.trainer is not None
    engine.trainer.lora.flat.copy_(0.1 * (engine.trainer.lora.flat + 0.3).sin())
    return engine


def drawn(engine: Engine, after_each: Callable[[], object] = lambda: None) -> list[Group]:
    """This rank's groups of one shared call."""
    settings = [Sampling(n=2, max_tokens=4 + 5 * (i % 3)) for i in range(len(UNITS))]
    mine = []
    for group in engine.sample_shared(prompts(), settings, keys=range(50, 50 + len(UNITS)), units=UNITS):
        group.tree = UNITS[group.index]
        group.rewards = [float(sum(s.token_ids) % 7) for s in group.samples]
        mine.append(group)
        after_each()
    return mine


def content(groups: list[Group]) -> list[Any]:
    return sorted((g.index, g.prompt_ids, [[s.token_ids, s.logprobs] for s in g.samples]) for g in groups)


def steps(model: str, uneven: bool) -> Callable[[int], None]:
    """Two steps; ``uneven``: rank 0 stands still with its first group until the others did all the rest."""

    def work(rank: int) -> None:
        engine = opened(model)
        meeting = engine.parallel.meeting
        assert meeting is not None
        record: list[Any] = []
        started: list[int] = []

        def stand_still() -> None:
            state = WorkQueue((1.0,) * 7, 3)
            while True:
                seen = state.decode(meeting.store.get(f"{meeting.name}/queue/{meeting.queues - 1}"))
                if not started:
                    started.extend([*seen.held(0), *(item for item in seen.done if seen.done[item] == 0)])
                if not seen.waiting and seen.leases.keys() <= set(started):
                    return
                time.sleep(0.02)

        if uneven:
            shared_sampling.Pulse = partial(Pulse, lease=10**6)  # type: ignore[misc, assignment]
        for _ in range(2):
            started.clear()
            groups = drawn(engine, stand_still if uneven and rank == 0 else lambda: None)
            if uneven and rank == 0:
                assert {g.tree for g in groups} == set(started), "units are numbered as they come"
            versions = sorted({s.policy_version for g in groups for s in g.samples})
            everyone = engine.gather((content(groups), [g.index for g in groups], versions))
            stats = engine.train(groups, GRPO(lr=1e-2))
            assert engine.trainer is not None
            record.append(
                {
                    "groups": sorted(group for part, _, _ in everyone for group in part),
                    "shares": [indices for _, indices, _ in everyone],
                    "versions": [part for _, _, part in everyone],
                    "version": stats["policy_version"],
                    "adapter": engine.trainer.lora.flat.tolist(),
                }
            )
        record.append(engine.counters()["tokens_avoided_prefix"])
        print(json.dumps(record))
        engine.release()

    return work


def dies(model: str, lost: int, point: str) -> Callable[[int], None]:
    """Rank ``lost`` is killed at a point of its sampling ("": stopped); the others say why they end."""

    def work(rank: int) -> None:
        engine = opened(model, rank_timeout=60.0 if point else 6.0)

        def pause() -> None:
            time.sleep(0.1)
            if rank == lost and not point:
                os.kill(os.getpid(), signal.SIGSTOP)

        faults._plan = point if rank == lost else ""
        try:
            drawn(engine, pause)
            print("nothing")
        except EngineError as error:
            print(error)

    return work


def stalls(model: str) -> Callable[[int], None]:
    """Rank 1 stands still until its leases have ended, and goes on."""

    def work(rank: int) -> None:
        engine = opened(model)
        groups = drawn(engine, lambda: time.sleep(6 if rank == 1 else 0))
        everyone = engine.gather((content(groups), engine.counters()["roll_calls"]))
        stats = engine.train(groups, GRPO(lr=1e-2))
        assert engine.trainer is not None
        print(
            json.dumps(
                {
                    "groups": sorted(group for part, _ in everyone for group in part),
                    "calls": sum(calls for _, calls in everyone),
                    "adapter": engine.trainer.lora.flat.tolist(),
                    "version": stats["policy_version"],
                }
            )
        )

    return work


def hangs(model: str) -> Callable[[int], None]:
    """Rank 1's sampler hangs, while its heart goes on."""

    def work(rank: int) -> None:
        engine = opened(model, rank_timeout=10.0)

        def hang(ids: list[int], position: int) -> None:
            time.sleep(3600 if rank == 1 else 0)

        mine = engine.sample_shared(prompts(), Sampling(n=2, max_tokens=4, logit_mask=hang), units=UNITS)
        print(sorted(group.index for group in mine), flush=True)
        os._exit(0)  # the hanging thread would not let it

    return work


def refuses(model: str, what: str) -> Callable[[int], None]:
    """Rank 1 brings other prompts, settings or weights, fails, or breaks off."""

    def work(rank: int) -> None:
        engine = opened(model, rank_timeout=30.0)
        if what == "weights" and rank == 1:
            engine.weights_changed()
        ids = prompts()
        if rank == 1 and what == "prompts":
            ids[0] = [1, 2, 3]

        def fail(ids: list[int], position: int) -> None:
            raise ZeroDivisionError("no luck")

        settings = Sampling(
            n=2,
            max_tokens=4,
            temperature=0.5 if rank == 1 and what == "settings" else 1.0,
            logit_mask=fail if rank == 1 and what == "bug" else None,
        )
        began = time.monotonic()
        try:
            with engine.together("step"):
                for _ in engine.sample_shared(ids, settings, units=UNITS):
                    if rank == 1 and what == "reward":
                        raise EngineError("no reward")
        except (EngineError, ZeroDivisionError) as error:
            print(type(error).__name__, error)
        assert time.monotonic() - began < 25
        print(engine.gather(rank, "after"))

    return work


def drive(model: str, folder: Path) -> dict[str, list[Ended]]:
    scenes: dict[str, tuple[int, Callable[[int], None]]] = {
        f"{ranks} ranks": (ranks, steps(model, False)) for ranks in (2, 4)
    }
    scenes["uneven"] = 3, steps(model, True)
    scenes["stalls"] = 2, stalls(model)
    for point, lost in LOST:
        scenes[f"{point or 'stopped'} {lost}"] = 3, dies(model, lost, point)
    scenes["hangs"] = 2, hangs(model)
    for what in ("weights", "prompts", "settings", "bug", "reward"):
        scenes[what] = 2, refuses(model, what)
    outcome = {}
    for name, (count, work) in scenes.items():
        ranks = fork_ranks(count, folder / name.replace(" ", "-").replace(":", "-"), work)
        lost = int(name[-1]) if name[-2:] in (" 0", " 1") else None
        ends = {rank: ranks[rank].end() for rank in range(count) if rank != lost}
        if lost is not None:
            if "stopped" in name:
                ranks[lost].kill()
            ends[lost] = ranks[lost].end()
        outcome[name] = [ends[rank] for rank in range(count)]
    return outcome


@pytest.fixture(scope="module")
def ends(folder: Path, tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> dict[str, list[Ended]]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(repo_root),
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "FATAL",
    }
    command = [sys.executable, __file__, str(folder), str(tmp_path_factory.mktemp("shared"))]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: [Ended(*rank) for rank in ranks] for name, ranks in json.loads(done.stdout).items()}


def records(ends: list[Ended]) -> list[Any]:
    assert [end.code for end in ends] == [0] * len(ends), ends[0].errors
    return [json.loads(end.output) for end in ends]


@pytest.fixture(scope="module")
def alone(folder: Path) -> list[Any]:
    return two_steps_alone(str(folder))


def two_steps_alone(model: str) -> list[Any]:
    """Groups and adapter of two steps in one process, from `Engine.sample`."""
    engine, found = opened(model), []
    for _ in range(2):
        settings = [Sampling(n=2, max_tokens=4 + 5 * (i % 3)) for i in range(len(UNITS))]
        groups = engine.sample(prompts(), settings, keys=range(50, 50 + len(UNITS)))
        for group in groups:
            group.tree = UNITS[group.index]
            group.rewards = [float(sum(s.token_ids) % 7) for s in group.samples]
        plain = json.loads(json.dumps(content(groups)))
        engine.train(groups, GRPO(lr=1e-2))
        assert engine.trainer is not None
        found.append({"groups": plain, "adapter": engine.trainer.lora.flat.tolist()})
    assert found[0]["adapter"] != found[1]["adapter"]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ["2 ranks", "4 ranks", "uneven"])
def test_groups_and_adapter_do_not_depend_on_the_ranks(
    ends: dict[str, list[Ended]], alone: list[Any], name: str
) -> None:
    for *found, _ in records(ends[name]):
        for step, expected in zip(found, alone, strict=True):
            assert step["groups"] == expected["groups"]
            assert step["adapter"] == expected["adapter"]


def test_one_process_samples_alone(folder: Path, alone: list[Any]) -> None:
    engine = opened(str(folder))
    assert json.loads(json.dumps(content(drawn(engine)))) == alone[0]["groups"]
    with pytest.raises(EngineError, match=r"^sample_shared: 11 prompts with 1 units$"):
        engine.sample_shared(prompts(), units=[1])


@pytest.mark.slow
def test_a_unit_is_on_one_rank_and_every_rank_gets_some(ends: dict[str, list[Ended]]) -> None:
    """Group affinity: what the prompts of a unit share is computed once, on its rank."""
    for name in ("2 ranks", "4 ranks", "uneven"):
        (*found, _), *_ = records(ends[name])
        for step in found:
            ranks = defaultdict(set)
            for rank, indices in enumerate(step["shares"]):
                assert indices
                for index in indices:
                    ranks[UNITS[index]].add(rank)
            assert all(len(where) == 1 for where in ranks.values())
    (*found, avoided), *_ = records(ends["2 ranks"])
    mine = [index for step in found for index in step["shares"][0]]
    again = len(mine) - len({(i // len(UNITS), UNITS[index]) for i, index in enumerate(mine)})
    assert avoided > 0 or not again


@pytest.mark.slow
def test_the_others_do_what_a_slow_rank_has_not_begun(ends: dict[str, list[Ended]]) -> None:
    (*found, _), *_ = records(ends["uneven"])  # its rank 0 waits for that
    for step in found:
        assert sorted(index for indices in step["shares"] for index in indices) == list(range(len(UNITS)))


@pytest.mark.slow
def test_weights_stand_behind_a_barrier(ends: dict[str, list[Ended]]) -> None:
    """No rank samples with weights of another step than the others."""
    for name in ("2 ranks", "4 ranks", "uneven"):
        (*found, _), *_ = records(ends[name])
        for i, step in enumerate(found):
            assert step["version"] == i + 1
            assert step["versions"] == [[i]] * len(step["versions"])
    line = "RankError sampling: ranks came with weights of versions 0, 1\n[0, 1]\n"
    assert [end.output for end in ends["weights"]] == [line] * 2


@pytest.mark.slow
def test_a_rank_that_stalls_loses_its_leases_and_nothing_else(
    ends: dict[str, list[Ended]], alone: list[Any]
) -> None:
    for found in records(ends["stalls"]):
        assert found["calls"] >= 1
        assert found["groups"] == alone[0]["groups"] and found["adapter"] == alone[0]["adapter"]


@pytest.mark.slow
def test_a_sampler_that_hangs_loses_its_leases(ends: dict[str, list[Ended]]) -> None:
    assert [end.output for end in ends["hangs"]] == [f"{list(range(len(UNITS)))}\n", "[]\n"]


@pytest.mark.slow
@pytest.mark.parametrize(("point", "lost"), [scene for scene in LOST if scene[0]])
def test_a_rank_that_dies_while_sampling_is_named(
    ends: dict[str, list[Ended]], point: str, lost: int
) -> None:
    for rank, end in enumerate(ends[f"{point} {lost}"]):
        if rank == lost:
            assert end.code == -signal.SIGKILL
        else:
            assert end == (0, f"sampling: rank {lost} ended\n", "")


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_a_rank_that_is_stuck_while_sampling_is_named(ends: dict[str, list[Ended]], lost: int) -> None:
    line = f"sampling: rank {lost} not heard of for 6 s (engine.rank_timeout)\n"
    assert [end[:2] for rank, end in enumerate(ends[f"stopped {lost}"]) if rank != lost] == [(0, line)] * 2


@pytest.mark.slow
def test_what_one_rank_refuses_or_fails_at_all_hear_of(ends: dict[str, list[Ended]]) -> None:
    after = "\n[0, 1]\n"
    different = f"RankError sampling: ranks came with different prompts or settings{after}"
    assert [end.output for what in ("prompts", "settings") for end in ends[what]] == [different] * 4
    assert [end.output for end in ends["bug"]] == [
        f"RankError rank 1: ZeroDivisionError: no luck{after}",
        f"ZeroDivisionError no luck{after}",
    ]
    assert [end.output for end in ends["reward"]] == [f"RankError rank 1: no reward{after}"] * 2


if __name__ == "__main__":
    print(json.dumps(drive(sys.argv[1], Path(sys.argv[2]))))
