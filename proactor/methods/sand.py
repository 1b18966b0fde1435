"""SAND: self-taught deliberation. The agent learns to think where it would not have done as the expert does.

Of each expert episode, at each step t with the expert's history: the policy draws N actions, the expert's is
added, and the step is flagged where more than one distinct action is among them. Each distinct action is then
carried out and played on by the policy to the end; a critic says in a few sentences whether it helped; from
all critiques a deliberation is written that ends in the expert's action. It replaces the step's thought.
Unflagged steps keep their thought, and no action changes. The policy is trained on the result (supervised),
which is the next iteration's expert data; at work it neither samples nor searches.

Procedure: confirmed by the paper, whose algorithm prints the condition of a flag the other way round than its
equation, which is followed. Numbers: second hand (N 5, three iterations, greedy critiques). Ours: when two
actions are one (`calls.canonical`); actions that cannot be read are no candidates; each iteration deliberates
on ``tasks`` training tasks; the critic's questions; the critic "rule". The paper's option to follow a
candidate that fares better than the expert is not there.
"""

from __future__ import annotations

import asyncio
import operator
import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from pydantic import Field

from proactor.engine import SFT, Config
from proactor.environments.calls import canonical, read_call, to_text
from proactor.environments.demonstration import Demonstration, leads, turn_ids
from proactor.environments.episode import Episode
from proactor.environments.player import Player
from proactor.environments.protocol import Call
from proactor.environments.turn_sampler import KEYS
from proactor.environments.users import EndpointUser, EngineUser, UserModel, build_user
from proactor.environments.wording import thinking

Calls = tuple[Call, ...]
"""What a turn does."""
MOST_SENTENCES = 3
RULE = "rule"
COUNTS = ("steps", "flagged", "unreadable", "rollouts", "refused", "critiques_cut", "unwritten")
"""Counters of an iteration, ``sand/…``: steps looked at, those flagged, drawn turns without an action,
rollouts of candidates, expert episodes that the environment answered otherwise, critiques of more than
`MOST_SENTENCES`, steps that keep their thought because the critic wrote none.
"""


class SAND(Config):
    """``candidates``: N, the actions drawn at a step; 0 deliberates nowhere, which is further training on the
    expert's episodes. ``iterations``, each of ``updates`` updates of ``batch_tasks`` tasks, as ``update``
    says (by default, the paper's learning rate). ``tasks``: how many training tasks an iteration deliberates
    on (null: all). The dev tasks are played every ``eval_every`` updates.

    ``critic``: who writes critiques and deliberations: "engine", the model that is trained with its adapter
    off (the paper's), another of `environments.users`, or "rule", a template that states what each action led
    to.
    """

    candidates: int = Field(5, ge=0)
    iterations: int = Field(3, ge=1)
    updates: int = Field(20, ge=1)
    batch_tasks: int = Field(8, ge=1)
    tasks: int | None = Field(None, ge=1, le=KEYS)
    eval_every: int = Field(10, ge=1)
    update: SFT = SFT(lr=1e-5)
    critic: str | dict[str, Any] = "engine"

    @property
    def steps(self) -> int:
        """Updates in all."""
        return self.iterations * self.updates


# --- candidates ---


def distinct(actions: Sequence[Calls]) -> list[int]:
    """The places of the actions that differ from all before them; the first is always among them."""
    keys = [tuple(map(canonical, calls)) for calls in actions]
    return [place for place, key in enumerate(keys) if keys.index(key) == place]


def flagged(actions: Sequence[Calls]) -> bool:
    """Whether to deliberate on a step: the expert's action and those drawn are not all one."""
    return len(distinct(actions)) > 1


@dataclass(frozen=True, slots=True)
class Trial:
    """An action, what it led to, and how that ended. ``place``: the turn, from 1."""

    calls: Calls
    place: int
    episode: Episode

    @property
    def action(self) -> str:
        """The action as text."""
        return "; ".join(map(to_text, self.calls))

    @property
    def after(self) -> str:
        """What followed, a line each."""
        turns = self.episode.turns[self.place - 1 :]
        lines = [turns[0].feedback] if turns else []
        for turn in turns[1:]:
            lines += ["; ".join(map(to_text, turn.calls)) or "(no action)", turn.feedback]
        return "\n".join(lines)


# --- critics ---


class Critic(Protocol):
    """Writes; ``name`` says in the record who it is."""

    name: str

    def critique(self, history: str, trial: Trial) -> str:
        """Whether an action helped."""
        ...

    def deliberation(self, history: str, critiques: Sequence[tuple[str, str]], final: str) -> str:
        """A thought that weighs actions by their critiques and settles on ``final``."""
        ...


class RuleCritic:
    """States what each action led to, from the environment's answer and the end alone. For tests, and for
    models that are too small to write.
    """

    name = RULE

    def critique(self, history: str, trial: Trial) -> str:
        """See `Critic`."""
        solved = "solved it" if trial.episode.solves() else "did not solve it"
        score = f"{trial.episode.score:g}"
        return f"it {solved} ({score})"

    def deliberation(self, history: str, critiques: Sequence[tuple[str, str]], final: str) -> str:
        """See `Critic`."""
        return "\n".join([*(f"{action}: {critique}" for action, critique in critiques), f"so {final}"])


CRITIQUE = """An agent works on this task.
{history}
Now it does this: {action}
What followed, which the agent cannot know yet:
{after}
Final score: {score:g}

Does this action advance the task, hinder it, or does it not matter, and what common sense does that teach?
Answer in the first person, in at most three sentences. Do not mention what followed, and no outside help."""

DELIBERATION = """An agent works on this task.
{history}
It could do one of these, and thinks of each:
{critiques}
It will do this: {final}

Write its thought in the first person: weigh each action, compare them, and say why that one is done.
Write the thought alone."""


class ModelCritic:
    """Asks a model, greedily."""

    def __init__(self, model: UserModel, name: str) -> None:
        self.model, self.name = model, name

    def critique(self, history: str, trial: Trial) -> str:
        """See `Critic`."""
        question = CRITIQUE.format(
            history=history, action=trial.action, after=trial.after, score=trial.episode.score
        )
        return self.model.reply(question).strip()

    def deliberation(self, history: str, critiques: Sequence[tuple[str, str]], final: str) -> str:
        """See `Critic`."""
        listed = "\n".join(f"- {action}: {critique}" for action, critique in critiques)
        return self.model.reply(DELIBERATION.format(history=history, critiques=listed, final=final)).strip()


def first_sentences(text: str, most: int = MOST_SENTENCES) -> str:
    """The text up to the end of its sentence ``most``."""
    ends = [found.end() for found in re.finditer(r"[.!?](?=\s|$)", text)]
    return text[: ends[most - 1]] if len(ends) >= most else text


def build_critic(spec: str | Mapping[str, Any]) -> RuleCritic | ModelCritic:
    """The critic of a config. Raises as `build_user`."""
    if spec == RULE:
        return RuleCritic()
    model = build_user(spec)
    match model:
        case EngineUser():
            return ModelCritic(model, f"engine:{model.model}")
        case EndpointUser():
            return ModelCritic(model, f"endpoint:{model.endpoint.model}")
    return ModelCritic(model, type(model).__name__)


# --- an iteration ---


@dataclass(slots=True)
class Deliberated:
    """What an iteration made of an expert episode: ``thoughts`` by flagged turn (from 1), with each one's
    ``candidates``; ``refused``: the environment answered the expert otherwise when it was played again.
    """

    task: str
    refused: bool = False
    thoughts: dict[int, str] = field(default_factory=dict)
    candidates: dict[int, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def revise(self, demonstration: Demonstration) -> Demonstration:
        """The episode with its new thoughts; actions and other thoughts stay."""
        return demonstration.saying({n: thinking(text) for n, text in self.thoughts.items()})


async def deliberated(
    player: Player, demonstration: Demonstration, candidates: int, critic: Critic, key: int
) -> Deliberated:
    """Deliberate on one expert episode with the present policy; ``key``, below `KEYS`, names its noise."""
    expert = demonstration.episode(player.chat)
    turns, task, seed = turn_ids(expert), expert.task, expert.seed
    found = Deliberated(task, counts=Counter(dict.fromkeys(COUNTS, 0)))
    replayed = await player.play(task, seed, key=key, lead=turns)
    if demonstration.refused_by(replayed):
        found.refused, found.counts["refused"] = True, 1
        return found

    async def step(number: int) -> None:
        actions = await possible(player, expert, number, candidates, key + KEYS * number)
        found.counts["steps"] += 1
        found.counts["unreadable"] += 1 + candidates - len(actions)
        if not flagged([calls for calls, _ in actions]):
            return
        places = distinct([calls for calls, _ in actions])
        ends = await asyncio.gather(
            *(
                player.play(
                    task,
                    seed,
                    key=key,
                    index=number * (candidates + 1) + place,
                    lead=leads(turns, number, actions[place][1]),
                )
                for place in places
            )
        )
        trials = [Trial(actions[place][0], number, end) for place, end in zip(places, ends, strict=True)]
        found.counts["flagged"] += 1
        found.counts["rollouts"] += len(trials)
        found.candidates[number] = [trial.action for trial in trials]
        critiques = await asyncio.to_thread(criticised, number, trials)
        kept = [(action, first_sentences(text)) for action, text in critiques]
        found.counts["critiques_cut"] += sum(map(operator.ne, critiques, kept))
        final = trials[0].action
        written = await asyncio.to_thread(critic.deliberation, told(demonstration, number), kept, final)
        found.counts["unwritten"] += not written
        if written:
            found.thoughts[number] = written

    def criticised(number: int, trials: Sequence[Trial]) -> list[tuple[str, str]]:
        history = told(demonstration, number)
        return [(trial.action, critic.critique(history, trial)) for trial in trials]

    await asyncio.gather(*(step(number) for number in range(1, len(turns) + 1)))
    found.thoughts = dict(sorted(found.thoughts.items()))
    return found


async def possible(
    player: Player, expert: Episode, number: int, candidates: int, key: int
) -> list[tuple[Calls, list[int]]]:
    """What can be done at turn ``number``, with the ids that do it: what the expert did, then what was drawn
    and can be read.
    """
    log, turn, sampling = expert.sample, expert.turns[number - 1], player.config.sampling
    reads = log.prompt_ids + log.token_ids[: turn.action[0]]
    samples = await asyncio.gather(
        *(player.session.sample(reads, sampling, key=key, index=i) for i in range(candidates))
    )
    actions = [(turn.calls, log.token_ids[slice(*turn.action)])]
    for sample in samples:
        reply = player.chat.read(sample.token_ids, sampling.stop)
        if calls := tuple(read_call(call.name, call.arguments) for call in reply.calls):
            actions.append((calls, sample.token_ids))
    return actions


def thinking_at_random(demonstration: Demonstration) -> Demonstration:
    """With a deliberation of one action before some calls, drawn by the task's name: it teaches the words of
    `RuleCritic` to a model that has never seen them, and not when to think.
    """
    drawn, critic = random.Random(f"sand/{demonstration.task}"), RuleCritic()
    said = {}
    for number, turn in enumerate(demonstration.played.episode.turns, start=1):
        if drawn.random() < 0.5:
            trial = Trial(turn.calls, number, demonstration.played.episode)
            critiques = [(trial.action, critic.critique("", trial))]
            said[number] = thinking(critic.deliberation("", critiques, trial.action))
    return demonstration.saying(said)


def told(demonstration: Demonstration, number: int) -> str:
    """The task, and the expert's turns before turn ``number``, as text for a critic."""
    lines = [str(message.get("content") or "") for message in demonstration.opening.messages]
    for turn in demonstration.played.episode.turns[: number - 1]:
        lines += ["; ".join(map(to_text, turn.calls)), turn.feedback]
    return "\n".join(lines)
