"""A group reward at work: beside the caller or after it, in any order, failing, and called off."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.dialogue.candidates import Candidates, Stage
from proactor.rewards import RewardError, RewardWorker, Scored
from tests.proactor.rewards.fakes import ByText, group, length

STAGE = Stage(1, 4)


@pytest.mark.parametrize("concurrent", [True, False])
@given(order=st.permutations(range(5)))
def test_scores_go_by_place_whatever_the_order(concurrent: bool, order: Sequence[int]) -> None:
    reward = ByText(length, lambda c: c.turn != 5, concurrent)
    judging = RewardWorker("mine", reward)
    for _ in range(2):
        with judging.round(STAGE) as judged:
            for place in order:
                judged.add(place, group("x" * place, turn=place + 1))
            found = judged.finish()
        assert [None if s is None else s[0]["reward"] for s in found.values()] == [0.0, 0.25, 0.5, 0.75, None]
        assert list(found) == list(range(5)) and judged.counters == {"groups": 5, "lost": 1}
    judging.close()
    assert reward.counters == {"groups": 10, "lost": 2}


def test_a_concurrent_reward_works_while_the_caller_does() -> None:
    begun = threading.Event()

    class Slow(ByText):
        async def score(self, candidates: Candidates, stage: Stage) -> Scored:
            begun.set()
            return await super().score(candidates, stage)

    judging = RewardWorker("slow", Slow(length))
    with judging.round(STAGE) as judged:
        judged.add(0, group())
        assert begun.wait(5), "nothing happens before finish"
        assert judged.finish()[0] is not None
    assert judged.seconds > 0 and judged.waited <= judged.seconds + 1
    judging.close()


def test_a_reward_in_process_waits_for_all_and_runs_in_this_thread() -> None:
    where: list[tuple[int, threading.Thread]] = []

    class Batch(ByText):
        async def score_all(self, groups: Sequence[Candidates], stage: Stage) -> list[Scored]:
            where.append((len(groups), threading.current_thread()))
            return await super().score_all(groups, stage)

    judging = RewardWorker("batch", Batch(length, concurrent=False))
    with judging.round(STAGE) as judged:
        for place in range(3):
            judged.add(place, group())
        assert not where
        judged.finish()
    assert where == [(3, threading.main_thread())]


def test_one_loop_serves_all_rounds_and_ends_with_close() -> None:
    loops: set[int] = set()

    class Loops(ByText):
        async def score(self, candidates: Candidates, stage: Stage) -> Scored:
            loops.add(id(asyncio.get_running_loop()))
            return None

    judging = RewardWorker("loops", Loops(length))
    for _ in range(3):
        with judging.round(STAGE) as judged:
            judged.add(0, group())
            assert judged.finish() == {0: None}
    assert len(loops) == 1 and any(t.name == "reward-worker" for t in threading.enumerate())
    judging.close()
    judging.close()
    assert not any(t.name == "reward-worker" for t in threading.enumerate())


def test_what_is_left_is_called_off() -> None:
    cancelled = threading.Event()

    class Never(ByText):
        async def score(self, candidates: Candidates, stage: Stage) -> Scored:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                cancelled.set()
                raise
            return None

    judging = RewardWorker("never", Never(length))
    with pytest.raises(KeyError), judging.round(STAGE) as judged:
        judged.add(0, group())
        raise KeyError("sampling failed")
    assert cancelled.wait(5)
    judging.close()


def constant(value: object) -> Callable[[str], float]:
    return lambda text: value  # type: ignore[return-value]


@pytest.mark.parametrize("concurrent", [True, False])
def test_scores_that_cannot_be_used_are_named(concurrent: bool) -> None:
    class Short(ByText):
        async def score(self, candidates: Candidates, stage: Stage) -> Scored:
            return [{"reward": 1.0}]

    class Few(ByText):
        async def score_all(self, groups: Sequence[Candidates], stage: Stage) -> list[Scored]:
            return []

    rewards = [
        (ByText(constant(math.nan), concurrent=concurrent), "reward 'mine' gave nan for completion 0"),
        (ByText(constant("high"), concurrent=concurrent), "reward 'mine' gave 'high' for completion 0"),
        (Short(length, concurrent=concurrent), "reward 'mine' gave 1 values for 3 completions"),
    ]
    if not concurrent:
        rewards.append((Few(length, concurrent=False), "reward 'mine' scored 0 groups of 1"))
    for reward, message in rewards:
        judging = RewardWorker("mine", reward)
        with pytest.raises(RewardError, match=message), judging.round(STAGE) as judged:
            judged.add(0, group())
            judged.finish()
        judging.close()
