"""Synthetic scheduling dialogues with exactly known windows: the default corpus, nothing to download.

A dialogue plays one script per action (`synthetic_script`: open, ask for values, confirm, assent; some are
corrected, put on hold or withdrawn), with small talk and false friends in between. Turn by turn:

- an action is *open* (PENDING) from the turn that asks for it;
- it is *ready* once every value is said, and a tool that needs assent only once the user has agreed; a
  correction or "not yet" moves that to the turn that settles it;
- the window closes at the last user turn before the logged agent reports that it acted (0 to `max_delay` user
  turns later), or before the user takes the request back;
- sometimes the logged agent forgets and is reminded: coverage lasts until then, and acting there is late.

Every choice is drawn from `random.Random(f"{seed}/{index}")`: dialogue `index` depends on nothing else.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from itertools import islice

from proactor.dialogue import Dialogue, Reference, Turn
from proactor.sources import synthetic_phrases as words
from proactor.sources.base import Subset
from proactor.sources.corpus import Corpus, SelectionError, make_corpus
from proactor.sources.synthetic_pools import POOLS, draw_value
from proactor.sources.synthetic_script import Beat, Script, SyntheticOptions
from proactor.sources.synthetic_skills import BY_NAME, SKILLS, Skill, catalog


@dataclass(slots=True)
class _Live:
    """An action of the dialogue, and the turns at which it was opened, got ready and was closed."""

    id: str
    skill: Skill
    params: dict[str, str]
    delay: int
    ending: str  # "act" | "forget" | "revoke"
    opened: int = 0
    ready: int = 0
    due: int = 0
    closed: int = 0
    withdrawn: bool = False
    value_turns: dict[str, int] = field(default_factory=dict)

    def hear(self, turn: int, values: dict[str, str]) -> None:
        """Note the first turn at which a value stands as the user finally wants it."""
        for name, value in values.items():
            if self.params[name] == value:
                self.value_turns.setdefault(name, turn)

    def reference(self) -> Reference:
        """The action as a reference; a withdrawn one keeps only the values said before it was closed."""
        turns = {name: turn for name, turn in self.value_turns.items() if turn <= self.closed}
        seen = max(turns.values()) if len(turns) == len(self.params) else None
        if self.withdrawn:
            return Reference(
                id=self.id,
                name=self.skill.name,
                params={name: value for name, value in self.params.items() if name in turns},
                coverage=(self.opened, self.closed),
                value_turns=turns,
                values_seen=seen,
                null_reason="withdrawn",
            )
        return Reference(
            id=self.id,
            name=self.skill.name,
            params=dict(self.params),
            coverage=(self.opened, self.closed),
            ready=(self.ready, self.due),
            observed_trigger={"act": self.due, "forget": self.closed, "revoke": None}[self.ending],
            value_turns=turns,
            values_seen=seen,
        )


def dialogue_id(index: int, seed: int) -> str:
    """The id of dialogue number ``index`` of the corpus ``seed``."""
    return f"synthetic-{seed}-{index:06d}"


def generate(index: int, seed: int = 0, options: SyntheticOptions | None = None) -> Dialogue:
    """Dialogue number ``index`` of the corpus ``seed``. The same arguments always give the same dialogue."""
    options = options or SyntheticOptions()
    rng = random.Random(f"{seed}/{index}")
    for _ in range(1000):
        talk = _Conversation(rng, options)
        if options.min_turns <= len(talk.turns) <= options.max_turns:
            return talk.dialogue(dialogue_id(index, seed))
    raise SelectionError(
        f"no dialogue of {options.min_turns}-{options.max_turns} turns came up in 1000 draws: widen them"
    )


class _Conversation:
    """Plays scripts one after the other and records who spoke, and when each action was open and ready."""

    def __init__(self, rng: random.Random, options: SyntheticOptions) -> None:
        self.rng = rng
        self.options = options
        self.turns: list[tuple[str, str]] = []
        self.lives: list[_Live] = []
        self.waiting: list[_Live] = []  # ready, not yet reported
        self.question = ""
        self._play()

    def _play(self) -> None:
        rng, options = self.rng, self.options
        if rng.random() < 0.3:
            self._say(Beat(*rng.choice(words.GREETINGS)))
        pool = [BY_NAME[name] for name in options.skills] or list(SKILLS)
        number = min(
            rng.choice([n for n in (1, 1, 2, 2, 2, 3, 3, 4, 5) if n <= options.max_actions]), len(pool)
        )
        for position, skill in enumerate(rng.sample(pool, number)):
            self._act(skill, f"a{position + 1}")
        while self.waiting:
            talk = rng.choice((*words.SMALL_TALK, *((filler, "") for filler in words.FILLERS)))
            self._say(Beat(*talk))
        if rng.random() < 0.7:
            self._say(Beat(*rng.choice(words.CLOSINGS)))

    def _act(self, skill: Skill, name: str) -> None:
        rng, options = self.rng, self.options
        params = {slot.name: draw_value(rng, slot.pool, options.open) for slot in skill.slots}
        if {"pickup", "dropoff"} <= params.keys() and params["pickup"] == params["dropoff"]:
            params["dropoff"] = draw_value(rng, "spot", options.open, (params["pickup"],))
        delays = list(range(options.max_delay + 1))
        delay = rng.choices(delays, weights=[1 / (d + 1.5) for d in delays])[0]
        draw = rng.random()
        ending = "act"
        if draw < options.revoke:
            ending = "revoke"
        elif draw < options.revoke + options.forget:
            ending = "forget"
        live = _Live(name, skill, params, delay, ending)
        self.lives.append(live)
        for beat in Script(rng, skill, params, options).beats(len(self.lives) > 1):
            self._say(beat, live)
            if not beat.event and rng.random() < options.digress:
                user, reply = rng.choice((*words.SMALL_TALK, *words.DISTRACTORS))
                self._say(Beat(self._fill(user), f"{reply} {self.question}".strip()))

    def _fill(self, text: str) -> str:
        for name in POOLS:
            if f"{{{name}}}" in text:
                text = text.replace(f"{{{name}}}", draw_value(self.rng, name, self.options.open))
        return text

    def _say(self, beat: Beat, live: _Live | None = None) -> None:
        """One exchange. Reports of actions whose delay is over come with it; a forgotten or revoked action
        comes back in the next exchange.
        """
        rng = self.rng
        self.turns.append(("user", beat.user))
        turn = len(self.turns)
        if live is not None:
            live.opened = live.opened or turn
            live.hear(turn, beat.says)
            live.hear(turn + 1, beat.offers)
            if beat.event == "ready":
                live.ready = turn
                self.waiting.append(live)
            elif beat.event == "withdraw":
                live.withdrawn = True
                live.closed = turn - 2
        parts: list[str] = []
        returning: list[_Live] = []
        for done in list(self.waiting):
            if done.delay > 0:
                done.delay -= 1
                continue
            self.waiting.remove(done)
            done.due = done.closed = turn
            if done.ending == "act":
                parts.append(rng.choice(done.skill.done))
            else:
                returning.append(done)
        if beat.reply or not parts:
            parts.append(beat.reply or rng.choice(words.STALLS))
        if beat.reply.endswith("?"):
            self.question = beat.reply
        elif live is not None:
            self.question = ""
        self.turns.append(("agent", " ".join(parts)))
        for unfinished in returning:
            self._come_back(unfinished)

    def _come_back(self, live: _Live) -> None:
        rng = self.rng
        if live.ending == "revoke":
            user, reply = rng.choice(words.REVOCATIONS), rng.choice(words.DROPPED)
        else:
            user, reply = rng.choice(words.NUDGES), f"{rng.choice(words.LATE)} {rng.choice(live.skill.done)}"
            live.closed = len(self.turns) + 1
        self._say(Beat(user.format(live.skill.noun), f"{reply} {self.question}".strip()))

    def dialogue(self, name: str) -> Dialogue:
        used = [live.skill for live in self.lives]
        spare = [skill for skill in SKILLS if skill not in used]
        extra = self.rng.sample(spare, min(len(spare), max(0, self.options.tools - len(used))))
        offered = {skill.name for skill in (*used, *extra)}
        return Dialogue(
            id=name,
            turns=tuple(
                Turn(index=i, speaker="user" if speaker == "user" else "agent", text=text)
                for i, (speaker, text) in enumerate(self.turns, start=1)
            ),
            references=tuple(live.reference() for live in self.lives if not live.withdrawn),
            withdrawn=tuple(live.reference() for live in self.lives if live.withdrawn),
            tools=tuple(skill.name for skill in SKILLS if skill.name in offered),
            domain=used[0].domain,
            source="synthetic",
        )


OPTIONS = SyntheticOptions


def load(_path: None, subset: Subset, options: SyntheticOptions) -> Corpus:
    """The first `limit` of the `size` dialogues that are in the split, with all tools in the catalog."""
    seed = subset.seed
    indices = (i for i in range(options.size) if subset.includes(dialogue_id(i, seed)))
    dialogues = [generate(index, seed, options) for index in islice(indices, subset.limit)]
    return make_corpus(catalog(), dialogues)
