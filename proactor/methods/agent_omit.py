"""Agent-Omit: an agent that leaves out thoughts and has observations taken out of its history.

A turn thinks in ``<think>…</think>``; empty tags omit the thought. What turn N brought stands in
``<tool_response_N>`` tags; ``<omit_tool_response_N></omit_tool_response_N>`` in a later turn replaces it by
``<omitted_tool_response_N></omitted_tool_response_N>`` in all that the agent reads afterwards. So the history
is edited, and each turn is trained after exactly the ids that it was drawn after (`Episode.pieces`).

    R_omit = (tokens of omitted thoughts + of omitted observations) / Tok(y), 0 unless the task was solved
    r(y)   = (1 - mu) R_task + mu R_omit        r'(y') = R_task
    A      = r normalised over the group, on the whole trajectory's tokens
    A'     = R_task normalised over the group, / p, on each of the p turns that omit: the partial samples

Format, effect and ``mu``: confirmed by the authors' code, which counts characters, and trains on the log that
was not edited. Formulas and dual sampling: second hand. Ours: Tok(y) counts all that was drawn and shown, and
what was left out (so R_omit < 1); an omitted thought counts as the median thought of its group; `relative`
compares with the mean length of the group before omissions and is never negative; partial samples are
normalised by R_task over the group's episodes; the instruction's words.
"""

from __future__ import annotations

import itertools
import random
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean, median
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from proactor.engine import Config, Convention, Group, Sample, group_advantages
from proactor.environments.demonstration import Demonstration, leads, turn_ids
from proactor.environments.episode import Episode, Turn
from proactor.environments.player import Player
from proactor.environments.protocol import Message, Opening
from proactor.environments.wording import Thinking, thinking
from proactor.methods.turn_credit import finite_rewards, over_tokens

if TYPE_CHECKING:
    from proactor.engine import ToolChat  # imports torch

INSTRUCTION = (
    "Think in <think></think> before you call; leave the tags empty where there is nothing to think about. "
    "Results stand in <tool_response_N></tool_response_N>. One that you need no more you take out of the "
    "history, before a call, by <omit_tool_response_N></omit_tool_response_N> with its number."
)
OMISSION = re.compile(r"<omit_tool_response_(\d{1,6})>")
"""The number comes from the opening tag, as in the authors' code."""
THOUGHT_END = "</think>"
_EMPTY = re.compile(r"\s*<think>\s*</think>")
COUNTS = ("thoughts", "observations", "unknown", "repeated", "partials")
"""Counters of a step, ``omit/…``: what was left out, numbers that name no earlier result, or one that was
omitted before (both without effect), and partial samples."""


class AgentOmit(Config):
    """``mu``: weight of R_omit. ``omit_reward``: the share of tokens left out, or (second version of the
    paper, second hand) how much shorter the episode is than its group before omissions. ``partial``: train
    partial samples too. ``success``: as `Episode.solves`. ``instruct``: put `INSTRUCTION` into the opening.

    Cold start (`cold_start`): ``tries`` rollouts of each omission, on the first ``cold_tasks`` tasks; 0:
    stage A learns the teacher's episodes as they are.
    """

    mu: float = Field(0.2, ge=0, le=1)
    omit_reward: Literal["share", "relative"] = "share"
    partial: bool = True
    success: float = 1.0
    advantages: Convention = "verl"
    instruct: bool = True
    tries: int = Field(2, ge=1)
    cold_tasks: int = Field(0, ge=0)


# --- the format ---


class OmitWording(Thinking):
    """Results with their numbers, and the instruction in the system message."""

    def __init__(self, instruct: bool = True) -> None:
        self.instruct = instruct

    def opening(self, opening: Opening) -> Opening:
        """See `Wording`."""
        if not self.instruct:
            return opening
        first, *later = opening.messages
        if first.get("role") == "system":
            told: list[Message] = [{**first, "content": f"{first['content']}\n{INSTRUCTION}"}, *later]
        else:
            told = [{"role": "system", "content": INSTRUCTION}, first, *later]
        return replace(opening, messages=told)

    def result(self, number: int, observation: str) -> str:
        """See `Wording`."""
        return f"<tool_response_{number}>{observation}</tool_response_{number}>"


def marker(number: int) -> str:
    """What stands in place of an omitted result."""
    return f"<omitted_tool_response_{number}></omitted_tool_response_{number}>"


def omission(number: int) -> str:
    """What an agent writes to omit a result."""
    return f"<omit_tool_response_{number}></omit_tool_response_{number}>"


@dataclass(frozen=True, slots=True)
class OmitTurn(Turn):
    """A turn, with what it left out. ``context`` is always set.

    ``omits``: numbers of the results that it took out; ``unknown``, ``repeated``: numbers without effect.
    ``thought``: tokens of its thought, tags included; ``no_thought``: it omitted the thought. ``marker``: the
    observation's ids once it is omitted.
    """

    omits: tuple[int, ...] = ()
    unknown: int = 0
    repeated: int = 0
    thought: int = 0
    no_thought: bool = False
    marker: tuple[int, ...] = ()

    @property
    def omitting(self) -> bool:
        """Whether it left anything out."""
        return self.no_thought or bool(self.omits)


def read_omissions(text: str, before: Sequence[OmitTurn]) -> tuple[tuple[int, ...], int, int]:
    """(numbers taken out, unknown ones, repeated ones) of a turn's text after the turns ``before``."""
    gone = {number for turn in before for number in turn.omits}
    omits, unknown, repeated = list[int](), 0, 0
    for number in map(int, OMISSION.findall(text)):
        if not 1 <= number <= len(before):
            unknown += 1
        elif number in gone:
            repeated += 1
        else:
            gone.add(number)
            omits.append(number)
    return tuple(omits), unknown, repeated


def edited(prompt: Sequence[int], log: Sequence[int], turns: Sequence[OmitTurn]) -> list[int]:
    """The ids that are read after ``turns``: the log's (``log``: its ids after the prompt), with the marker
    in place of each omitted observation.
    """
    gone = {number for turn in turns for number in turn.omits}
    ids = list(prompt)
    for number, turn in enumerate(turns, start=1):
        ids += log[slice(*turn.action)]
        ids += turn.marker if number in gone else log[slice(*turn.observation)]
    return ids


class OmittingPlayer(Player):
    """Plays with an edited history; turns are `OmitTurn`."""

    def _reads(self, log: Sample, turns: Sequence[Turn], shown: Sequence[int]) -> list[int]:
        """See `Player`."""
        known = [turn for turn in turns if isinstance(turn, OmitTurn)]
        if known:
            after = known[-1].action[1]
            known[-1] = replace(known[-1], observation=(after, after + len(shown)))
        return edited(log.prompt_ids, [*log.token_ids, *shown], known)

    def _recorded(
        self,
        turn: Turn,
        before: Sequence[Turn],
        reads: Sequence[int],
        log: Sample,
        messages: Sequence[Message],
    ) -> Turn:
        """See `Player`."""
        known = [turn for turn in before if isinstance(turn, OmitTurn)]
        return recorded(self.chat, turn, known, reads, log.token_ids[slice(*turn.action)], messages)


def recorded(
    chat: ToolChat,
    turn: Turn,
    before: Sequence[OmitTurn],
    reads: Sequence[int],
    ids: Sequence[int],
    messages: Sequence[Message],
) -> OmitTurn:
    """The record of a turn of these ``ids``, said after ``reads``; ``messages`` will answer it."""
    text = chat.template.chat.tokenizer.decode(ids)
    omits, unknown, repeated = read_omissions(text, before)
    hidden = [{**message, "content": marker(len(before) + 1)} for message in messages]
    plain = {field.name: getattr(turn, field.name) for field in fields(turn)} | {"context": tuple(reads)}
    empty = bool(_EMPTY.match(text))
    return OmitTurn(
        **plain,
        omits=omits,
        unknown=unknown,
        repeated=repeated,
        thought=0 if empty else _thought(chat, ids),
        no_thought=empty,
        marker=tuple(chat.observation(ids, hidden)) if hidden else (),
    )


def _thought(chat: ToolChat, ids: Sequence[int]) -> int:
    """How many tokens the thought at the beginning of a turn has; 0 without one."""
    decode = chat.template.chat.tokenizer.decode
    found = bisect_left(range(len(ids)), True, key=lambda n: THOUGHT_END in decode(ids[: n + 1]))
    return found + 1 if found < len(ids) else 0


# --- rewards and samples ---


def omit_turns(episode: Episode) -> list[OmitTurn]:
    """The episode's turns; those of another player omit nothing."""
    return [turn for turn in episode.turns if isinstance(turn, OmitTurn)]


def omit_share(thoughts: float, observations: float, tokens: float) -> float:
    """R_omit of a solved task: tokens left out / Tok(y), what was left out included."""
    return (thoughts + observations) / tokens


def reward(task: float, omitted: float, mu: float, solved: bool) -> float:
    """r(y): success is paid for what it left out, failure is not."""
    return (1 - mu) * task + mu * (omitted if solved else 0.0)


def rewards(group: Sequence[Episode], config: AgentOmit) -> list[float]:
    """r(y) of each episode of a group. Raises ProactorError for a reward that is not finite."""
    thought = usual_thought(group)
    thoughts = [thought * sum(turn.no_thought for turn in omit_turns(episode)) for episode in group]
    whole = [len(episode.sample.token_ids) + t for episode, t in zip(group, thoughts, strict=True)]
    usual = fmean(whole) if whole else 0.0
    found = []
    for episode, left_out, tokens in zip(group, thoughts, whole, strict=True):
        finite_rewards(episode)
        if config.omit_reward == "share":
            omitted = omit_share(left_out, len(episode.sample.token_ids) - episode.tokens, tokens)
        else:
            omitted = max(0.0, (usual - episode.tokens) / usual)
        found.append(reward(episode.score, omitted, config.mu, episode.solves(config.success)))
    return found


def usual_thought(group: Sequence[Episode]) -> float:
    """The median length of the group's thoughts in tokens, 0 where none was written."""
    thoughts = [turn.thought for episode in group for turn in omit_turns(episode) if turn.thought]
    return float(median(thoughts)) if thoughts else 0.0


def partials(episode: Episode) -> list[tuple[float, Sample]]:
    """(weight 1/p, sample) for each of the p turns that omit: that turn alone, after what it was drawn after,
    where what it takes out still stands.
    """
    turns = [turn for turn in omit_turns(episode) if turn.omitting]
    return [(1 / len(turns), episode.pieces([turn])[0]) for turn in turns]


def groups_of(group: Sequence[Episode], config: AgentOmit, name: object) -> tuple[list[Group], Counter[str]]:
    """A group's episodes as groups to train on, and counts (`COUNTS`); each sample has its advantage.

    ``name``: of the group among others; what its contexts share is computed once. The first sample of an
    episode carries its score as reward, its log (`Episode.sample`) the advantage, for the record.
    """
    counts = Counter[str](dict.fromkeys(COUNTS, 0))
    whole = group_advantages(rewards(group, config), config.advantages)
    tasks = group_advantages([episode.score for episode in group], config.advantages)
    samples: list[Sample] = []
    for episode, advantage, of_task in zip(group, whole, tasks, strict=True):
        turns = omit_turns(episode)
        counts["thoughts"] += sum(turn.no_thought for turn in turns)
        counts["observations"] += sum(len(turn.omits) for turn in turns)
        counts["unknown"] += sum(turn.unknown for turn in turns)
        counts["repeated"] += sum(turn.repeated for turn in turns)
        episode.sample.advantage = over_tokens(episode, [advantage] * len(episode.turns))
        pieces = episode.pieces()
        pieces[0].reward = episode.score
        for piece in pieces:
            piece.advantage = advantage
        extra = partials(episode) if config.partial else []
        for weight, sample in extra:
            sample.advantage = weight * of_task
        counts["partials"] += len(extra)
        samples += [*pieces, *(sample for _, sample in extra)]
    by_prompt: dict[tuple[int, ...], list[Sample]] = {}
    for sample in samples:
        by_prompt.setdefault(tuple(sample.prompt_ids), []).append(sample)
    groups = [Group(list(prompt), found, tree=("omit", name)) for prompt, found in by_prompt.items()]
    return groups, Counter({f"omit/{key}": count for key, count in counts.items()})


# --- cold start: what of a teacher's episode can be left out is tried by playing on ---


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
        turns.append(recorded(chat, turn, turns, reads, log[slice(*turn.action)], answered))
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
