"""Proposes a tool's effect, and whether it needs the user's assent, from its name and description [INFERRED].

Both shape when a tool may fire (`proactor.dialogue.catalog`), and most tool lists state neither. A proposal
fills in the missing fields, with a reason for each tool, for people to edit. It never changes a stated field.

Rules; the first that applies decides:

1. a phrase in the name (`check_in`, `sign_up`, `look_up`, …);
2. a name that ends in a noun of information (`order_status`, `bank_balance`) and has no word that is a verb
   only: read;
3. the first known verb of the name; after a light verb (`make_payment`, `create_booking`) the noun decides,
   and a description that begins with a committing verb overrides a reading one ("get_ride": "Book a cab …");
4. the first known verb of the description's first sentence ("Returns …" reads);
5. nothing known: write, without assent, and marked as a guess.

Then, unless the tool reads: a description with "cannot be undone", "permanently" or "non-refundable" makes it
irreversible; one with "after the user agrees" or the like makes it need assent. Irreversible tools need
assent, and so do commitments to other people (book, reserve, subscribe, …); reading tools do not.
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
    "read": (
        "get find search look lookup list show check view read query fetch describe count track see "
        "compare browse retrieve display recommend suggest calculate compute estimate verify validate "
        "translate summarize explain locate inspect preview monitor detect identify filter quote is has "
        "pull select"
    ),
    "write": (
        "set add create update change edit start stop play pause resume mute open turn save note remind "
        "record log write enable disable rename move copy assign tag mark put insert append upload "
        "configure adjust increase decrease lock unlock snooze make do report request plan enter"
    ),
    "commit": (
        "book reserve schedule reschedule apply register subscribe upgrade downgrade enroll enrol hire "
        "accept approve invite exchange return share deploy rsvp appoint"
    ),
    "irreversible": (
        "pay purchase buy transfer send cancel delete remove refund withdraw terminate submit publish post "
        "rent wipe drop erase revoke unsubscribe donate checkout charge order wire sell destroy uninstall "
        "overwrite discard email reset"
    ),
}
NOUNS: dict[Kind, str] = {
    "commit": "reservation booking appointment subscription registration",
    "irreversible": "payment purchase transaction cancellation deletion withdrawal donation",
}
LIGHT = "make do create place process perform issue offer initiate complete execute run submit"
INFORMATION = (
    "status history details detail info information balance availability options results price prices "
    "weather forecast directions times"
)
BOTH = (
    "order book transfer rent post charge schedule return report request record log mark note tag check "
    "play email quote wire exchange share set start stop open change plan view track search copy move "
    "upgrade reservation booking appointment subscription registration payment purchase transaction refund "
    "cancellation deletion withdrawal donation"
)
"""Nouns as often as verbs: a name such as order_status or booking_details only reads."""

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

_KINDS: dict[str, Kind] = {
    word: kind for table in (NOUNS, VERBS) for kind, words in table.items() for word in words.split()
}
_LIGHT, _INFORMATION, _BOTH = (frozenset(words.split()) for words in (LIGHT, INFORMATION, BOTH))
_FIELDS: tuple[Field, ...] = ("effect", "confirm")


class Suggestion(BaseModel):
    """The proposal for one tool. ``given``: fields that the catalog states; ``guess``: no rule applied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    effect: Effect
    confirm: bool
    reason: str
    given: tuple[Field, ...] = ()
    guess: bool = False

    @property
    def proposed_fields(self) -> tuple[Field, ...]:
        """The fields that are proposed rather than given."""
        return tuple(name for name in _FIELDS if name not in self.given)


class Proposal(BaseModel):
    """A catalog in which every tool has effect and confirm, and the suggestion behind each tool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    catalog: Catalog
    suggestions: tuple[Suggestion, ...]

    @property
    def open_suggestions(self) -> tuple[Suggestion, ...]:
        """The suggestions that propose something, for a person to check."""
        return tuple(s for s in self.suggestions if s.proposed_fields)


def propose(catalog: Catalog) -> Proposal:
    """Effects and assent for tools that lack them. Stated fields stay, so proposing twice changes nothing."""
    suggestions = tuple(_suggest(tool) for tool in catalog.tools)
    tools = tuple(
        tool.model_copy(update={"effect": s.effect, "confirm": s.confirm})
        for tool, s in zip(catalog.tools, suggestions, strict=True)
    )
    return Proposal(catalog=Catalog(tools=tools), suggestions=suggestions)


def _suggest(tool: Tool) -> Suggestion:
    given = tuple(name for name in _FIELDS if name in tool.model_fields_set)
    if len(given) == 2:
        return Suggestion(
            name=tool.name, effect=tool.effect, confirm=tool.confirm, reason="given", given=given
        )
    verdict = _from_name(tool.name)
    if verdict is None:
        verdict = _from_description(tool.description)
    elif verdict[0] == "read" and _IMPERATIVE.match(tool.description):
        described = _from_description(tool.description)
        if described and described[0] in ("commit", "irreversible"):
            verdict = described
    kind, reason = verdict or (None, "no rule speaks: a guess")
    effect, confirm = _EFFECTS[kind or "write"]
    if "effect" in given:
        effect = tool.effect
        confirm = effect == "irreversible" or (effect == "write" and kind in ("commit", "irreversible"))
        reason = f"effect given; {reason}"
    elif effect != "read" and (match := _FINAL.search(tool.description)):
        effect, confirm, reason = "irreversible", True, f"{match[0]!r} in the description"
    if effect != "read" and not confirm and (match := _ASSENT.search(tool.description)):
        confirm, reason = True, f"{reason}; {match[0]!r} in the description"
    if "confirm" in given:
        confirm, reason = tool.confirm, f"confirm given; {reason}"
    return Suggestion(
        name=tool.name, effect=effect, confirm=confirm, reason=reason, given=given, guess=kind is None
    )


def _from_name(name: str) -> tuple[Kind, str] | None:
    """Rules 1 to 3, on the part after the last dot or slash: the part before it names a service."""
    words = _words(re.split(r"[./:]", name.rstrip("./:"))[-1])
    for pair in pairwise(words):
        if pair in PHRASES:
            return PHRASES[pair], f"'{' '.join(pair)}' in the name"
    if words and words[-1] in _INFORMATION and not any(w in _KINDS and w not in _BOTH for w in words):
        return "read", f"'{words[-1]}' ends the name"
    first = next((i for i, word in enumerate(words) if word in _KINDS or word in _LIGHT), None)
    if first is None:
        return None
    rest = words[first + 1 :] if words[first] in _LIGHT else ()
    word = next((w for w in rest if _KINDS.get(w) in ("commit", "irreversible")), words[first])
    return _KINDS.get(word, "write"), f"'{word}' in the name"


def _from_description(text: str) -> tuple[Kind, str] | None:
    """Rule 4."""
    words = _words(re.split(r"[.!?:](?:\s|$)", text, maxsplit=1)[0])
    for position, word in enumerate(words):
        if position == 0 and any(form in _REPORTS for form in _forms(word)):
            return "read", f"'{word}' begins the description"
        for form in _forms(word):
            if form in _KINDS and (position == 0 or form not in _BOTH):
                return _KINDS[form], f"'{word}' in the description"
    return None


def _words(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORD.findall(text))


def _forms(word: str) -> tuple[str, ...]:
    """The word and the verbs it may be a form of: books, searches, applies, booking, moving."""
    ends: Mapping[str, tuple[str, ...]] = {"ies": ("y",), "es": ("", "e"), "s": ("",), "ing": ("", "e")}
    return (
        word,
        *(word.removesuffix(end) + new for end, news in ends.items() if word.endswith(end) for new in news),
    )
