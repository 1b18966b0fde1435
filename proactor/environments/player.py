"""`Player`: plays episodes. The agent's turns are sampled in an engine's session, the host answers them.

    async with engine.session() as session:
        player = Player(session, ToolChat(engine.chat), host, PlayConfig(), engine.config.context_length)
        episode = await player.play("func-1", seed=0)

The sampled ids of a turn are never encoded again: a next turn appends the ids of the observation and draws on
(`TurnSampler`). Many episodes play at once, each at its own pace.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pydantic import Field

from proactor.engine import Config, Sample, Sampling
from proactor.environments.calls import read_call
from proactor.environments.episode import Ending, Episode, Turn, last_info
from proactor.environments.host import Answer, Host, HostedEpisode
from proactor.environments.protocol import Message
from proactor.environments.turn_sampler import TurnSampler
from proactor.environments.wording import Wording

if TYPE_CHECKING:
    from proactor.engine import Session, ToolChat  # import torch; configs hold a `PlayConfig`


class PlayConfig(Config):
    """How episodes are played.

    ``sampling``: of one turn, its ``max_tokens`` too. ``max_tokens``: of a whole episode, observations
    included; one that has used them up ends as ``tokens``.
    """

    sampling: Sampling = Sampling(max_tokens=256)
    max_tokens: int = Field(default=4096, ge=1)


@dataclass(frozen=True, slots=True)
class Played:
    """A turn as it was played: of these ``ids``, after the turns ``before`` and the ids ``reads``.

    ``messages`` will answer it.
    """

    turn: Turn
    before: Sequence[Turn]
    reads: Sequence[int]
    ids: Sequence[int]
    messages: Sequence[Message]


class Player:
    """Plays episodes of one host in one session. Its methods belong to one event loop.

    ``context``: tokens that the model reads at most. ``counters``: episodes by ending (``terminated``, …).
    A method that edits what was said overrides `_reads` and `_recorded`.
    """

    def __init__(
        self,
        session: Session,
        chat: ToolChat,
        host: Host,
        config: PlayConfig,
        context: int,
        wording: Wording | None = None,
    ) -> None:
        self.session, self.chat, self.host, self.config = session, chat, host, config
        self.context, self.wording = context, wording or Wording()
        self.counters: Counter[str] = Counter()

    async def play(
        self,
        task: str,
        seed: int,
        *,
        key: int | None = None,
        index: int = 0,
        lead: Sequence[Sequence[int]] = (),
    ) -> Episode:
        """One episode. ``key`` and ``index`` name its noise, as in `Session.sample`.

        ``lead``: the ids of its first turns, which are not drawn and not trained; the agent goes on from
        there.
        """
        hosted = await self.host.begin(task, seed)
        try:
            episode = await self._played(hosted, key, index, lead)
        finally:
            hosted.close()
        self.counters[episode.ending] += 1
        return episode

    async def group(self, task: str, seed: int, n: int, *, key: int | None = None) -> list[Episode]:
        """``n`` episodes of one task with one seed, to be compared with one another."""
        return list(await asyncio.gather(*(self.play(task, seed, key=key, index=i) for i in range(n))))

    async def _played(
        self, hosted: HostedEpisode, key: int | None, index: int, lead: Sequence[Sequence[int]]
    ) -> Episode:
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
        opening = self.wording.opening(hosted.opening)
        prompt = self.chat.opening(opening.messages, opening.tools)
        drawn = TurnSampler(self.session, prompt, self.config.sampling.temperature, key, index)
        log, shown = drawn.log, list[int]()
        while True:
            before, start = len(log.token_ids), len(log.token_ids) + len(shown)
            reads = self._reads(log, turns, shown)
            if start >= self.config.max_tokens:
                return ended(log, "tokens")
            if len(reads) >= self.context:
                return ended(log, "context")
            if turns:
                turns[-1] = replace(turns[-1], observation=(before, start))
                drawn.show(shown)
            if len(turns) < len(lead):
                drawn.show(lead[len(turns)])
            else:
                await drawn.draw(reads, self._sampling(start))
            turn, answer, messages = await self._turn(hosted, log, start, len(turns) + 1)
            turns.append(self._recorded(Played(turn, turns, reads, log.token_ids[start:], messages)))
            ending = answer.ending or _cut(log)
            if ending is not None:
                return ended(log, _why(log, ending, len(log.token_ids) >= self.config.max_tokens))
            shown = self.chat.observation(log.token_ids[start:], messages)

    def _reads(self, log: Sample, turns: Sequence[Turn], shown: Sequence[int]) -> list[int]:
        """The ids that the next turn is drawn after; ``shown``: those that answer the last of ``turns``."""
        return [*log.prompt_ids, *log.token_ids, *shown]

    def _recorded(self, played: Played) -> Turn:
        """The record of a turn."""
        return played.turn

    async def _turn(
        self, hosted: HostedEpisode, log: Sample, start: int, number: int
    ) -> tuple[Turn, Answer, list[Message]]:
        """The turn that begins at token ``start``, its answer, and the messages that show it."""
        drawn = log.token_ids[start:]
        reply = self.chat.read(drawn, self.config.sampling.stop)
        calls = tuple(read_call(call.name, call.arguments) for call in reply.calls)
        answer = await hosted.step(calls)
        end = start + len(drawn)
        said = "\n".join(filter(None, (reply.thinking, reply.content)))
        turn = replace(answer.turn(calls, (start, end), (end, end)), said=said)
        names = [call.name for call in reply.calls]
        return turn, answer, self.wording.results(number, names, answer.observations)

    def _sampling(self, used: int) -> Sampling:
        """A turn's, with no more tokens than the episode has left."""
        sampling = self.config.sampling
        return sampling.model_copy(
            update={"max_tokens": min(sampling.max_tokens, self.config.max_tokens - used)}
        )


def _said_by_user(messages: Sequence[Message]) -> str:
    return "\n".join(str(m.get("content") or "") for m in messages if m.get("role") == "user")


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
