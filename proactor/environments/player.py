"""`Player`: plays episodes. The agent's turns are sampled in an engine's session, the host answers them.

    async with engine.session() as session:
        player = Player(session, ToolChat(engine.chat), host, PlayConfig(), engine.config.context_length)
        episode = await player.play("func-1", seed=0)

The sampled ids of a turn are never encoded again: a next turn appends the ids of the observation and draws on
(`Session.advance`). Many episodes play at once, each at its own pace.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pydantic import Field

from proactor.engine import Config, Sample, Sampling
from proactor.environments.calls import read_call
from proactor.environments.episode import Ending, Episode, Turn, last_info
from proactor.environments.host import Answer, Host, HostedEpisode
from proactor.environments.protocol import Message

if TYPE_CHECKING:
    from proactor.engine import Session, ToolChat  # import torch; configs hold a `PlayConfig`


class PlayConfig(Config):
    """How episodes are played.

    ``sampling``: of one turn, its ``max_tokens`` too. ``max_tokens``: of a whole episode, observations
    included; one that has used them up ends as ``tokens``.
    """

    sampling: Sampling = Sampling(max_tokens=256)
    max_tokens: int = Field(default=4096, ge=1)


class Player:
    """Plays episodes of one host in one session. Its methods belong to one event loop.

    ``context``: tokens that the model reads at most. ``counters``: episodes by ending (``terminated``, …).
    """

    def __init__(
        self, session: Session, chat: ToolChat, host: Host, config: PlayConfig, context: int
    ) -> None:
        self.session, self.chat, self.host, self.config = session, chat, host, config
        self.context = context
        self.counters: Counter[str] = Counter()

    async def play(self, task: str, seed: int, *, key: int | None = None, index: int = 0) -> Episode:
        """One episode. ``key`` and ``index`` name its noise, as in `Session.sample`."""
        hosted = await self.host.begin(task, seed)
        try:
            episode = await self._played(hosted, key, index)
        finally:
            hosted.close()
        self.counters[episode.ending] += 1
        return episode

    async def group(self, task: str, seed: int, n: int, *, key: int | None = None) -> list[Episode]:
        """``n`` episodes of one task with one seed, to be compared with one another."""
        return list(await asyncio.gather(*(self.play(task, seed, key=key, index=i) for i in range(n))))

    async def _played(self, hosted: HostedEpisode, key: int | None, index: int) -> Episode:
        turns: list[Turn] = []

        def ended(sample: Sample, ending: Ending) -> Episode:
            return Episode(
                self.host.gym.name,
                hosted.task,
                hosted.seed,
                sample,
                turns,
                ending,
                self.host.max_turns,
                hosted.error,
                last_info(turns),
                opening=_said_by_user(hosted.opening.messages),
            )

        if hosted.ending is not None:
            return ended(Sample([], []), hosted.ending)
        prompt = self.chat.opening(hosted.opening.messages, hosted.opening.tools)
        if len(prompt) >= self.context:
            return ended(Sample(prompt, []), "context")
        sample = await self.session.sample(prompt, self._sampling(0), key=key, index=index)
        start = 0
        while True:
            turn, answer, messages = await self._turn(hosted, sample, start)
            turns.append(turn)
            ending = answer.ending or _cut(sample)
            if ending is not None:
                return ended(sample, _why(sample, ending, len(sample.token_ids) >= self.config.max_tokens))
            observation = self.chat.observation(sample.token_ids[start:], messages)
            before = len(sample.token_ids)
            start = before + len(observation)
            if start >= self.config.max_tokens:
                return ended(sample, "tokens")
            if len(prompt) + start >= self.context:
                return ended(sample, "context")
            turns[-1] = replace(turn, observation=(before, start))
            await self.session.advance(sample, observation, self._sampling(start))

    async def _turn(
        self, hosted: HostedEpisode, sample: Sample, start: int
    ) -> tuple[Turn, Answer, list[dict[str, str]]]:
        """The turn that begins at token ``start``, its answer, and the messages that show it."""
        drawn = sample.token_ids[start:]
        reply = self.chat.read(drawn, self.config.sampling.stop)
        calls = tuple(read_call(call.name, call.arguments) for call in reply.calls)
        answer = await hosted.step(calls)
        end = start + len(drawn)
        said = "\n".join(filter(None, (reply.thinking, reply.content)))
        turn = replace(answer.turn(calls, (start, end), (end, end)), said=said)
        return turn, answer, _results([call.name for call in reply.calls], answer.observations)

    def _sampling(self, used: int) -> Sampling:
        """A turn's, with no more tokens than the episode has left."""
        sampling = self.config.sampling
        return sampling.model_copy(
            update={"max_tokens": min(sampling.max_tokens, self.config.max_tokens - used)}
        )


def _said_by_user(messages: Sequence[Message]) -> str:
    return "\n".join(str(m.get("content") or "") for m in messages if m.get("role") == "user")


def _results(names: Sequence[str], observations: Sequence[str]) -> list[dict[str, str]]:
    """Messages with the results of calls."""
    return [
        {"role": "tool", "tool_call_id": f"call_{i}", "name": name, "content": observation}
        for i, (name, observation) in enumerate(zip(names, observations, strict=False))
    ]


def _cut(sample: Sample) -> Ending | None:
    """Why no turn can follow, as far as the sampler knows."""
    if sample.finish_reason == "context":
        return "context"
    return "cancelled" if sample.finish_reason in ("cancelled", "deadline") else None


def _why(sample: Sample, ending: Ending, used_up: bool) -> Ending:
    """The ending's reason: a reply without a call that the sampler cut is not the agent's."""
    if ending != "no_call":
        return ending
    if sample.finish_reason == "length" and used_up:
        return "tokens"
    return _cut(sample) or ending
