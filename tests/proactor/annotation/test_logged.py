"""Values as the log spells them, whichever words an annotator gave; which logged action a reference is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from proactor.annotation import Oracle, annotate
from proactor.annotation.folder import WINDOWS
from proactor.annotation.log_oracle import LogOracle
from proactor.annotation.logged import common_values, logged_action, spelled_as_logged, spellings
from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from tests.proactor.annotation.scripted import Scripted, mark, says, talk

PEOPLE: dict[str, Parameter] = {
    "enum": Parameter(name="people", type="enum", values=("2", "3")),
    "integer": Parameter(name="people", type="integer"),
    "string": Parameter(name="people"),
}
TWO = Reference(
    id="r",
    name="table",
    params={"people": "2", "day": "Monday"},
    variants={"people": ("a couple", "a pair")},
    observed_trigger=3,
)
TALK = talk(
    "a table for a couple of us, on Monday", "one moment", "thanks", "for 2, booked", references=(TWO,)
)


def windows(dialogue: Dialogue, oracle: Oracle, type: str, out: Path) -> list[Reference]:
    """The references that ``oracle`` gives, where none is left out or loses an entry."""
    tools = Catalog(tools=(Tool(name="table", parameters=(PEOPLE[type], Parameter(name="day"))),))
    report = annotate([dialogue], tools, oracle, out)
    assert report["drops"] == {} and report["dialogues"]["failed"] == {}
    (line,) = (out / WINDOWS).read_text().splitlines()
    return [Reference.model_validate(r) for r in json.loads(line)["references"]]


def model(**values: str) -> Scripted:
    return Scripted(says({turn: [mark("table", "READY", **values)] for turn in (1, 3)}))


@pytest.mark.parametrize("type", PEOPLE)
@pytest.mark.parametrize("said", [None, "a couple", "A couple", "2"])
def test_a_window_has_the_logged_value_and_what_was_said_for_it(
    type: str, said: str | None, tmp_path: Path
) -> None:
    """Whichever of the two the oracle gives, None being the log itself. "2" is said at turn 4 only."""
    oracle = LogOracle() if said is None else model(people=said, day="monday")
    (found,) = windows(TALK, oracle, type, tmp_path)
    assert (found.params, found.variants) == (TWO.params, TWO.variants)
    assert (found.coverage, found.ready, found.observed_trigger) == ((1, 3), (1, 3), 3)
    assert found.value_turns == {"people": 1, "day": 1} and found.values_seen == 1


def test_a_value_that_the_log_does_not_have_stays(tmp_path: Path) -> None:
    (found,) = windows(TALK, model(people="table", day="Monday"), "string", tmp_path / "other")
    assert found.params == {"people": "table", "day": "Monday"} and found.variants == {}
    bare = TALK.model_copy(update={"references": ()})
    (found,) = windows(bare, model(people="a couple"), "string", tmp_path / "bare")
    assert found.params == {"people": "a couple"} and found.variants == {}


def test_calls_that_were_run_at_once_are_told_apart_by_what_was_said(tmp_path: Path) -> None:
    three = TWO.model_copy(update={"id": "s", "params": {"people": "3"}, "variants": {"people": ("a few",)}})
    both = talk("for a couple, and one for a few", "ok", "thanks", "done", references=(TWO, three))
    marks = [mark("table", "READY", people=people) for people in ("a few", "a couple")]
    found = windows(both, Scripted(says({1: marks, 3: marks})), "integer", tmp_path)
    assert [(r.params, r.variants) for r in found] == [
        ({"people": "3"}, {"people": ("a few",)}),
        ({"people": "2"}, {"people": ("a couple", "a pair")}),
    ]


def test_the_spellings_of_a_value_are_those_of_the_actions_that_have_it() -> None:
    other = TWO.model_copy(update={"id": "s", "params": {"people": "a pair"}, "variants": {}})
    source = TALK.model_copy(update={"references": (TWO, other)})
    assert spellings(source, "table", "people", "A pair") == ("A pair", "2", "a couple", "a pair")
    assert spellings(source, "table", "people", "3") == ("3",)
    assert spellings(source, "chair", "people", "2") == ("2",)
    assert common_values(TWO, {"people": "a pair", "time": "9"}) == 1
    assert common_values(TWO, {"people": "3", "day": "monday"}) is None


def test_a_reference_is_the_action_in_its_coverage_with_most_of_its_values() -> None:
    later = TWO.model_copy(update={"id": "s", "observed_trigger": 1, "variants": {}})
    source = TALK.model_copy(update={"references": (later, TWO)})
    spoken = Reference(id="a1", name="table", params={"people": "a pair"}, coverage=(1, 3))
    assert logged_action(spoken, source) == TWO
    first = spoken.model_copy(update={"coverage": (1, 1)})
    assert logged_action(first, source) == later and spelled_as_logged(first, source).params == first.params
    assert logged_action(spoken.model_copy(update={"name": "chair"}), source) is None
