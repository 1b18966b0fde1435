"""The host: runs a gym's environments for many rollouts at once, and keeps the trouble of one to itself.

    host = Host(FunctionGym(path), HostConfig(timeout=10))
    episode = await host.begin("func-1", seed=0)      # episode.opening: messages and tools
    answer = await episode.step(calls)                # answer.observations, .reward, .ending
    episode.close()                                   # where it is left before its end

What a turn of the agent leads to (the first four as in UserRL's code, ``sglang_rollout.py`` and
``interact_tool.py``):

* no call that can be read: the episode ends (``no_call``) with reward 0, the agent sees nothing more;
* several calls: they run in order, each with an observation, and the last one's reward counts. Those after
  the call that ended the episode do not run (``calls_after_end``);
* a wrong verb or content: the environment's own observation, which says so;
* ``show_reward``: each observation ends with a line ``Reward: r`` (UserRL's training; its evaluation hides
  it);
* an environment that raises, answers something else than an `Outcome`, or with a reward or score that is not
  finite: the episode ends (``error``) with reward 0 and one line that says why; one that does not answer in
  time ends likewise (``timeout``). Other episodes go on.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import TracebackType
from typing import Any, Literal, TypeVar, cast

from pydantic import Field

from proactor.engine import Config
from proactor.environments.episode import Ending, Span, Turn
from proactor.environments.protocol import Call, Gym, Opening, Outcome
from proactor.environments.workers import Failed, Overdue, ProcessWorker, ThreadWorker, Worker, guarded
from proactor.files import valid_utf8

Result = TypeVar("Result")


class HostConfig(Config):
    """How environments run.

    ``workers``: in threads of this process, or each in a process of its own, which suits environments that
    seed or draw from global generators while they wait, or that hang. ``isolate_random`` (threads): give each
    environment streams of its own for the global generators; one runs at a time then. ``in_flight``: most
    calls at once. ``timeout``: seconds a call may take, without its wait in an endpoint's line; where a
    config does not set it, those of a user's attempts are added (`patient`). ``max_turns``: of an episode,
    where the gym gives more.
    """

    workers: Literal["threads", "processes"] = "threads"
    isolate_random: bool = False
    in_flight: int = Field(default=64, ge=1)
    timeout: float = Field(default=30.0, gt=0)
    max_turns: int | None = Field(default=None, ge=1)
    show_reward: bool = False

    def patient(self, seconds: float) -> HostConfig:
        """With so much more time for a call, unless a config says how much it has."""
        if "timeout" in self.model_fields_set:
            return self
        return self.model_copy(update={"timeout": self.timeout + seconds})

    def turns(self, gym: Gym) -> int:
        """Most turns of an episode of ``gym``: its worlds end at the gym's, whatever is wished for."""
        return min(self.max_turns or gym.max_turns, gym.max_turns)

    def shown(self, observation: str, reward: float) -> str:
        """What the agent sees of an observation."""
        return f"{observation}\nReward: {reward}" if self.show_reward else observation


@dataclass(frozen=True, slots=True)
class Answer:
    """What a turn led to: an observation for each call that ran, and the last one's reward.

    ``ran``: the calls that ran, one that failed too; ``user_involved``: how many of them involved the user.
    ``ending`` is None while the episode goes on; ``error`` is one line where the environment failed.
    """

    observations: tuple[str, ...] = ()
    reward: float = 0.0
    user_involved: int = 0
    ending: Ending | None = None
    error: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    ran: int = 0

    @property
    def feedback(self) -> str:
        """All observations as one text."""
        return "\n".join(self.observations)

    def turn(self, calls: Sequence[Call], action: Span, observation: Span) -> Turn:
        """The episode's record of the turn: the calls that were read, and where its tokens are."""
        return Turn(
            tuple(calls),
            action,
            observation,
            self.feedback,
            self.reward,
            self.user_involved,
            self.info,
            ran=self.ran,
        )


class HostedEpisode:
    """One rollout's environment. `Host.begin` makes it."""

    def __init__(self, host: Host, task: str, seed: int, worker: Worker) -> None:
        self.task, self.seed = task, seed
        self.opening = Opening(())
        self.user_verbs: frozenset[str] = frozenset()
        self.ending: Ending | None = None
        self.error = ""
        self.history: list[tuple[tuple[Call, ...], tuple[str, ...]]] = []
        self._host, self._worker = host, worker

    async def step(self, calls: Sequence[Call]) -> Answer:
        """The answer to a reply's calls. An episode that has ended answers nothing more."""
        if self.ending is not None:
            return Answer(ending=self.ending, error=self.error)
        self._host.counters["turns"] += 1
        if not calls:
            self._host.counters["no_call"] += 1
            self._end("no_call")
            return Answer(ending="no_call")
        self._host.counters["several_calls"] += len(calls) > 1
        answer = await self._run(calls)
        self.history.append((tuple(calls), answer.observations))
        if answer.ending is None and len(self.history) >= self._host.max_turns:
            answer = replace(answer, ending="turns")
        if answer.ending is not None:
            self._end(answer.ending, answer.error)
        return answer

    async def _run(self, calls: Sequence[Call]) -> Answer:
        observations: list[str] = []
        involved = ran = 0
        outcome, ending = Outcome(""), cast("Ending | None", None)
        for ran, call in enumerate(calls, start=1):
            involved += call.verb in self.user_verbs
            try:
                outcome = checked(await self._host.measured(self._worker.step(call)))
            except (Failed, Overdue) as error:
                ending = self._host.count_failure(error)
                return Answer(tuple(observations), 0.0, involved, ending, f"{self.task}: {error}", ran=ran)
            observations.append(self._host.shown(outcome))
            if outcome.ended:
                self._host.counters["calls_after_end"] += len(calls) - ran
                break
        if outcome.ended:
            ending = "terminated" if outcome.terminated else "truncated"
        return Answer(tuple(observations), float(outcome.reward), involved, ending, "", outcome.info, ran)

    async def begin(self) -> None:
        """Build and reset the environment; where that fails, the episode has ended before its first turn."""
        make = partial(self._host.gym.make, self.task)
        try:
            self.opening, self.user_verbs = await self._host.measured(self._worker.begin(make, self.seed))
        except (Failed, Overdue) as error:
            self._end(self._host.count_failure(error), f"{self.task}: {error}")

    def close(self) -> None:
        """End the episode where it has not ended (``cancelled``). One that has ended needs no closing."""
        if self.ending is None:
            self._end("cancelled")

    def _end(self, ending: Ending, error: str = "") -> None:
        self.ending, self.error = ending, error
        self._host.take_back(self._worker, reusable=ending != "timeout")

    async def branch(self, turns: int) -> HostedEpisode:
        """This episode as it was after ``turns`` turns, in an environment of its own; it has failed where the
        branch cannot be had.

        The environment's state is copied where it is here, can be copied and has not gone on since; otherwise
        the turns' calls are played again, and what they bring must equal what they brought. To be called
        between two turns.
        """
        if turns == len(self.history) and (worker := self._copied()):
            twin = HostedEpisode(self._host, self.task, self.seed, worker)
            twin.opening, twin.user_verbs, twin.history = self.opening, self.user_verbs, list(self.history)
            self._host.counters["branches_copied"] += 1
            return twin
        self._host.counters["branches_replayed"] += 1
        twin = await self._host.begin(self.task, self.seed)
        for number, (calls, observations) in enumerate(self.history[:turns], start=1):
            answer = await twin.step(calls)
            if twin.ending == "error" or answer.observations != observations:
                otherwise = f"{self.task}: turn {number} was answered otherwise when played again"
                twin.close()
                twin.ending, twin.error = "error", twin.error or otherwise
                self._host.counters["branches_failed"] += 1
                break
        return twin

    def _copied(self) -> Worker | None:
        """A worker with a copy of the environment; None where it is elsewhere, over, or cannot be copied."""
        here = self._worker
        if self.ending is not None or not isinstance(here, ThreadWorker):
            return None
        try:
            return guarded(here.copy)
        except Failed:
            return None


class Host:
    """Runs the environments of one gym. Its methods belong to one event loop.

    ``counters``: ``episodes``, ``turns``, ``no_call``, ``several_calls``, ``calls_after_end``, ``errors``,
    ``timeouts``, ``repaired_utf8`` observations, ``branches_copied``, ``branches_replayed``,
    ``branches_failed``; ``seconds``: time spent in environments, summed over episodes.
    """

    def __init__(self, gym: Gym, config: HostConfig | None = None) -> None:
        self.gym, self.config = gym, config or HostConfig()
        self.max_turns = self.config.turns(gym)
        self.counters: Counter[str] = Counter()
        self.seconds = 0.0
        self._room = asyncio.Semaphore(self.config.in_flight)
        self._idle: list[Worker] = []
        self._closed = False

    async def begin(self, task: str, seed: int) -> HostedEpisode:
        """A new episode of a task. It has ended already where its environment cannot be had."""
        self.counters["episodes"] += 1
        episode = HostedEpisode(self, task, seed, self._worker())
        await episode.begin()
        return episode

    async def __aenter__(self) -> Host:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes that no episode uses; those that one still uses end with it."""
        self._closed = True
        while self._idle:
            self._idle.pop().end(reusable=False)

    def _worker(self) -> Worker:
        if self.config.workers == "threads":
            return ThreadWorker(self.config.timeout, self.config.isolate_random)
        return self._idle.pop() if self._idle else ProcessWorker(self.config.timeout)

    def take_back(self, worker: Worker, reusable: bool) -> None:
        """A worker whose episode is over."""
        worker.end(reusable and not self._closed)
        if isinstance(worker, ProcessWorker) and worker.alive:
            self._idle.append(worker)

    async def measured(self, call: Awaitable[Result]) -> Result:
        """What a worker's coroutine returns; it waits for room first."""
        async with self._room:
            began = time.monotonic()
            try:
                return await call
            finally:
                self.seconds += time.monotonic() - began

    def count_failure(self, error: Failed | Overdue) -> Ending:
        """The ending that an environment's failure means."""
        late = isinstance(error, Overdue)
        self.counters["timeouts" if late else "errors"] += 1
        return "timeout" if late else "error"

    def shown(self, outcome: Outcome) -> str:
        """What the agent sees of an outcome, with a question mark for what is no UTF-8."""
        observation = valid_utf8(outcome.observation)
        self.counters["repaired_utf8"] += observation != outcome.observation
        return self.config.shown(observation, outcome.reward)


def checked(outcome: object) -> Outcome:
    """An environment's outcome. Raises Failed for anything else, and for a reward or score that is not
    finite.
    """
    if not isinstance(outcome, Outcome):
        raise Failed(f"step returned {type(outcome).__name__} instead of Outcome")
    if not isinstance(outcome.observation, str):
        raise Failed(f"the observation is {type(outcome.observation).__name__} instead of str")
    if not isinstance(outcome.info, Mapping):
        raise Failed(f"the info is {type(outcome.info).__name__} instead of a mapping")
    numbers = {"reward": outcome.reward, "score": outcome.info.get("score", 0.0)}
    for name, number in numbers.items():
        if not isinstance(number, int | float) or not abs(number) <= sys.float_info.max:
            raise Failed(f"the {name} is {number!r}, no finite number")
    return outcome
