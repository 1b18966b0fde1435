"""Phrases that show the state of an action: raised, agreed to, on hold, taken back, overdue.

`ENGLISH`: general phrases of no particular tool. `synthetic_book`: the generator's phrases for synthetic
dialogues; they name no window. All are [INFERRED].
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from proactor.dialogue.dialogue import fold
from proactor.sources import synthetic_phrases as words
from proactor.sources.synthetic_skills import SKILLS

_HOLE = re.compile(r"\{(\w*)\}")


@dataclass(frozen=True)
class CueBook:
    """Patterns of cues, searched in a user turn in lower case.

    A ``{noun}`` in a pattern stands for the tool's entry in ``nouns``, other holes for values. ``openers``:
    requests, by tool; a tool without any counts as raised by its first value. ``asides``: turns that say
    nothing about any action, whatever they mention.
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
        """Whether the turn has the cue (a field's name), about ``tool`` where the pattern has a noun."""
        pattern: str = getattr(self, cue)
        noun = re.escape(self.nouns[tool]) if tool in self.nouns else r".+?"
        return _compile(pattern.replace("{noun}", noun)).search(text.casefold().strip()) is not None

    def opens(self, text: str, tool: str, params: Mapping[str, Sequence[str]]) -> bool:
        """Whether the turn asks for ``tool``, with these values, each in one of its spellings, where the
        wording has any.
        """
        values = {name: f"(?:{_alternatives(map(fold, said))})" for name, said in params.items()}
        turn = fold(text)
        patterns = (_compile(fill_holes(opener, values)) for opener in self.openers.get(tool, ()))
        return any(pattern.search(turn) is not None for pattern in patterns)


@lru_cache(maxsize=4096)
def _compile(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)


def fill_holes(template: str, values: Mapping[str, str]) -> str:
    """A pattern with its ``{holes}`` replaced by ``values``; a hole without a value matches anything."""
    return _HOLE.sub(lambda hole: values.get(hole[1], ".+?"), template)


ENGLISH = CueBook(
    assent=(
        r"^(yes|yep|yeah|yup|sure|ok|okay|correct|right|exactly|perfect|great|sounds good"
        r"|that('s| is| sounds| works)|please do|go ahead)\b"
    ),
    hold=r"\b(not yet|hold on|hold off|wait|let me (check|think|see))\b",
    release=r"\b(go ahead|go on|do it|please do|proceed|yes)\b",
    take_back=(
        r"\b(never ?mind|forget (it|that|about)|changed my mind"
        r"|do(n't| not) (need|want) (it|that|the .+) any ?more|cancel that)\b"
    ),
    ask_again=r"\b(did you forget|have you done|is (it|that|the .+) done|what about the)\b",
)
"""For any English dialogue and any tools."""


@lru_cache(maxsize=1)
def synthetic_book() -> CueBook:
    """The phrases of the synthetic dialogues."""
    asides = [*words.SMALL_TALK, *words.DISTRACTORS, *words.GREETINGS, *words.CLOSINGS]
    return CueBook(
        assent=_match_whole([*words.ASSENTS, *words.AFTER_HEDGE]),
        hold=f"(?:{_alternatives(words.HOLDS)})$",
        release=_match_whole(words.RELEASES, "{noun}"),
        take_back=_match_whole([*words.WITHDRAWALS, *words.REVOCATIONS], "{noun}"),
        ask_again=_match_whole(words.NUDGES, "{noun}"),
        asides=_match_whole([*(user for user, _ in asides), *words.FILLERS]),
        openers={
            skill.name: tuple(
                rf"^(?:{_alternatives(j for j in words.JOINERS if j)})?{_escape(o)}\b" for o in skill.openers
            )
            for skill in SKILLS
        },
        nouns={skill.name: skill.noun for skill in SKILLS},
    )


def _match_whole(templates: Iterable[str], hole: str = ".+?") -> str:
    """A pattern that matches a whole turn of one of ``templates``."""
    return rf"^(?:{'|'.join(_escape(t, hole) for t in templates)})$"


def _alternatives(texts: Iterable[str]) -> str:
    return "|".join(re.escape(text) for text in texts)


def _escape(template: str, hole: str | None = None) -> str:
    """``template`` as a pattern: its words escaped, its holes kept, or replaced by ``hole``."""
    pattern, end = "", 0
    for match in _HOLE.finditer(template):
        pattern += re.escape(template[end : match.start()]) + (match[0] if hole is None else hole)
        end = match.end()
    return pattern + re.escape(template[end:])
