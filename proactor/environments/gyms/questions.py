"""Twenty questions over a table of our own: guess what the user thinks of by asking for its attributes.

It stands in for Telepathy, which needs a model as user and judge: each answer follows from the table, so what
a question tells is known exactly (`information`). Two attributes tell nothing: one is true of everything, and
the user's mood is not about the thing at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Sequence

from proactor.environments.calls import FINISH, INTERACT, VERBS, plain
from proactor.environments.errors import EpisodeOver, GymError
from proactor.environments.protocol import Call, Opening, Outcome

ATTRIBUTES = (
    "alive",
    "an animal",
    "bigger than a person",
    "able to fly",
    "found in water",
    "eaten by people",
    "made by people",
    "made of metal",
    "used indoors",
    "powered by electricity",
    "covered in fur",
    "red",
)
ALWAYS, MOOD = "a thing", "making you happy"
"""Attributes that tell nothing: the answer is "Yes." for everything, and "Maybe." for everything."""

_ROWS = """
dog 110000001010, cow 111001000010, eagle 110100000000, chicken 110001000000,
shark 111010000000, salmon 110011000000, ladybug 110100000001, tiger 111000000010,
lobster 110011000001, frog 110010000000, otter 110010000010, oak 101000000000,
rose 100000000001, cactus 100000001000, seaweed 100011000000, carrot 100001000000,
strawberry 100001000001, bread 000001100000, car 001000110000, airplane 001100110000,
ship 001010110000, fire engine 001000110001, tram 001000110100, bicycle 000000110000,
spoon 000000111000, lamp 000000111100, phone 000000101100, chair 000000101000,
drone 000100100100, balloon 000100100001, stone 000000000000, river 001010000000
"""

TABLE: dict[str, frozenset[str]] = {
    name: frozenset(attribute for attribute, bit in zip(ATTRIBUTES, bits) if bit == "1")
    for name, bits in (row.strip().rsplit(" ", 1) for row in _ROWS.replace("\n", " ").split(","))
}
"""32 things with what is true of each; no two are alike."""

SYSTEM = (
    "The user thinks of a thing. Find out which. Call interact_with_env in each turn with one choice:\n"
    f"action: a question, Is it ...? with one of: {', '.join((*ATTRIBUTES, ALWAYS, MOOD))}.\n"
    f"answer: one of: {', '.join(TABLE)}.\n"
    "You may answer again after a wrong answer. The number of turns is limited."
)
USER = "I am thinking of something. What is it?"


def reply(thing: str, attribute: str) -> str:
    """The user's answer to a question. Raises GymError for a thing or attribute that there is not."""
    if thing not in TABLE or attribute not in (*ATTRIBUTES, ALWAYS, MOOD):
        raise GymError(f"no such question: is {thing!r} {attribute!r}?")
    if attribute == MOOD:
        return "Maybe."
    return "Yes." if attribute == ALWAYS or attribute in TABLE[thing] else "No."


def information(things: Collection[str], attribute: str) -> float:
    """What the answer to a question tells of a thing drawn evenly from ``things``: their mutual information,
    in nats. It is the entropy of the answer, which the thing determines.
    """
    counts = [sum(reply(t, attribute) == answer for t in things) for answer in ("Yes.", "No.", "Maybe.")]
    return sum(n / len(things) * math.log(len(things) / n) for n in counts if n)


def still_possible(things: Iterable[str], attribute: str, answer: str) -> list[str]:
    """The things of which a question would have been answered so."""
    return [thing for thing in things if reply(thing, attribute) == answer]


def asked_for(question: str) -> str | None:
    """The attribute that a question names, the longest where it names several; None for none."""
    text = f" {re.sub(r'[^a-z ]', ' ', question.lower())} "
    named = [attribute for attribute in (*ATTRIBUTES, ALWAYS, MOOD) if f" {attribute} " in text]
    return max(named, key=len, default=None)


class QuestionsWorld:
    """One thing. By default every verb involves the user."""

    def __init__(self, thing: str, max_turns: int, user_verbs: Collection[str]) -> None:
        self.thing, self.max_turns, self.user_verbs = thing, max_turns, frozenset(user_verbs)
        self.reset(0)

    def reset(self, seed: int) -> Opening:
        """Begin anew; nothing here is drawn. ``left`` holds the things that fit all answers so far."""
        self.turns, self.over, self.left = 0, False, list(TABLE)
        messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER}]
        return Opening(messages, (INTERACT,))

    def step(self, call: Call) -> Outcome:
        """Answer a question or check a guess. Raises EpisodeOver after the end."""
        if self.over:
            raise EpisodeOver(f"questions {self.thing}: the episode is over")
        self.turns += 1
        call = plain(call)
        told, right = 0.0, False
        match call.verb:
            case "action":
                attribute = asked_for(call.content)
                said = "I can only answer questions that name one of the attributes."
                if attribute:
                    said, told = reply(self.thing, attribute), information(self.left, attribute)
                    self.left = still_possible(self.left, attribute, said)
            case "answer":
                guess = re.sub(r"^(?:an?|the) ", "", call.content.lower().strip(" .!?\"'"))
                right = guess == self.thing
                said = "Yes, that is it!" if right else "No, that is not it."
                if guess in self.left and not right:
                    told = math.log(len(self.left) / (len(self.left) - 1))
                    self.left.remove(guess)
            case "finish":
                said = f"It was: {self.thing}."
            case _:
                said = "Please choose action with a question, or answer with a thing."
        done, cut = right or call.verb == FINISH, self.turns >= self.max_turns
        self.over = done or cut
        return Outcome(said, float(right), done, cut, {"information": told, "left": len(self.left)})


class QuestionsGym:
    """The table's things as tasks; every fourth one is a test."""

    name = "questions"

    def __init__(self, max_turns: int = 20, user_verbs: Sequence[str] = VERBS) -> None:
        self.max_turns, self.user_verbs = max_turns, tuple(user_verbs)

    def tasks(self, split: str) -> Sequence[str]:
        """Things of ``train``, ``test`` or ``all``. Raises GymError for another split."""
        things = list(TABLE)
        test = things[3::4]
        splits = {"train": [thing for thing in things if thing not in test], "test": test, "all": things}
        if split not in splits:
            raise GymError(f"questions: no split {split!r}: there are train, test and all")
        return splits[split]

    def make(self, task: str) -> QuestionsWorld:
        """A world of a thing. Raises GymError for one that is not in the table."""
        if task not in TABLE:
            raise GymError(f"questions: no task {task!r}")
        return QuestionsWorld(task, self.max_turns, self.user_verbs)
