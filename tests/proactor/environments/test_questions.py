"""Twenty questions: the table, what a question tells, guesses, the end."""

from __future__ import annotations

import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proactor.environments.errors import EpisodeOver, GymError
from proactor.environments.gyms.questions import (
    ALWAYS,
    ATTRIBUTES,
    MOOD,
    TABLE,
    QuestionsGym,
    asked_for,
    information,
    reply,
    still_possible,
)
from proactor.environments.protocol import Call

GYM = QuestionsGym()
THINGS = list(TABLE)


def test_no_two_things_are_alike_and_each_attribute_tells_something() -> None:
    assert len(TABLE) == 32 and len(set(TABLE.values())) == 32
    assert all(0 < sum(a in truths for truths in TABLE.values()) < 32 for a in ATTRIBUTES)


@given(
    st.lists(st.sampled_from(THINGS), min_size=1, unique=True), st.sampled_from((*ATTRIBUTES, ALWAYS, MOOD))
)
def test_information_is_the_mutual_information_of_thing_and_answer(things: list[str], attribute: str) -> None:
    joint = Counter((thing, reply(thing, attribute)) for thing in things)
    answers = Counter(reply(thing, attribute) for thing in things)
    total = len(things)
    want = sum(
        n / total * math.log((n / total) / ((1 / total) * (answers[answer] / total)))
        for (_, answer), n in joint.items()
    )
    assert information(things, attribute) == pytest.approx(want, abs=1e-12)
    if attribute in (ALWAYS, MOOD):
        assert information(things, attribute) == 0


@settings(max_examples=60)
@given(st.sampled_from(THINGS), st.lists(st.sampled_from((*ATTRIBUTES, MOOD)), max_size=8))
def test_what_fits_the_answers_is_what_is_left(thing: str, questions: list[str]) -> None:
    world = GYM.make(thing)
    world.reset(0)
    told = 0.0
    for attribute in questions:
        told += world.step(Call("action", f"Is it {attribute}?")).info["information"]
    fitting = [t for t in THINGS if all(reply(t, a) == reply(thing, a) for a in questions)]
    assert world.left == fitting and thing in fitting


def test_the_chain_rule_over_all_answers() -> None:
    """What questions tell together, on average, is the sum of what each tells given the answers before."""
    questions = ["alive", "made of metal", "red", MOOD]
    parts: list[list[str]] = [THINGS]
    total = 0.0
    for attribute in questions:
        total += sum(len(part) / 32 * information(part, attribute) for part in parts)
        parts = [
            kept
            for part in parts
            for a in ("Yes.", "No.", "Maybe.")
            if (kept := still_possible(part, attribute, a))
        ]
    entropy = sum(len(part) / 32 * math.log(32 / len(part)) for part in parts)
    assert total == pytest.approx(entropy)


@pytest.mark.parametrize(
    ("question", "attribute"),
    [
        ("Is it alive?", "alive"),
        ("is it an animal", "an animal"),
        ("Is it made of metal, or red?", "made of metal"),
        ("Is it a thing?", ALWAYS),
        ("Is it colored?", None),
        ("", None),
    ],
)
def test_which_attribute_a_question_names(question: str, attribute: str | None) -> None:
    assert asked_for(question) == attribute


def test_an_episode() -> None:
    world = GYM.make("fire engine")
    said = [
        world.step(Call(verb, content))
        for verb, content in [
            ("action", "Is it red?"),
            ("action", "Is it nice?"),
            ("guess", "red"),
            ("answer", "a rose."),
            ("answer", "The fire engine!"),
        ]
    ]
    assert [o.observation for o in said] == [
        "Yes.",
        "I can only answer questions that name one of the attributes.",
        "Please choose action with a question, or answer with a thing.",
        "No, that is not it.",
        "Yes, that is it!",
    ]
    assert [o.reward for o in said] == [0, 0, 0, 0, 1] and said[-1].terminated
    assert said[0].info["left"] == said[2].info["left"] == said[3].info["left"] + 1
    with pytest.raises(EpisodeOver):
        world.step(Call("answer", "rose"))


def test_the_cap_and_the_finish() -> None:
    world = QuestionsGym(max_turns=1).make("oak")
    assert world.step(Call("answer", "dog")).truncated
    world.reset(0)
    assert world.step(Call("finish")).observation == "It was: oak."


def test_splits() -> None:
    train, test = GYM.tasks("train"), GYM.tasks("test")
    assert len(train) == 24 and len(test) == 8 and not set(train) & set(test)
    for wrong in (lambda: GYM.tasks("dev"), lambda: GYM.make("moon"), lambda: reply("dog", "nice")):
        with pytest.raises(GymError):
            wrong()
