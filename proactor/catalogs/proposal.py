"""What a tool does to the world, and whether it needs the user's assent, proposed from its words [INFERRED].

Both shape when a tool may fire (see `proactor.dialogue.catalog`), and most tool lists say neither. A proposal fills in
what a catalog leaves unsaid, gives a reason for each tool, and is meant to be read and edited; it never
changes what is said.

Rules, the first that speaks decides:

1. a phrase in the name (`check_in`, `sign_up`, `look_up`, …);
2. a name that ends in a noun of information (`order_status`, `bank_balance`) and has no word that is a verb
  only: read;
3. the first known verb of the name; a light verb (`make_payment`, `create_booking`) leaves it to the noun
   after it, and a verb that reads gives way to a description that begins with a verb that commits
   ("get_ride": "Book a cab …");
4. the first known verb of the description's first sentence ("Returns …" reads);
5. nothing known: write, without assent, and marked as a guess.

On top, unless the tool reads: a description that says so ("cannot be undone", "permanently",
"non-refundable") makes it irreversible, and one that asks for consent ("after the user agrees") makes it need
assent. What is irreversible needs assent; so do commitments to other people (book, reserve, subscribe, …);
what reads does not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import pairwise
from typing import Literal

from pydantic import BaseModel, ConfigDict

from proactor.dialogue.catalog import Catalog, Effect, Tool

Kind = Literal["read", "write", "commit", "irreversible"]
Field = Literal["effect", "confirm"]

VERBS: dict[Kind, str] = {
    "read": "get find search look lookup list show check view read query fetch describe count track see compare browse retrieve display recommend suggest "
    "calculate compute estimate verify validate translate summarize explain locate inspect preview monitor "
    "detect identify filter quote is has pull select",
    "write": "set add create update change edit start stop play pause resume mute open turn save note remind record log write enable disable rename move copy "
    "assign tag mark put insert append upload configure adjust increase decrease lock unlock snooze make do "
    "report request plan enter",
    "commit": "book reserve schedule reschedule apply register subscribe upgrade downgrade enroll enrol hire accept approve invite exchange return "
    "share deploy rsvp appoint",
    "irreversible": "pay purchase buy transfer send cancel delete remove refund withdraw terminate submit publish post rent wipe drop erase revoke unsubscribe "
    "donate checkout charge order wire sell destroy uninstall overwrite discard email reset",
}
NOUNS: dict[Kind, str] = {
    "commit": "reservation booking appointment subscription registration",
    "irreversible": "payment purchase transaction cancellation deletion withdrawal donation",
}
LIGHT = "make do create place process perform issue offer initiate complete execute run submit"
INFORMATION = (
    "status history details detail info information balance availability options results price prices "
    "weather forecast "
    "directions times"
)
BOTH = (  # nouns as often as verbs: a name such as order_status or booking_details only reads
    "order book transfer rent post charge schedule return report request record log mark note tag check "
    "play email quote wire exchange share set start "
    "stop open change plan view track search copy move upgrade reservation booking appointment subscription "
    "registration payment purchase transaction "
    "refund cancellation deletion withdrawal donation"
)
PHRASES: dict[tuple[str, str], Kind] = {
    ("check", "in"): "commit",
    ("check", "out"): "irreversible",
    ("sign", "up"): "commit",
    ("opt", "in"): "commit",
    ("opt", "out"): "commit",
    ("sign", "in"): "write",
    ("log", "in"): "write",
    ("look", "up"): "read",
    ("pull", "up"): "read",
    ("call", "off"): "irreversible",
}

_EFFECTS: dict[Kind, tuple[Effect, bool]] = {
    "read": ("read", False),
    "write": ("write", False),
    "commit": ("write", True),
    "irreversible": ("irreversible", True),
}
_FINAL = re.compile(
    r"(?:can(?:no|')t|can not|cannot) be (?:undone|reversed)|irreversibl\w+|permanently|non-?refundable", re.I
)
_ASSENT = re.compile(
    r"(?:user|customer|client)(?:'s)? (?:explicit(?:ly)? )?(?:consent|approv|confirm|agree|accept)\w*"
    r"|ask (?:the )?(?:user|customer|client)\b|with (?:explicit )?(?:consent|confirmation)",
    re.I,
)
_IMPERATIVE = re.compile(r"\s*\w+ (?:an?|the|your|this|one|some)\b", re.I)
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_REPORTS = ("return", "provide", "give", "tell", "report")
"""Verbs that read where a description begins with them: "Returns the weather"."""

_kinds: dict[str, Kind] = {
    word: kind for table in (NOUNS, VERBS) for kind, words in table.items() for word in words.split()
}
_light, _information, _both = (frozenset(words.split()) for words in (LIGHT, INFORMATION, BOTH))


class Suggestion(BaseModel):
    """What is proposed for one tool. `given`: what the catalog said itself; `guess`: no rule spoke."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    effect: Effect
    confirm: bool
    reason: str
    given: tuple[Field, ...] = ()
    guess: bool = False

    @property
    def proposed(self) -> tuple[Field, ...]:
        """The fields that are proposed and not given."""
        fields: tuple[Field, ...] = ("effect", "confirm")
        return tuple(name for name in fields if name not in self.given)


class Proposal(BaseModel):
    """A catalog whose every tool says what it does, and how each of them came to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalog: Catalog
    suggestions: tuple[Suggestion, ...]

    @property
    def open(self) -> tuple[Suggestion, ...]:
        """The suggestions that propose something: what a person should look at."""
        return tuple(s for s in self.suggestions if s.proposed)


def propose(catalog: Catalog) -> Proposal:
    """Effects and assent for the tools that do not say them; what a tool says is kept. Proposing twice
    changes nothing.
    """
    suggestions = tuple(_suggest(tool) for tool in catalog.tools)
    tools = tuple(
        tool.model_copy(update={"effect": s.effect, "confirm": s.confirm})
        for tool, s in zip(catalog.tools, suggestions, strict=True)
    )
    return Proposal(catalog=Catalog(tools=tools), suggestions=suggestions)


def _suggest(tool: Tool) -> Suggestion:
    fields: tuple[Field, ...] = ("effect", "confirm")
    given = tuple(name for name in fields if name in tool.model_fields_set)
    if len(given) == 2:
        return Suggestion(
            name=tool.name, effect=tool.effect, confirm=tool.confirm, reason="given", given=given
        )
    told = _from_name(tool.name)
    if told is None or (told[0] == "read" and _IMPERATIVE.match(tool.description)):
        other = _from_description(tool.description)
        told = other if told is None or (other and other[0] in ("commit", "irreversible")) else told
    kind, reason = told or (None, "no rule speaks: a guess")
    effect, confirm = _EFFECTS[kind or "write"]
    if "effect" in given:
        effect = tool.effect
        confirm = effect == "irreversible" or (effect == "write" and kind in ("commit", "irreversible"))
        reason = f"effect given; {reason}"
    elif effect != "read" and (said := _FINAL.search(tool.description)):
        effect, confirm, reason = "irreversible", True, f"{said[0]!r} in the description"
    if effect != "read" and not confirm and (said := _ASSENT.search(tool.description)):
        confirm, reason = True, f"{reason}; {said[0]!r} in the description"
    if "confirm" in given:
        confirm, reason = tool.confirm, f"confirm given; {reason}"
    return Suggestion(
        name=tool.name, effect=effect, confirm=confirm, reason=reason, given=given, guess=kind is None
    )


def _from_name(name: str) -> tuple[Kind, str] | None:
    """Rules 1 to 3. Only what follows the last dot or slash counts: what is before it names a service."""
    words = _words(re.split(r"[./:]", name.rstrip("./:"))[-1])
    for pair in pairwise(words):
        if pair in PHRASES:
            return PHRASES[pair], f"'{' '.join(pair)}' in the name"
    if words and words[-1] in _information and not any(w in _kinds and w not in _both for w in words):
        return "read", f"'{words[-1]}' ends the name"
    first = next((i for i, word in enumerate(words) if word in _kinds or word in _light), None)
    if first is None:
        return None
    rest = words[first + 1 :] if words[first] in _light else ()
    word = next((w for w in rest if _kinds.get(w) in ("commit", "irreversible")), words[first])
    return _kinds.get(word, "write"), f"'{word}' in the name"


def _from_description(text: str) -> tuple[Kind, str] | None:
    """Rule 4."""
    words = _words(re.split(r"[.!?:](?:\s|$)", text, maxsplit=1)[0])
    for position, word in enumerate(words):
        if position == 0 and any(form in _REPORTS for form in _forms(word)):
            return "read", f"'{word}' begins the description"
        for form in _forms(word):
            if form in _kinds and (position == 0 or form not in _both):
                return _kinds[form], f"'{word}' in the description"
    return None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(text))


def _forms(word: str) -> tuple[str, ...]:
    """The word and what it may be a form of: books, searches, applies, booking, moving."""
    ends: Mapping[str, tuple[str, ...]] = {"ies": ("y",), "es": ("", "e"), "s": ("",), "ing": ("", "e")}
    return (
        word,
        *(word.removesuffix(end) + new for end, news in ends.items() if word.endswith(end) for new in news),
    )
