"""The host: what a turn leads to, and that the trouble of one environment stays its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.environments import global_random
from proactor.environments.clock import in_line
from proactor.environments.host import Answer, Host, HostConfig, HostedEpisode
from proactor.environments.protocol import Call, Outcome
from tests.proactor.environments.worlds import RELEASE, Counting, Gym

ACTION, ANSWER = Call("action", "x"), Call("answer", "y")


@pytest.fixture(autouse=True)
def _release() -> Iterator[None]:
    RELEASE.clear()
    yield
    RELEASE.set()


def numpy_state() -> list[int]:
    return np.random.get_state()[1].tolist()  # noqa: NPY002


async def turns(host: Host, task: str, *replies: list[Call], seed: int = 0) -> list[Answer]:
    episode = await host.begin(task, seed)
    answers = [await episode.step(calls) for calls in replies]
    episode.close()
    return answers


def play(task: str, *replies: list[Call], **options: object) -> tuple[list[Answer], Host]:
    host = Host(Gym(), HostConfig(**options))
    return asyncio.run(turns(host, task, *replies)), host


def test_an_episode_to_its_end() -> None:
    answers, host = play("fine", [ACTION], [ANSWER], [ACTION], [ACTION])
    assert [a.observations for a in answers] == [("action 1",), ("answer 2",), ("action 3",), ()]
    assert [a.reward for a in answers] == [0.1, 0.2, 0.3, 0.0]
    assert [a.user_involved for a in answers] == [False, True, False, False]
    assert [a.ending for a in answers] == [None, None, "terminated", "terminated"]
    assert host.counters["turns"] == 3 and host.seconds > 0
    turn = answers[1].turn([ANSWER], (5, 9), (9, 12))
    assert (turn.verb, turn.reward, turn.user_involved, turn.feedback) == ("answer", 0.2, True, "answer 2")
    assert (turn.action, turn.observation) == ((5, 9), (9, 12))


def test_a_reply_without_a_call_ends_the_episode_with_reward_0() -> None:
    answers, host = play("fine", [ACTION], [], [ACTION])
    assert answers[1] == Answer(ending="no_call")
    assert answers[2].ending == "no_call" and host.counters["no_call"] == 1


def test_of_several_calls_all_run_and_the_last_reward_counts() -> None:
    answers, host = play("fine", [ANSWER, ACTION])
    assert answers[0].observations == ("answer 1", "action 2")
    assert (answers[0].reward, answers[0].user_involved, answers[0].ending) == (0.2, True, None)
    assert answers[0].feedback == "answer 1\naction 2" and host.counters["several_calls"] == 1


@pytest.mark.parametrize(("wished", "turns"), [(None, 5), (2, 2), (30, 5)])
def test_an_episode_has_no_more_turns_than_its_gym_gives(wished: int | None, turns: int) -> None:
    """Its worlds end there, whatever is wished for: a longer horizon would be wrong."""
    host = Host(Gym(), HostConfig(max_turns=wished))
    assert host.max_turns == host.config.turns(host.gym) == turns


def test_user_actions_are_counted_by_the_calls_that_ran() -> None:
    answers, _ = play("fine", [ANSWER, ACTION], [ANSWER, ANSWER, ANSWER])
    assert [(a.ran, a.user_involved) for a in answers] == [(2, 1), (1, 1)]
    turns = [a.turn([ANSWER] * 3, (0, 1), (1, 1)) for a in answers]
    assert [turn.actions for turn in turns] == [2, 1] and Answer().turn([], (0, 1), (1, 1)).actions == 1
    failed, _ = play("raises", [ACTION, ANSWER, ANSWER])
    assert (failed[0].ran, failed[0].user_involved, failed[0].ending) == (2, 1, "error")


def test_calls_after_the_one_that_ended_the_episode_do_not_run() -> None:
    answers, host = play("fine", [ACTION] * 5)
    assert len(answers[0].observations) == 3 and answers[0].reward == 0.3
    assert answers[0].ending == "terminated" and host.counters["calls_after_end"] == 2


def test_the_reward_line_is_shown_only_on_demand() -> None:
    assert play("fine", [ACTION], show_reward=True)[0][0].feedback == "action 1\nReward: 0.1"
    assert "Reward" not in play("fine", [ACTION])[0][0].feedback


def test_an_observation_is_always_utf8() -> None:
    answers, host = play("fine", [Call("half \ud83d")], [ACTION])
    assert answers[0].feedback == "half ? 1" and host.counters["repaired_utf8"] == 1


def test_the_host_caps_the_turns() -> None:
    answers, _ = play("long", *[[ACTION]] * 6)
    assert [a.ending for a in answers] == [None] * 4 + ["turns"] * 2
    assert play("long", [ACTION], max_turns=1)[0][0].ending == "turns"


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("raises", "raises: KeyError: 'lost\\nand more'"),
        ("exits", "exits: SystemExit: 3"),
        ("nan", "nan: the reward is nan, no finite number"),
        ("huge", f"huge: the reward is {10**400}, no finite number"),
        ("score", "score: the score is 'good', no finite number"),
        ("info", "info: the info is NoneType instead of a mapping"),
        ("text", "text: step returned str instead of Outcome"),
        ("observation", "observation: the observation is bytes instead of str"),
    ],
)
def test_what_misbehaves_ends_its_own_episode_alone(task: str, said: str) -> None:
    async def both() -> tuple[list[Answer], list[Answer], Host]:
        host = Host(Gym())
        bad, fine = await asyncio.gather(
            turns(host, task, [ACTION], [ACTION], [ACTION]), turns(host, "fine", *[[ACTION]] * 3)
        )
        return bad, fine, host

    bad, fine, host = asyncio.run(both())
    assert [a.ending for a in bad] == [None, "error", "error"]
    assert bad[1].error == said and bad[1].reward == 0 and bad[1].observations == ()
    assert fine[-1].ending == "terminated" and host.counters["errors"] == 1


@pytest.mark.parametrize(
    ("task", "said"), [("reset", "RuntimeError: no reset"), ("absent", "absent: no task 'absent'")]
)
def test_an_environment_that_cannot_be_had_ends_its_episode_before_the_first_turn(
    task: str, said: str
) -> None:
    async def begin() -> HostedEpisode:
        return await Host(Gym()).begin(task, 0)

    episode = asyncio.run(begin())
    assert episode.ending == "error" and episode.error.endswith(said)


def test_one_that_hangs_holds_up_neither_the_loop_nor_the_others() -> None:
    async def both() -> tuple[list[Answer], bool, list[Answer]]:
        host = Host(Gym(), HostConfig(timeout=1))
        hanging = asyncio.ensure_future(turns(host, "hangs", [ACTION], [ACTION]))
        fine = await turns(host, "fine", *[[ACTION]] * 3)
        return fine, hanging.done(), await hanging

    fine, over, hanging = asyncio.run(both())
    assert fine[-1].ending == "terminated" and not over
    assert hanging[1].ending == "timeout" and hanging[1].error == "hangs: no answer within 1 s"


def test_the_same_in_processes_which_are_used_again_unless_one_hangs() -> None:
    async def episodes() -> tuple[list[list[Answer]], list[set[int]]]:
        async with Host(Gym(), HostConfig(workers="processes", timeout=5)) as host:
            played, processes = [], []
            for task in ("fine", "raises", "hangs", "drawing"):
                played.append(await turns(host, task, [ACTION], [ACTION], [ACTION]))
                processes.append({child.pid for child in multiprocessing.active_children()})
            return played, processes

    before = random.getstate()
    (fine, raises, hangs, drawing), processes = asyncio.run(episodes())
    assert fine[-1].ending == "terminated" and [a.ending for a in raises] == [None, "error", "error"]
    assert hangs[1].ending == "timeout" and drawing[0].ending is None
    assert processes[0] == processes[1] and processes[2] == set() and len(processes[3]) == 1
    assert random.getstate() == before
    assert not multiprocessing.active_children()


def test_a_process_that_comes_back_to_a_closed_host_ends() -> None:
    """As where one episode of several raises: the host is left before the others are."""

    async def left() -> HostedEpisode:
        async with Host(Gym(), HostConfig(workers="processes")) as host:
            episode = await host.begin("long", 0)
        episode.close()
        return episode

    assert asyncio.run(left()).ending == "cancelled" and not multiprocessing.active_children()


class Asking(Counting):
    """Answers with what a user says, who answers one after the other."""

    line = threading.Semaphore(1)

    def step(self, call: Call) -> Outcome:
        with in_line():
            self.line.acquire()
        try:
            time.sleep(float(call.content))
        finally:
            self.line.release()
        return super().step(call)


class AskingGym(Gym):
    def make(self, task: str) -> Asking:
        return Asking()


@pytest.mark.parametrize(("seconds", "ending"), [("0.4", None), ("1.8", "timeout")])
def test_a_wait_in_line_for_the_user_is_not_the_environments(seconds: str, ending: str | None) -> None:
    """Five calls of 0.4 s take 2 s in a line; each has 1.2."""
    many = 5 if ending is None else 1

    async def together() -> list[list[Answer]]:
        host = Host(AskingGym(), HostConfig(timeout=1.2))
        return await asyncio.gather(*(turns(host, "fine", [Call("action", seconds)]) for _ in range(many)))

    assert {answers[0].ending for answers in asyncio.run(together())} == {ending}


def test_a_time_limit_that_a_config_names_is_kept() -> None:
    assert HostConfig().patient(150).timeout == 180
    assert HostConfig(timeout=30).patient(150).timeout == 30
    assert HostConfig(show_reward=True).model_copy(update={"show_reward": False}).patient(5).timeout == 35


def test_global_random_state_is_untouched_and_draws_depend_on_the_seed_alone() -> None:
    async def together() -> list[list[Answer]]:
        host = Host(Gym(), HostConfig(isolate_random=True))
        episodes = [turns(host, "drawing", *[[ACTION]] * 3, seed=seed) for seed in (1, 2, 1)]
        return await asyncio.gather(*episodes)

    before = random.getstate(), numpy_state()
    first, second, again = asyncio.run(together())
    assert (random.getstate(), numpy_state()) == before
    assert [a.feedback for a in first] == [a.feedback for a in again]
    assert [a.feedback for a in first] != [a.feedback for a in second]
    assert len({a.feedback for a in first}) == 3


def test_a_hanging_use_of_the_global_generators_is_taken_away() -> None:
    async def both() -> tuple[list[Answer], list[Answer]]:
        host = Host(Gym(), HostConfig(isolate_random=True, timeout=1))
        hanging = await turns(host, "hangs", [ACTION], [ACTION])
        return hanging, await turns(host, "drawing", [ACTION])

    before = random.getstate()
    hanging, drawing = asyncio.run(both())
    assert hanging[1].ending == "timeout" and drawing[0].ending is None
    assert random.getstate() == before


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5), st.integers(0, 5))
def test_a_branch_goes_on_as_the_episode_did(calls: list[int], at: int) -> None:
    async def branched() -> None:
        host = Host(Gym())
        episode = await host.begin("fine", 7)
        answers = [await episode.step([ACTION] * n) for n in calls]
        at_turn = min(at, len(episode.history))
        twin = await episode.branch(at_turn)
        assert twin.history == episode.history[:at_turn]
        rest = [await twin.step([ACTION] * n) for n in calls[at_turn:]]
        assert rest == answers[at_turn:]
        assert host.counters["branches_failed"] == 0

    asyncio.run(branched())


def test_a_copy_leaves_the_original_alone() -> None:
    async def branched() -> tuple[Answer, Answer, Host]:
        host = Host(Gym())
        episode = await host.begin("fine", 0)
        await episode.step([ACTION])
        twin = await episode.branch(1)
        return await twin.step([ACTION, ACTION]), await episode.step([ACTION]), host

    twin, original, host = asyncio.run(branched())
    assert twin.ending == "terminated" and original.observations == ("action 2",)
    assert host.counters["branches_copied"] == 1


def test_a_world_that_cannot_be_copied_is_played_again() -> None:
    async def branched() -> tuple[Answer, Host]:
        host = Host(Gym())
        episode = await host.begin("fine", 0)
        await episode.step([ACTION])
        episode._worker.environment.lock = threading.Lock()
        return await (await episode.branch(1)).step([ACTION]), host

    answer, host = asyncio.run(branched())
    assert answer.observations == ("action 2",) and host.counters["branches_replayed"] == 1


def test_an_episode_that_is_left_is_cancelled_and_its_process_serves_the_next() -> None:
    async def left() -> tuple[HostedEpisode, Answer, int]:
        async with Host(Gym(), HostConfig(workers="processes")) as host:
            first = await host.begin("long", 0)
            first.close()
            await turns(host, "fine", [ACTION])
            return first, await first.step([ACTION]), len(multiprocessing.active_children())

    first, answer, processes = asyncio.run(left())
    assert first.ending == answer.ending == "cancelled" and processes == 1


def test_a_step_that_is_cancelled_gives_the_global_generators_back() -> None:
    async def cancelled() -> Answer:
        host = Host(Gym(), HostConfig(isolate_random=True))
        episode = await host.begin("hangs", 0)
        await episode.step([ACTION])
        step = asyncio.ensure_future(episode.step([ACTION]))
        while global_random._holder is None:
            await asyncio.sleep(0.01)
        step.cancel()
        await asyncio.wait({step})
        return (await turns(host, "drawing", [ACTION]))[0]

    before = random.getstate()
    assert asyncio.run(cancelled()).ending is None
    assert random.getstate() == before


def test_a_branch_that_is_answered_otherwise_has_failed() -> None:
    async def branched() -> tuple[HostedEpisode, Host]:
        host = Host(Gym())
        episode = await host.begin("drifts", 0)
        for _ in range(3):
            await episode.step([ACTION])
        return await episode.branch(2), host

    twin, host = asyncio.run(branched())
    assert twin.ending == "error" and "turn 2 was answered otherwise" in twin.error
    assert host.counters["branches_failed"] == 1
