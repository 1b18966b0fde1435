"""SMCalFlow on dialogues written here: what programs ask for; assent, revision and refusal in the windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Dialogue
from proactor.files import SourceError
from proactor.sources import lispress, load
from proactor.sources.smcalflow_programs import Step, revise_time, spellings, steps, words

DINNER = (
    '(CreateCommitEventWrapper (CreatePreflightEventWrapper (& (Event.subject_? (?= "dinner"))'
    " (Event.start_? (?= (DateAtTimeWithDefaults (Tomorrow) (NumberPM 8L)))))))"
)
FIND = '(FindEventWrapperWithDefaults (EventOnDate (Today) (Event.subject_? (?~= "lunch"))))'
OK = "(Yield (Execute (^(Dynamic) ConfirmAndReturnAction)))"
NO = "(DoNotConfirm)"
HELLO = "(PleasantryCalendar)"
CHOOSE = "(Yield (Execute (ChooseCreateEvent 2L (refer (^(Dynamic) ActionIntensionConstraint)))))"


def revise(constraint: str) -> str:
    role = '(refer (^(Dynamic) roleConstraint (Path.apply "output")))'
    return f"(Yield (Execute (ReviseConstraint {role} (^(Event) ConstraintTypeIntension) {constraint})))"


NINE = revise("(Event.start_? (DateTime.time_? (?= (NumberAM 9L))))")


def read(folder: Path, *turns: tuple[str, str, str]) -> tuple[Dialogue, dict[str, int]]:
    """`turns`: what the user says, the program, what the agent answers."""
    listed: list[dict[str, Any]] = []
    for said, program, answer in turns:
        listed += [
            {"speaker": "USER", "text": said, "program": program},
            {"speaker": "AGENT", "text": answer},
        ]
    line = json.dumps({"dialogue_id": "smcalflow2/valid/1", "turns": listed})
    (folder / "dev.jsonl").write_text(line + "\n")
    corpus = load("smcalflow", folder)
    return corpus.dialogues[0], corpus.counters


ASK, DONE = "Is this good?", "I've put that on your calendar."
PLAN = ("dinner tomorrow at 8:00 PM", f"(Yield {DINNER})", ASK)


def test_a_change_is_ready_when_the_user_agrees(tmp_path: Path) -> None:
    dialogue, _ = read(tmp_path, ("hi", HELLO, "hi"), PLAN, ("looks good", OK, DONE))
    (event,) = dialogue.references
    assert (event.name, event.params) == ("create_event", {"subject": "dinner", "start": "tomorrow 8 pm"})
    assert (event.coverage, event.ready, event.observed_trigger, event.values_seen) == ((3, 5), (5, 5), 5, 3)
    assert dialogue.withdrawn == () and dialogue.domain == "calendar"
    tool = load("smcalflow", tmp_path).catalog["create_event"]
    assert tool.confirm and tool.effect == "write"
    catalog = load("smcalflow", tmp_path).catalog
    assert catalog["delete_event"].effect == "irreversible" and not catalog["find_events"].confirm


def test_a_revision_keeps_what_it_does_not_name(tmp_path: Path) -> None:
    dialogue, _ = read(tmp_path, PLAN, ("make it 9am", NINE, "How's this?"), ("yes", OK, DONE))
    (event,) = dialogue.references
    assert event.params == {"subject": "dinner", "start": "tomorrow 9 am"}
    assert (event.coverage, event.ready, event.value_turns) == ((1, 5), (5, 5), {"subject": 1, "start": 3})
    later = revise("(Event.start_? (?= (adjustByPeriod (Event.start (refer (X))) (toHours 2))))")
    dialogue, counters = read(tmp_path, PLAN, ("two hours later", later, ASK), ("yes", OK, DONE))
    assert dialogue.references[0].params == {"subject": "dinner"} and counters["values_without_words"] == 1


@pytest.mark.parametrize(
    ("end", "why", "coverage"),
    [
        ((("forget it", NO, "Ok"),), "change_refused", (1, 1)),
        ((("nice weather", HELLO, "yes"), ("bye", HELLO, "bye")), "change_unanswered", (1, 5)),
        (((PLAN[0], PLAN[1], ASK), ("ok", OK, DONE)), "change_replaced", (1, 1)),
    ],
)
def test_what_was_not_agreed_to_is_withdrawn(
    tmp_path: Path, end: tuple[tuple[str, str, str], ...], why: str, coverage: tuple[int, int]
) -> None:
    dialogue, counters = read(tmp_path, PLAN, *end)
    (gone,) = dialogue.withdrawn
    assert (gone.name, gone.coverage, gone.ready, gone.observed_trigger) == (
        "create_event",
        coverage,
        None,
        None,
    )
    assert counters[why] == 1 and len(dialogue.references) == (why == "change_replaced")


def test_done_without_assent_is_unknown(tmp_path: Path) -> None:
    dialogue, counters = read(tmp_path, (PLAN[0], PLAN[1], DONE), ("thanks", HELLO, "ok"))
    (event,) = dialogue.references
    assert (event.ready, event.coverage, event.null_reason, event.observed_trigger) == (
        None,
        (1, 1),
        "no_assent",
        1,
    )
    assert counters["null_no_assent"] == 1 and dialogue.withdrawn == ()


def test_a_choice_is_assent_only_when_the_agent_acts(tmp_path: Path) -> None:
    offers = (PLAN[0], PLAN[1], "Does one of these work?")
    assert read(tmp_path, offers, ("the second", CHOOSE, DONE))[0].references[0].ready == (3, 3)
    asked, _ = read(tmp_path, offers, ("the second", CHOOSE, ASK), ("yes", OK, DONE))
    assert asked.references[0].ready == (5, 5)
    at_nine = (
        "(ChooseCreateEventFromConstraint (Event.start_? (DateTime.time_? (?= (NumberPM 9L)))) (refer (x)))"
    )
    (late,) = read(tmp_path, offers, ("the one at 9 PM", at_nine, DONE))[0].references
    assert (late.params["start"], late.ready) == ("tomorrow 9 pm", (3, 3))


def test_look_ups_are_points_and_revised_ones_are_new(tmp_path: Path) -> None:
    tomorrow = revise("(EventOnDate (Tomorrow) (^(Event) EmptyStructConstraint))")
    dialogue, _ = read(
        tmp_path, ("lunch today?", f"(Yield {FIND})", "none"), ("and tomorrow?", tomorrow, "none")
    )
    first, second = dialogue.references
    assert (first.params, first.ready) == ({"start": "today", "subject": "lunch"}, (1, 1))
    assert (second.params, second.ready, second.coverage) == (
        {"start": "tomorrow", "subject": "lunch"},
        (3, 3),
        (3, 3),
    )


def test_counts_what_hangs_in_the_air(tmp_path: Path) -> None:
    _, counters = read(tmp_path, ("yes", OK, "?"), ("at nine", NINE, "?"))
    assert counters["assent_to_nothing"] == 1 and counters["revision_of_nothing"] == 1


def test_queries_inside_a_change_are_its_arguments() -> None:
    update = (
        "(UpdatePreflightEventWrapper (Event.id x0) (Event.start_? (DateTime.time_? (?= (NumberPM 4L)))))"
    )
    bound = f"(x0 (singleton (QueryEventResponse.results {FIND})))"
    program = f"(let {bound} (Yield (UpdateCommitEventWrapper {update})))"
    (step,) = steps(lispress.read(program))
    assert step == Step(
        "change", "update_event", {"event_start": ("today",), "event_subject": ("lunch",), "start": ("4 pm",)}
    )
    alone = f"(let (x0 {FIND}) (Yield (size x0)))"
    assert [s.tool for s in steps(lispress.read(alone))] == ["find_events"]
    both = f"(do {OK} (Yield {FIND}))"
    assert [s.kind for s in steps(lispress.read(both))] == ["assent", "look"]
    for itself in ("x0", "(Event.subject_? x0)"):
        program = f"(let (x0 x0) (CreateCommitEventWrapper {itself}))"
        assert steps(lispress.read(program)) == [Step("change", "create_event", {})]


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("(?= (NumberPM 8L))", ("8 pm",)),
        ("(HourMinutePm 7L 5L)", ("7:05 pm",)),
        ("(NextDOW (Friday))", ("friday",)),
        ("(MD 5L (June))", ("june 5",)),
        ("(toHours 1)", ("1 hours",)),
        ("(NextWeekList)", ("next week",)),
        ('(PersonName.apply "Dan  K")', ("Dan K",)),
        ("(ShowAsStatus.OutOfOffice)", ("out of office",)),
        ("(Here)", ()),
        ('(refer (extensionConstraint (RecipientWithNameLike (x) (PersonName.apply "Dan"))))', ("Dan",)),
        ('""', ()),
        ("(refer (extensionConstraint (^(Event) EmptyStructConstraint)))", ()),
        ("(negate (Monday))", ("not monday",)),
        ("(Date.month (Today))", ("this month",)),
        ("(TimeAfterDateTime (Monday) (NumberPM 9L))", ("9 pm",)),
    ],
)
def test_words(value: str, said: tuple[str, ...]) -> None:
    assert words(lispress.read(value)) == said


def test_spellings_and_merging() -> None:
    assert {"8pm", "8:00 PM".lower(), "8"} <= set(spellings("8 pm")) and "7:05" in spellings("7:05 pm")
    assert (
        "an hour" in spellings("1 hours")
        and "june 2nd" in spellings("june 2")
        and "june 12th" in spellings("june 12")
    )
    assert revise_time(("monday", "8 am"), ("10 am",)) == ("monday", "10 am")
    assert (
        revise_time(("monday", "8 am"), ("tuesday",)) == ("8 am", "tuesday")
        and revise_time(("monday",), ()) == ()
    )
    assert revise_time(("monday", "8 am"), ("friday", "9 am")) == ("friday", "9 am")


def test_release_gives_the_same(tmp_path: Path) -> None:
    (tmp_path / "compact").mkdir()
    (tmp_path / "raw").mkdir()
    story = (PLAN, ("make it 9am", NINE, "How's this?"), ("yes", OK, DONE))
    expected, _ = read(tmp_path / "compact", *story)
    turns = [
        {
            "turn_index": i,
            "user_utterance": {"original_text": said, "tokens": []},
            "lispress": program,
            "skip": False,
            "agent_utterance": {"original_text": answer, "tokens": [], "described_entities": []},
        }
        for i, (said, program, answer) in enumerate(story)
    ]
    file = tmp_path / "raw" / "valid.dataflow_dialogues.jsonl"
    file.write_text(json.dumps({"dialogue_id": "1", "turns": turns}) + "\n")
    assert load("smcalflow", tmp_path / "raw").dialogues == (expected,)
    turns[0]["lispress"] = "(Yield"
    file.write_text(json.dumps({"dialogue_id": "1", "turns": turns}) + "\n")
    with pytest.raises(
        SourceError, match=r"dialogues\.jsonl:1: .*turn 1: a program that cannot be read, position 6"
    ):
        load("smcalflow", file)
