"""Words by which a conversation shows where an action stands: raised, agreed to, put on hold, taken back,
asked for again.

`ENGLISH` holds general phrases and knows no tool; a corpus whose wording is known has a book of its own
(`synthetic_book`: the phrases of the generator, which say how people talk and not where a window lies). All
of it is [INFERRED].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from proactor.sources import synthetic_phrases as words
from proactor.sources.synthetic_skills import SKILLS

_HOLE = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class CueBook:
    """Patterns are searched in a user turn, lower case. `{noun}` stands for how people refer to the tool
    (`nouns`), other holes for values.

    `openers`: by tool, how it is asked for; a tool without any is taken to be raised with its first value.
    `asides`: turns that say nothing about an action whatever they mention.
    """

    assent: str
    hold: str
    release: str
    take_back: str
    ask_again: str
    asides: str = r"(?!)"
    openers: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    nouns: Mapping[str, str] = field(default_factory=dict)

    def says(self, cue: str, text: str, tool: str = "") -> bool:
        """Does the turn hold the cue (a field's name), about ``tool`` where the pattern names it?"""
        pattern: str = getattr(self, cue)
        noun = re.escape(self.nouns[tool]) if tool in self.nouns else r".+?"
        return _compiled(pattern.replace("{noun}", noun)).search(text.casefold().strip()) is not None

    def opens(self, text: str, tool: str, params: Mapping[str, str]) -> bool:
        """Does the turn ask for ``tool`` (with these values, where its wording holds some)?"""
        values = {name: re.escape(value.casefold()) for name, value in params.items()}
        said = text.casefold()
        return any(_compiled(filled(o, values)).search(said) is not None for o in self.openers.get(tool, ()))


@lru_cache(maxsize=4096)
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def filled(template: str, values: Mapping[str, str]) -> str:
    """A pattern with its `{holes}` replaced by ``values``, anything where there is none."""
    return _HOLE.sub(lambda hole: values.get(hole[1], ".+?"), template)


ENGLISH = CueBook(
    assent=r"^(yes|yep|yeah|yup|sure|ok|okay|correct|right|exactly|perfect|great|sounds good|that('s| is| sounds| works)|please do|go ahead)\b",
    hold=r"\b(not yet|hold on|hold off|wait|let me (check|think|see))\b",
    release=r"\b(go ahead|go on|do it|please do|proceed|yes)\b",
    take_back=r"\b(never ?mind|forget (it|that|about)|changed my mind|do(n't| not) (need|want) (it|that|the .+) any ?more|cancel that)\b",
    ask_again=r"\b(did you forget|have you done|is (it|that|the .+) done|what about the)\b",
)
"""For any English dialogue; knows nobody's tools."""


@lru_cache(maxsize=1)
def synthetic_book() -> CueBook:
    """The wording of the synthetic dialogues."""
    asides = [*words.SMALL_TALK, *words.DISTRACTORS, *words.GREETINGS, *words.CLOSINGS]
    return CueBook(
        assent=_whole([*words.ASSENTS, *words.AFTER_HEDGE]),
        hold=f"(?:{_any(words.HOLDS)})$",
        release=_whole(words.RELEASES, "{noun}"),
        take_back=_whole([*words.WITHDRAWALS, *words.REVOCATIONS], "{noun}"),
        ask_again=_whole(words.NUDGES, "{noun}"),
        asides=_whole([*(user for user, _ in asides), *words.FILLERS]),
        openers={
            skill.name: tuple(
                rf"^(?:{_any(j for j in words.JOINERS if j)})?{_escaped(o)}\b" for o in skill.openers
            )
            for skill in SKILLS
        },
        nouns={skill.name: skill.noun for skill in SKILLS},
    )


def _whole(templates: Iterable[str], hole: str = ".+?") -> str:
    return rf"^(?:{'|'.join(_escaped(t, hole) for t in templates)})$"


def _any(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in texts)


def _escaped(template: str, hole: str | None = None) -> str:
    """``template`` as a pattern: words literal, holes kept (by name) or replaced by ``hole``."""
    out, at = "", 0
    for found in _HOLE.finditer(template):
        out += re.escape(template[at : found.start()]) + (found[0] if hole is None else hole)
        at = found.end()
    return out + re.escape(template[at:])
