"""The ask/act reward and its lines."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.engine import EngineError, ProactorError
from proactor.methods.speakrl import (
    PARITY,
    Reply,
    SpeakRL,
    always_act,
    always_ask,
    dialogue_rewards,
    line,
    overlap,
    reward,
)

near = pytest.approx
DEFAULT = SpeakRL()
DATE, NOTHING = frozenset({"date"}), frozenset[str]()


def ask(*slots: str) -> Reply:
    return Reply("ask", asked=frozenset(slots))


def act(correctness: float = 1.0) -> Reply:
    return Reply("act", correctness=correctness)


def test_the_right_question_and_half_of_it() -> None:
    assert overlap({"date", "city"}, DATE) == 0.5
    assert reward(ask("date", "city"), DATE, DEFAULT) == 0.75
    assert reward(ask("date"), DATE, DEFAULT) == 1.0
    assert reward(ask("city"), DATE, DEFAULT) == 0.5


def test_acting_too_early() -> None:
    assert reward(act(), DATE, DEFAULT) == -1.0


def test_asking_where_nothing_is_missing() -> None:
    assert reward(ask("date"), NOTHING, DEFAULT) == -0.5
    assert reward(ask("date"), NOTHING, PARITY) == 0.0


def test_an_unreadable_reply() -> None:
    assert reward(Reply(None), NOTHING, DEFAULT) == reward(Reply(None), DATE, PARITY) == -1.0


slots = st.frozensets(st.sampled_from("abcd"))


@given(slots, slots, st.floats(0, 1))
def test_the_right_verb_beats_the_wrong_one(missing: frozenset[str], asked: frozenset[str], c: float) -> None:
    asking, acting = reward(Reply("ask", asked), missing, DEFAULT), reward(act(c), missing, DEFAULT)
    assert asking > acting if missing else acting > asking
    assert max(-1.0, asking, acting) <= 1.0


def test_a_dialogue_in_which_the_user_answers() -> None:
    missing = frozenset({"date", "city"})
    replies = [ask("date"), ask("city"), ask("city"), act(0.5)]
    assert dialogue_rewards(replies, missing, 1.0, DEFAULT) == near([0.75, 1.0, -0.5, 1.5])
    capped = SpeakRL(most_asks=1)
    assert dialogue_rewards(replies, missing, 0.0, capped) == near([0.75, -0.5, -0.5, 0.5])
    assert dialogue_rewards([act()], missing, 0.0, DEFAULT) == [-1.0]
    assert dialogue_rewards([], missing, 1.0, DEFAULT) == []


@pytest.mark.parametrize(
    ("policy", "accuracy", "mean"), [(always_ask, 0.75, (3 - 0.5) / 4), (always_act, 0.25, (-3 + 1) / 4)]
)
def test_lines(policy: object, accuracy: float, mean: float) -> None:
    points: Sequence[frozenset[str]] = [DATE, DATE, frozenset({"a", "b"}), NOTHING]
    found = line(policy, points, DEFAULT)  # type: ignore[arg-type]
    assert found.accuracy == accuracy and found.reward == near(mean)
    assert (found.ask_recall, found.act_recall) == ((1, 0) if policy is always_ask else (0, 1))


def test_what_is_refused() -> None:
    with pytest.raises(ProactorError, match=r"SpeakRL: a correctness of 1\.5"):
        reward(act(1.5), NOTHING, DEFAULT)
    with pytest.raises(ProactorError, match="no points"):
        line(always_ask, [], DEFAULT)
    with pytest.raises(EngineError, match="SpeakRL: over_ask"):
        SpeakRL(over_ask=-1.0)
