"""What Agent-Omit learns from first: episodes of a teacher, with what can be left out of them.

What can be left out is tried by playing on (`cold_start`), or drawn at random to teach the format alone.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import TYPE_CHECKING

from proactor.engine import Sample
from proactor.environments.demonstration import Demonstration, leads, turn_ids
from proactor.environments.episode import Episode
from proactor.environments.player import Played, Player
from proactor.environments.wording import thinking
from proactor.methods.omit_format import OmitTurn, edited, omission, recorded

if TYPE_CHECKING:
    from proactor.engine import ToolChat  # imports torch


@dataclass(frozen=True, slots=True)
class Omittable:
    """Turns (from 1) of a teacher's episode whose thought, and whose result, can be left out."""

    thoughts: tuple[int, ...] = ()
    results: tuple[int, ...] = ()


@dataclass(frozen=True)
class OmittingDemonstration(Demonstration):
    """A teacher's episode with what can be left out of it; ``said`` is the teacher's, nothing left out."""

    left_out: Omittable = Omittable()

    def samples(self, chat: ToolChat) -> list[Sample]:
        """See `Demonstration`: `lessons`."""
        return lessons(self, self.left_out, chat)


def omitting(demonstration: Demonstration, left_out: Omittable) -> OmittingDemonstration:
    """A demonstration with what can be left out of it."""
    plain = {field.name: getattr(demonstration, field.name) for field in fields(Demonstration)}
    return OmittingDemonstration(**plain, left_out=left_out)


def omitting_at_random(demonstration: Demonstration) -> OmittingDemonstration:
    """With random omissions, drawn by the task's name, more in some episodes than in others: they teach the
    format to a model that has never seen it, and not when to use it.
    """
    drawn, count = random.Random(f"omit/{demonstration.task}"), len(demonstration.said)
    share = drawn.random()
    thoughts, results = (
        tuple(n for n in range(1, most + 1) if drawn.random() < share) for most in (count, count - 1)
    )
    return omitting(demonstration, Omittable(thoughts, results))


def leaving_out(demonstration: Demonstration, left_out: Omittable) -> Demonstration:
    """With empty tags for these thoughts; these results are omitted one turn later, by the first that read
    them.
    """
    said = {
        number: (thinking("") if number in left_out.thoughts else text)
        + (omission(number - 1) if number - 1 in left_out.results else "")
        for number, text in enumerate(demonstration.said, start=1)
    }
    return demonstration.saying(said)


def shown(demonstration: Demonstration, chat: ToolChat) -> Episode:
    """The demonstration as `OmittingPlayer` would have recorded it: omissions take effect."""
    episode = demonstration.episode(chat)
    prompt, log = episode.sample.prompt_ids, episode.sample.token_ids
    turns: list[OmitTurn] = []
    for number, turn in enumerate(episode.turns, start=1):
        answered = demonstration.results(number) if number < len(episode.turns) else []
        reads = edited(prompt, log, turns)
        turns.append(recorded(chat, Played(turn, turns, reads, log[slice(*turn.action)], answered)))
    return replace(episode, turns=turns)


def lessons(demonstration: Demonstration, left_out: Omittable, chat: ToolChat) -> list[Sample]:
    """What stage A learns from: each omission alone, in the teacher's own history; and the whole episode with
    all omissions, each turn after the edited history.
    """
    found = shown(leaving_out(demonstration, left_out), chat).pieces()
    for number in range(1, len(demonstration.said) + 1):
        one = Omittable(_only(number, left_out.thoughts), _only(number - 1, left_out.results))
        if one != Omittable():
            episode = shown(leaving_out(demonstration, one), chat)
            found += episode.pieces([episode.turns[number - 1]])
    return found


def _only(number: int, among: Sequence[int]) -> tuple[int, ...]:
    return (number,) if number in among else ()


async def cold_start(
    player: Player, demonstration: Demonstration, tries: int, key: int
) -> tuple[Omittable | None, Counter[str]]:
    """What can be left out: the agent plays on from there ``tries`` times and solves the task as often as
    without the omission (and at all), with fewer tokens.

    None where the environment refuses the teacher's turns (``omit/refused``); ``omit/tried`` omissions, of
    which ``omit/kept`` are.
    """
    episode = demonstration.episode(player.chat)
    turns = turn_ids(episode)
    seed, index = episode.seed, itertools.count()
    replayed = await player.play(episode.task, seed, key=key, index=next(index), lead=turns)
    if demonstration.refused_by(replayed):
        return None, Counter({"omit/refused": 1})

    async def going_on(number: int, said: Sequence[int]) -> tuple[float, float]:
        lead = leads(turns, number, said)
        ends = [
            await player.play(episode.task, seed, key=key, index=next(index), lead=lead) for _ in range(tries)
        ]
        return fmean(end.solves() for end in ends), fmean(end.tokens for end in ends)

    thoughts, results, count = list[int](), list[int](), 0
    for number, ids in enumerate(turns, start=1):
        solved, tokens = await going_on(number, ids)
        for kept, place, one in (
            (thoughts, number, Omittable(thoughts=(number,))),
            (results, number - 1, Omittable(results=(number - 1,))),
        ):
            if not place or (kept is thoughts and demonstration.said[number - 1] == thinking("")):
                continue
            count += 1
            tried = leaving_out(demonstration, one).reply(number)
            solved_so, tokens_so = await going_on(number, player.chat.answer(tried))
            if 0 < solved_so >= solved and tokens_so < tokens:
                kept.append(place)
    found = Omittable(tuple(thoughts), tuple(results))
    return found, Counter({"omit/tried": count, "omit/kept": len(thoughts) + len(results)})
