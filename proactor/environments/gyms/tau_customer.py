"""A customer for tau-bench's retail tasks that needs no model: it says what its instruction says, by rule.

The instruction is cut into sentences. Those about the customer's character are left out; those with the name,
email or zip code answer a question for them; the others are the requests, told one a turn, in the first
person. A question whether to go ahead is answered with yes. When all requests were told and the agent asks
for nothing more than that, or says that it is done, the customer ends the conversation.

What it cannot do: hold back, change its mind where the instruction says "If the agent ...", which it leaves
out, or look anything up. ``python -m bench.rule_users`` prints how far that carries.
"""

from __future__ import annotations

import re

STOP = "###STOP###"
"""What a customer says to end the conversation."""
UNKNOWN = "I do not know that."

_CUT = re.compile(r"(?<=[.!?])\s+(?=[A-Z#])|(?<=;)\s+(?=(?:Return|Cancel|Exchange|Modify|For) )")
_NAME = re.compile(r"(?:[Yy]our name is|[Yy]ou are|[Yy]ou're)\s+([A-Z][a-z]+ [A-Z][a-z]+)")
_USER_ID = re.compile(r"\b([a-z]+)_([a-z]+)_\d{4}\b")
_EMAIL = re.compile(r"[\w.]+@[\w.]+\w")
_ZIP = re.compile(r"\b(\d{5})\b(?!\d)")
_REQUEST = re.compile(
    r"#W\d|\b(?:return|exchange|cancel|modify|change|refund|order|item|pay|want|wish|like|need|prefer|address)",
    re.IGNORECASE,
)
_PERSONS = [
    (r"\bYou are\b", "I am"),
    (r"\byou are\b", "I am"),
    (r"\b[Yy]ou're\b", "I'm"),
    (r"\b[Yy]ou'd\b", "I'd"),
    (r"\b[Yy]ourself\b", "myself"),
    (r"\bYour\b", "My"),
    (r"\byour\b", "my"),
    (r"\b[Yy]ou\b", "I"),
]
_IDENTITY = re.compile(r"\b(?:names?|zip|e-?mail|verify|verification|identi\w+|authenticate)\b")
_AHEAD = re.compile(r"\b(?:confirm\w*|proceed|go ahead|yes|shall i|should i|is that (?:right|correct|ok))\b")
_DONE = re.compile(
    r"\b(?:anything else|all done|everything is done|has been completed|goodbye|have a (?:nice|great))\b"
)


class RuleCustomer:
    """The customer of one task. ``opening`` is its first message."""

    def __init__(self, instruction: str, opening: str) -> None:
        self.opening = opening
        sentences = [part.strip() for part in _CUT.split(instruction) if part.strip()]
        self.identity = _identity(instruction)
        self.requests = [first_person(part) for part in sentences if _is_request(part)]
        self.told = 0
        self.identified = False
        self.unanswered = 0

    def reply(self, message: str) -> str:
        """What the customer says to the agent's message; `STOP` ends the conversation."""
        said = message.lower()
        asks = "?" in said
        if _IDENTITY.search(said) and self.identity and not (self.identified and _AHEAD.search(said)):
            self.identified = True
            return self.identity
        if self.told and _AHEAD.search(said) and (asks or "yes" in said):
            return "Yes, please."
        if self.told < len(self.requests):
            self.told += 1
            return self.requests[self.told - 1]
        if not asks or _DONE.search(said) or self.unanswered:
            return STOP
        self.unanswered += 1
        return UNKNOWN


def first_person(sentence: str) -> str:
    """An instruction's sentence as the customer would say it."""
    for pattern, person in _PERSONS:
        sentence = re.sub(pattern, person, sentence)
    return sentence


def _is_request(sentence: str) -> bool:
    if sentence.startswith("If the agent"):
        return False
    introduces = _NAME.match(sentence) or _USER_ID.search(sentence)
    rest = _EMAIL.sub("", _USER_ID.sub("", sentence))
    return bool(_REQUEST.search(rest)) if not introduces else bool(re.search(r"#W\d|\bwant|\bwish", rest))


def _identity(instruction: str) -> str:
    name, user_id = _NAME.search(instruction), _USER_ID.search(instruction)
    email, code = _EMAIL.search(instruction), _ZIP.search(instruction)
    who = name[1] if name else f"{user_id[1]} {user_id[2]}".title() if user_id else ""
    parts = [f"My name is {who}"] if who else []
    parts += [f"my email is {email[0]}"] if email else []
    parts += [f"my zip code is {code[1]}"] if code and not email else []
    return f"{' and '.join(parts)}." if parts else ""
