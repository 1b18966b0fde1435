"""The script of one synthetic action: what user and agent say from the opener to the turn that settles it.

A script does not see the rest of the conversation: the generator plays its beats, puts others in between, and
keeps the turn numbers.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from proactor.sources import synthetic_phrases as words
from proactor.sources.synthetic_pools import draw_value
from proactor.sources.synthetic_skills import BY_NAME, SKILLS, Skill, Slot


class SyntheticOptions(BaseModel):
    """Size and mixture of the corpus. Shares are probabilities per action (``digress``: per exchange)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int = Field(default=4000, ge=1, description="dialogues over all splits")
    min_turns: int = Field(default=6, ge=2)
    max_turns: int = Field(default=16, ge=6)
    max_actions: int = Field(default=3, ge=1, le=5)
    max_delay: int = Field(default=3, ge=0, le=6)
    tools: int = Field(
        default=6, ge=1, le=len(SKILLS), description="tools on offer in a dialogue, at least the used"
    )
    skills: tuple[str, ...] = Field(default=(), description="restrict to these tools; empty: all")
    correct: float = Field(default=0.2, ge=0, le=1)
    hold: float = Field(default=0.12, ge=0, le=1)
    withdraw: float = Field(default=0.12, ge=0, le=1)
    revoke: float = Field(default=0.06, ge=0, le=1)
    forget: float = Field(default=0.08, ge=0, le=1)
    offer: float = Field(default=0.25, ge=0, le=1)
    digress: float = Field(default=0.2, ge=0, le=1)
    open: float = Field(
        default=0.0, ge=0, le=1, description="values composed of parts instead of drawn from a short list"
    )

    @model_validator(mode="after")
    def _check(self) -> SyntheticOptions:
        if self.min_turns > self.max_turns:
            raise ValueError(f"min_turns {self.min_turns} is above max_turns {self.max_turns}")
        if unknown := sorted(set(self.skills) - BY_NAME.keys()):
            raise ValueError(f"skills: {unknown[0]!r} is not a synthetic tool")
        return self


@dataclass(slots=True)
class Beat:
    """A user turn and the agent's reply. ``says``, ``offers``: values spoken by the user, by the agent.
    ``event``: what the user turn settles.
    """

    user: str
    reply: str = ""
    says: dict[str, str] = field(default_factory=dict)
    offers: dict[str, str] = field(default_factory=dict)
    event: Literal["", "ready", "withdraw"] = ""


class Script:
    """Draws once what happens to the action, then yields its beats.

    ``params``: the values that the user finally wants. `current`: the values as the user says them now; it
    differs from ``params`` in the slot `wrong` until that is corrected.
    """

    def __init__(
        self, rng: random.Random, skill: Skill, params: dict[str, str], options: SyntheticOptions
    ) -> None:
        self.rng, self.skill, self.params, self.options = rng, skill, params, options
        self.free = [slot for slot in skill.slots if not slot.lead]
        rng.shuffle(self.free)
        self.withdraw = rng.random() < options.withdraw
        self.hold = rng.random() < options.hold
        self.wrong: Slot | None = rng.choice(self.free) if rng.random() < options.correct else None
        self.current = dict(params)
        if self.wrong is not None:
            self.current[self.wrong.name] = draw_value(rng, self.wrong.pool, options.open, params.values())

    def beats(self, joined: bool) -> Iterator[Beat]:
        """The beats up to the one that is ready or withdrawn. ``joined``: another action came before."""
        known = self.rng.randint(0, len(self.free))
        missing = self.free[known:]
        beat = self._open(self.free[:known], joined)
        while missing:
            slot = missing.pop(0)
            offered = self._ask(beat, slot)
            yield beat
            if self.withdraw and not self.skill.confirm and not missing:
                yield self._withdrawal()
                return
            beat = self._answer(slot, offered, missing)
        yield from (self._settle_with_assent if self.skill.confirm else self._settle)(beat)

    def _open(self, known: list[Slot], joined: bool) -> Beat:
        leading = {slot.name: self.current[slot.name] for slot in self.skill.slots if slot.lead}
        opener = self.rng.choice(self.skill.openers).format(**leading)
        text = " ".join([opener, *(_phrase(slot, self.current[slot.name]) for slot in known)])
        joiner = self.rng.choice(words.JOINERS) if joined else ""
        return Beat(f"{joiner}{text}.", says=leading | {slot.name: self.current[slot.name] for slot in known})

    def _ask(self, beat: Beat, slot: Slot) -> bool:
        """The agent asks for ``slot``, or offers two values of it (True)."""
        if slot.type in ("date", "time") and self.rng.random() < self.options.offer:
            value = self.current[slot.name]
            pair = [value, draw_value(self.rng, slot.pool, self.options.open, (value,))]
            self.rng.shuffle(pair)
            beat.reply = self.rng.choice(words.OFFERS).format(*pair)
            beat.offers[slot.name] = value
            return True
        beat.reply = self.rng.choice(slot.ask)
        return False

    def _answer(self, slot: Slot, offered: bool, missing: list[Slot]) -> Beat:
        """The user gives ``slot``, perhaps a second value, perhaps corrects an earlier one."""
        rng, value = self.rng, self.current[slot.name]
        text = rng.choice(words.CHOICES).format(value)
        if not offered:
            text = rng.choice(words.ANSWERS).format(_phrase(slot, value))
        beat = Beat(text, says={slot.name: value})
        if missing and rng.random() < 0.3:
            extra = missing.pop(0)
            beat.user = f"{beat.user[:-1]} {_phrase(extra, self.current[extra.name])}."
            beat.says[extra.name] = self.current[extra.name]
        wrong = self.wrong
        if wrong is not None and wrong.name not in beat.says and wrong not in missing and rng.random() < 0.5:
            self.current[wrong.name] = self.params[wrong.name]
            beat.user += " " + rng.choice(words.ALSO_CORRECT).format(_phrase(wrong, self.params[wrong.name]))
            beat.says[wrong.name] = self.params[wrong.name]
            self.wrong = None
        return beat

    def _settle(self, beat: Beat) -> Iterator[Beat]:
        """No assent is needed: after a hold or a late correction, if any, the action is ready."""
        rng = self.rng
        if self.hold:
            beat.user += " " + rng.choice(words.HOLDS)
            beat.reply = rng.choice(words.HOLD_REPLIES)
            yield beat
            if self.withdraw:
                yield self._withdrawal()
                return
            beat = Beat(rng.choice(words.RELEASES).format(self.skill.noun))
        if self.wrong is not None:
            beat.reply = rng.choice(words.STALLS)
            yield beat
            beat = self._correction(self.wrong)
        beat.event = "ready"
        yield beat

    def _settle_with_assent(self, beat: Beat) -> Iterator[Beat]:
        """The agent repeats the values; the user corrects, hedges, withdraws or agrees."""
        rng = self.rng
        beat.reply = rng.choice(words.CONFIRMS).format(self.skill.summary.format(**self.current))
        yield beat
        if self.wrong is not None:
            beat = self._correction(self.wrong)
            beat.reply = rng.choice(words.CONFIRMS).format(self.skill.summary.format(**self.params))
            yield beat
        if self.hold:
            yield Beat(*rng.choice(words.HEDGES))
        if self.withdraw:
            yield self._withdrawal()
            return
        yield Beat(rng.choice(words.AFTER_HEDGE if self.hold else words.ASSENTS), event="ready")

    def _correction(self, slot: Slot) -> Beat:
        value = self.params[slot.name]
        return Beat(self.rng.choice(words.CORRECTIONS).format(_phrase(slot, value)), says={slot.name: value})

    def _withdrawal(self) -> Beat:
        text = self.rng.choice(words.WITHDRAWALS).format(self.skill.noun)
        return Beat(text, self.rng.choice(words.DROPPED), event="withdraw")


def _phrase(slot: Slot, value: str) -> str:
    """A value inside a sentence: "on friday", but plain "tomorrow"."""
    return value if value == "tomorrow" and slot.say == "on {}" else slot.say.format(value)
