"""A group reward at work: beside the caller or after it, in any order, failing, and called off."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.dialogue.candidates import Candidates
from proactor.rewards import GroupScores, RewardError, RewardWorker
from proactor.rewards.schedule import TrainingProgress
from tests.proactor.rewards.group_rewards import ByText, group, length

PROGRESS = TrainingProgress(1, 4)


@pytest.mark.parametrize("concurrent", [True, False])
@given(order=st.permutations(range(5)))
def test_scores_go_by_place_whatever_the_order(concurrent: bool, order: Sequence[int]) -> None:
    reward = ByText(length, lambda c: c.turn != 5, concurrent)
    worker = RewardWorker("mine", reward)
    for _ in range(2):
        with worker.round(PROGRESS) as scoring:
            for place in order:
                scoring.add(place, group("x" * place, turn=place + 1))
            result = scoring.finish()
        assert [None if s is None else s[0]["reward"] for s in result.values()] == [
            0.0,
            0.25,
            0.5,
            0.75,
            None,
        ]
        assert list(result) == list(range(5)) and scoring.counters == {"groups": 5, "lost": 1}
    worker.close()
    assert reward.counters == {"groups": 10, "lost": 2}


def test_a_concurrent_reward_works_while_the_caller_does() -> None:
    begun = threading.Event()

    class Slow(ByText):
        async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
            begun.set()
            return await super().score(candidates, progress)

    worker = RewardWorker("slow", Slow(length))
    with worker.round(PROGRESS) as scoring:
        scoring.add(0, group())
        assert begun.wait(5), "nothing happens before finish"
        assert scoring.finish()[0] is not None
    assert scoring.seconds > 0 and scoring.waited <= scoring.seconds + 1
    worker.close()


def test_a_reward_in_process_waits_for_all_and_runs_in_this_thread() -> None:
    where: list[tuple[int, threading.Thread]] = []

    class Batch(ByText):
        async def score_all(
            self, groups: Sequence[Candidates], progress: TrainingProgress
        ) -> list[GroupScores]:
            where.append((len(groups), threading.current_thread()))
            return await super().score_all(groups, progress)

    worker = RewardWorker("batch", Batch(length, concurrent=False))
    with worker.round(PROGRESS) as scoring:
        for place in range(3):
            scoring.add(place, group())
        assert not where
        scoring.finish()
    assert where == [(3, threading.main_thread())]


def test_one_loop_serves_all_rounds_and_ends_with_close() -> None:
    loops: set[int] = set()

    class Loops(ByText):
        async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
            loops.add(id(asyncio.get_running_loop()))
            return None

    worker = RewardWorker("loops", Loops(length))
    for _ in range(3):
        with worker.round(PROGRESS) as scoring:
            scoring.add(0, group())
            assert scoring.finish() == {0: None}
    assert len(loops) == 1 and any(t.name == "reward-worker" for t in threading.enumerate())
    worker.close()
    worker.close()
    assert not any(t.name == "reward-worker" for t in threading.enumerate())


def test_what_is_left_is_called_off() -> None:
    cancelled = threading.Event()

    class Never(ByText):
        async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return None

    worker = RewardWorker("never", Never(length))
    with pytest.raises(KeyError), worker.round(PROGRESS) as scoring:
        scoring.add(0, group())
        raise KeyError("sampling failed")
    assert cancelled.wait(5)
    worker.close()


def constant(value: object) -> Callable[[str], float]:
    return lambda text: value  # type: ignore[return-value]


@pytest.mark.parametrize("concurrent", [True, False])
def test_scores_that_cannot_be_used_are_named(concurrent: bool) -> None:
    class Short(ByText):
        async def score(self, candidates: Candidates, progress: TrainingProgress) -> GroupScores:
            return [{"reward": 1.0}]

    class Few(ByText):
        async def score_all(
            self, groups: Sequence[Candidates], progress: TrainingProgress
        ) -> list[GroupScores]:
            return []

    rewards = [
        (ByText(constant(math.nan), concurrent=concurrent), "reward 'mine' gave nan for completion 0"),
        (ByText(constant("high"), concurrent=concurrent), "reward 'mine' gave 'high' for completion 0"),
        (Short(length, concurrent=concurrent), "reward 'mine' gave 1 values for 3 completions"),
    ]
    if not concurrent:
        rewards.append((Few(length, concurrent=False), "reward 'mine' scored 0 groups of 1"))
    for reward, message in rewards:
        worker = RewardWorker("mine", reward)
        with pytest.raises(RewardError, match=message), worker.round(PROGRESS) as scoring:
            scoring.add(0, group())
            scoring.finish()
        worker.close()
