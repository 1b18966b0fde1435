"""A rank without work trains on its groups while others sample: the same bits as without, and no hang."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.forked import Ended, fork_ranks
from proactor.engine import GRPO, SFT, EarlyGradient, Engine, EngineError, Group, Sampling, shared_sampling
from proactor.engine.trainer import Trainer
from proactor.engine.work_queue import Pulse, SharedQueue
from tests.engine.test_shared_sampling import UNITS, opened, prompts

TRAIN = GRPO(lr=1e-2)
SLOW = 1
FEW = [index for index, unit in enumerate(UNITS) if unit < 2]
"""Prompts of two units: with four ranks two have nothing."""


class Log:
    """What happened on all ranks, in order: "what rank", kept in the ranks' store."""

    def __init__(self, engine: Engine) -> None:
        assert engine.parallel.meeting is not None
        self.store, self.rank = engine.parallel.meeting.store, engine.rank

    def note(self, what: str) -> None:
        event = f"{what} {self.rank}"
        self.store.set(f"event {self.store.add('events', 1)}", event)
        self.store.set(event, "")

    def wait(self, events: list[str]) -> None:
        for _ in range(6000):  # not `store.wait`, which would keep this rank's other thread out
            if self.store.check(events):
                return
            time.sleep(0.01)
        raise AssertionError(f"none of {events}")

    def read(self) -> list[str]:
        return [self.store.get(f"event {i + 1}").decode() for i in range(self.store.add("events", 0))]


def sampled(
    engine: Engine, chosen: list[int], early: EarlyGradient | None, mask: Callable[..., None]
) -> list[Group]:
    """This rank's groups of one shared call, added to ``early`` when it has nothing to do."""
    kept: dict[int, Group] = {}

    def idle() -> bool:
        if early is not None:
            early.add([kept[index] for index in sorted(kept)])
        return False

    every = prompts()
    settings = [Sampling(n=2, max_tokens=4 + 5 * (i % 3), logit_mask=mask) for i in chosen]
    keys, units = [50 + i for i in chosen], [UNITS[i] for i in chosen]
    for group in engine.sample_shared([every[i] for i in chosen], settings, keys, units, idle):
        group.tree = units[group.index]
        group.rewards = [float(sum(s.token_ids) % 7) for s in group.samples]
        kept[group.index] = group
    return [kept[index] for index in sorted(kept)]


def watch_gradients(log: Log, what: Callable[[], str] = lambda: "gradient") -> None:
    plain = Trainer.forward_backward

    def watched(self: Trainer, *arguments: Any, **options: Any) -> Any:
        tally = plain(self, *arguments, **options)
        log.note(what())
        return tally

    Trainer.forward_backward = watched  # type: ignore[method-assign]


def overlaps(model: str, chosen: list[int], trained: list[int], count: int) -> Callable[[int], None]:
    """Two steps. In each the slow rank draws no token before the ranks ``trained`` have their gradient."""

    def work(rank: int) -> None:
        engine, step = opened(model), 0
        log = Log(engine) if count > 1 else None
        if log is not None:
            watch_gradients(log, lambda: f"gradient {step}")
        record: list[Any] = []

        def mask(ids: list[int], position: int) -> None:
            if log is not None and rank == SLOW:
                log.wait([f"gradient {step} {other}" for other in trained])

        for step in range(2):
            early = engine.early_gradient(TRAIN)
            assert (early is None) == (count == 1)
            groups = sampled(engine, chosen, early, mask)
            if log is not None:
                log.note(f"sampled {step}")
            stats = engine.train(groups, TRAIN) if early is None else early.train(groups)
            assert engine.trainer is not None
            record.append([stats, engine.trainer.lora.flat.tolist(), len(groups)])
        engine.barrier("end")
        print(json.dumps([record, log.read() if log is not None and rank == 0 else []]))
        engine.barrier("read")
        engine.release()

    return work


def takes_over(model: str) -> Callable[[int], None]:
    """Once rank 0 has its gradient, the slow rank's heart stops: rank 0 gets what it had on lease."""

    def work(rank: int) -> None:
        engine = opened(model)
        log = Log(engine)
        watch_gradients(log)
        shared_sampling.BEAT = 0.05
        shared_sampling.Pulse = partial(Pulse, lease=3)  # type: ignore[misc, assignment]
        plain = SharedQueue.beat

        def beat(self: SharedQueue) -> list[int]:
            stands = rank == SLOW and log.store.check(["gradient 0"])
            return [self._store.add(heart, 0) for heart in self._hearts] if stands else plain(self)

        SharedQueue.beat = beat  # type: ignore[method-assign]

        def mask(ids: list[int], position: int) -> None:
            if rank == SLOW:
                log.wait(["sampled 0"])

        early = engine.early_gradient(TRAIN)
        assert early is not None
        groups = sampled(engine, list(range(len(UNITS))), early, mask)
        if rank == 0:
            log.note("sampled")
        early.train(groups)
        assert engine.trainer is not None
        print(json.dumps([engine.trainer.lora.flat.tolist(), len(groups), engine.counters()["roll_calls"]]))
        engine.barrier("end")

    return work


def fails(model: str, lost: int) -> Callable[[int], None]:
    """Rank 0's pass fails while the slow rank samples, or the slow rank's sampling after rank 0's pass."""

    def work(rank: int) -> None:
        engine = opened(model, rank_timeout=60.0)
        log = Log(engine)
        watch_gradients(log)
        if rank == lost == 0:

            def broken(*arguments: Any, **options: Any) -> Any:
                raise ZeroDivisionError("no luck")

            Trainer._accumulate = broken  # type: ignore[method-assign]

        def mask(ids: list[int], position: int) -> None:
            if rank == SLOW and lost == 0:
                log.wait([f"heard {SLOW}"])
            if rank == SLOW == lost:
                log.wait(["gradient 0"])
                raise ZeroDivisionError("no luck")

        early = engine.early_gradient(TRAIN)
        try:
            sampled(engine, list(range(len(UNITS))), early, mask)
        except (EngineError, ZeroDivisionError) as error:
            print(type(error).__name__, error)
            log.note("heard")
        print(engine.gather(rank, "after"))

    return work


def drive(model: str, folder: Path) -> dict[str, list[Ended]]:
    every = list(range(len(UNITS)))
    scenes: dict[str, tuple[int, Callable[[int], None]]] = {
        "1": (1, overlaps(model, every, [], 1)),
        "2": (2, overlaps(model, every, [0], 2)),
        "4": (4, overlaps(model, every, [0, 2, 3], 4)),
        "few on 1": (1, overlaps(model, FEW, [], 1)),
        "few on 4": (4, overlaps(model, FEW, [0], 4)),
        "takes over": (2, takes_over(model)),
        "pass fails": (2, fails(model, 0)),
        "sampling fails": (2, fails(model, SLOW)),
    }
    return {
        name: [rank.end() for rank in fork_ranks(count, folder / name, work)]
        for name, (count, work) in scenes.items()
    }


@pytest.fixture(scope="module")
def ends(folder: Path, tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> dict[str, list[Ended]]:
    environment = {**os.environ, "PYTHONPATH": str(repo_root), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(folder), str(tmp_path_factory.mktemp("early"))]
    done = subprocess.run(command, cwd=repo_root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: [Ended(*rank) for rank in ranks] for name, ranks in json.loads(done.stdout).items()}


def records(ends: list[Ended]) -> list[Any]:
    assert [end.code for end in ends] == [0] * len(ends), [end.errors for end in ends]
    return [json.loads(end.output) for end in ends]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "alone", "trained"), [("2", "1", [0]), ("4", "1", [0, 2, 3]), ("few on 4", "few on 1", [0])]
)
def test_a_rank_has_its_gradient_before_a_slow_one_has_sampled(
    ends: dict[str, list[Ended]], name: str, alone: str, trained: list[int]
) -> None:
    """And adapter and statistics are those of one process, which waits for all groups."""
    [[wanted, _]], found = records(ends[alone]), records(ends[name])
    events = found[0][1]
    for step in range(2):
        for rank in trained:
            assert events.index(f"gradient {step} {rank}") < events.index(f"sampled {step} {SLOW}")
        for record, _ in found:
            stats, adapter, _ = record[step]
            assert adapter == wanted[step][1]
            for key in stats.keys() - {"tokens_avoided", "tokens_computed"}:
                assert stats[key] == pytest.approx(wanted[step][0][key], rel=1e-6), key
        counts = [record[step][2] for record, _ in found]
        assert sum(counts) == wanted[step][2]
        if name == "few on 4":
            assert sorted(counts)[:2] == [0, 0]
    assert wanted[0][1] != wanted[1][1]


@pytest.mark.slow
def test_what_comes_to_a_rank_after_its_gradient_is_added_to_it(ends: dict[str, list[Ended]]) -> None:
    [[wanted, _]], [first, slow] = records(ends["1"]), records(ends["takes over"])
    assert first[0] == slow[0] == wanted[0][1]
    assert (first[1], slow[1]) == (len(UNITS), 0) and first[2] >= 1


@pytest.mark.slow
def test_a_failure_meanwhile_reaches_the_other_rank(ends: dict[str, list[Ended]]) -> None:
    own, told, after = "ZeroDivisionError no luck", "ZeroDivisionError: no luck", "\n[0, 1]\n"
    first, slow = ends["pass fails"]
    assert first.output == own + after and slow.output == f"RankError rank 0: {told}{after}"
    first, slow = ends["sampling fails"]
    assert first.output == f"RankError rank {SLOW}: {told}{after}" and slow.output == own + after


# -- one process ---


def by_hand(engine: Engine, config: GRPO = TRAIN) -> EarlyGradient:
    trainer, weights = engine._learner()
    return EarlyGradient(trainer, engine._policy, weights, engine._loop, config)


def drawn(engine: Engine) -> list[Group]:
    groups = engine.sample(prompts(), Sampling(n=2, max_tokens=6))
    for group in groups:
        group.tree, group.rewards = UNITS[group.index], [float(sum(s.token_ids) % 7) for s in group.samples]
    return groups


def adapter(engine: Engine) -> torch.Tensor:
    assert engine.trainer is not None
    return engine.trainer.lora.flat.clone()


@pytest.mark.parametrize(
    ("changes", "possible"),
    [
        ({}, True),
        ({"old_policy": "recomputed", "beta": 0.1, "normalizer": "constant", "advantages": "rloo"}, True),
        ({"epochs": 2}, False),
        ({"minibatches": 2}, False),
        ({"advantages": "reinforce"}, False),
        ({"advantages": "reinforce_baseline"}, False),
    ],
)
def test_which_settings_wait_for_all_ranks(folder: Path, changes: dict[str, Any], possible: bool) -> None:
    config = GRPO(lr=1e-2, **changes)
    assert EarlyGradient.possible(config) == possible
    if possible:
        engine, whole = opened(str(folder)), opened(str(folder))
        groups, early = drawn(engine), by_hand(engine, config)
        engine.forward_backward(groups[:1], lambda logprobs, batch: logprobs.sum())  # a left-over
        early.add(groups[:2])
        early.add(groups[:5])
        stats, wanted = early.train(groups), whole.train(drawn(whole), config)
        assert torch.equal(adapter(engine), adapter(whole)) and stats == pytest.approx(wanted, rel=1e-6)


def test_it_takes_the_memory_of_the_cache_once_nothing_is_in_flight(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened(str(folder))
    groups, early = drawn(engine), by_hand(engine)
    monkeypatch.setattr(type(engine._policy.budgets), "fits_beside", lambda *_: False)
    held: list[int] = []
    begun, added = threading.Event(), threading.Event()

    def mask(ids: list[int], position: int) -> None:
        begun.set()
        assert added.wait(60)
        held.append(engine.memory()["kv"])

    with ThreadPoolExecutor() as pool:
        settings = Sampling(max_tokens=5, logit_mask=mask, ignore_eos=True)
        sampling = pool.submit(engine.sample, [[1, 2, 3]], settings)
        assert begun.wait(60)
        early.add(groups)
        added.set()
        sampling.result()
    early.train(groups)
    assert len(held) == 5 and all(held) and engine.memory()["kv"] == 0


def test_what_does_not_belong_together_is_refused(folder: Path) -> None:
    engine = opened(str(folder))
    assert engine.early_gradient(TRAIN) is None, "one rank has nobody to wait for"
    groups, early = drawn(engine), by_hand(engine)
    early.add(groups[:2])
    before = adapter(engine)
    with pytest.raises(EngineError, match=r"^train: 1 groups that were added early are missing$"):
        early.train(groups[1:])
    engine.weights_changed()
    with pytest.raises(EngineError, match=r"^train: the weights have changed since groups were added early$"):
        early.train(groups)
    assert torch.equal(adapter(engine), before)
    lost = by_hand(engine)
    lost.add(groups[:2])
    lost._passes[0].wait()
    engine.zero_grad()
    with pytest.raises(
        EngineError, match=r"^train: what was added early is gone: a step, zero_grad or a resume"
    ):
        lost.train(groups)
    again = by_hand(engine)
    groups[0].samples[0].reward = float("nan")
    again.add(groups[:1])
    for call in (again.train, again.add):
        with pytest.raises(EngineError, match=r"^group 0, sample 0: reward is nan"):
            call(groups)


def test_it_makes_one_step(folder: Path) -> None:
    engine = opened(str(folder))
    with pytest.raises(EngineError, match="early_gradient: config"):
        engine.early_gradient(SFT())  # type: ignore[arg-type]
    groups, early = drawn(engine), by_hand(engine)
    early.train(groups)
    for call in (early.train, early.add):
        with pytest.raises(EngineError, match="its step was made"):
            call(groups)


if __name__ == "__main__":
    print(json.dumps(drive(sys.argv[1], Path(sys.argv[2]))))
