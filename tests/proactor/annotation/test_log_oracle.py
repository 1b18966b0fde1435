"""The log-derived annotator against windows that are known exactly."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from pathlib import Path

import pytest

from proactor.annotation import (
    AnnotationOptions,
    MarkReader,
    OracleRequest,
    annotate,
    compare_windows,
    merge,
)
from proactor.annotation.cues import ENGLISH, synthetic_book
from proactor.annotation.log_oracle import LogOracle, log_of
from proactor.annotation.merge import MergedMarks
from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.dialogue.windows import count
from proactor.sources import load
from proactor.sources.synthetic_phrases import NUDGES, REVOCATIONS
from tests.proactor.annotation.scripted import BOOKING, TOOLS, talk

NUMBER = 300


def annotated(dialogue: Dialogue, tools: Catalog, oracle: LogOracle) -> MergedMarks:
    answers = asyncio.run(oracle.answer([OracleRequest(dialogue, u, tools) for u in dialogue.decision_turns]))
    reader = MarkReader(dialogue, tools)
    return merge(
        dialogue,
        {u: reader.read(u, a.text).marks for u, a in zip(dialogue.decision_turns, answers, strict=True)},
        tools,
    )


def shapes(references: tuple[Reference, ...]) -> list[tuple[object, ...]]:
    return sorted((r.name, r.coverage, r.ready or ()) for r in references)  # type: ignore[misc]


def two_come_backs_in_a_row(dialogue: Dialogue) -> bool:
    """Two actions that the user asks for again, or takes back, in consecutive turns.

    The generator closes both windows before the first of these turns, or each before its own. The
    conversation does not tell which.
    """
    stems = tuple(p.split("{}")[0] for p in (*NUDGES, *REVOCATIONS))
    back = [t.text.startswith(stems) for t in dialogue.turns if t.speaker == "user"]
    return any(a and b for a, b in pairwise(back))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_actions": 5, "max_turns": 26, "max_delay": 6},
        {
            "min_turns": 4,
            "max_turns": 8,
            "skills": ["add_event", "cancel_event", "set_reminder", "book_table"],
            "tools": 4,
        },
    ],
    ids=["default", "long", "demo"],
)
def test_it_finds_the_generators_windows_exactly(options: dict[str, object]) -> None:
    """Coverage and ready windows of all actions, and the coverage of those taken back; from the log and the
    words, see `test_it_does_not_see_the_windows`.
    """
    corpus = load("synthetic", limit=NUMBER, seed=3, **options)
    oracle, ambiguous, references = LogOracle(), 0, 0
    for dialogue in corpus.dialogues:
        merged = annotated(dialogue, corpus.catalog, oracle)
        if two_come_backs_in_a_row(dialogue):
            ambiguous += 1
            continue
        assert shapes(merged.references) == shapes(dialogue.references), dialogue.id
        assert shapes(merged.withdrawn) == shapes(dialogue.withdrawn), dialogue.id
        references += len(dialogue.references)
    assert (
        ambiguous <= NUMBER // 40 and references > 0.9 * NUMBER and count(corpus.dialogues)["withdrawn"] > 20
    )


def test_it_does_not_see_the_windows() -> None:
    """It gives the same marks without coverage and ready windows, and with withdrawn actions among others."""
    corpus = load("synthetic", limit=40, seed=3)
    for dialogue in corpus.dialogues:
        blank = {"coverage": None, "ready": None, "values_seen": None, "null_reason": ""}
        bare = dialogue.model_copy(
            update={
                "references": tuple(
                    r.model_copy(update=blank) for r in (*dialogue.withdrawn, *dialogue.references)
                ),
                "withdrawn": (),
            }
        )
        assert log_of(bare) == log_of(dialogue)
        assert annotated(bare, corpus.catalog, LogOracle()) == annotated(
            dialogue, corpus.catalog, LogOracle()
        )


def test_general_english_comes_close_without_the_generators_phrases() -> None:
    corpus = load("synthetic", limit=100, seed=3)
    oracle = LogOracle(ENGLISH)
    total = sum(
        (
            compare_windows(annotated(d, corpus.catalog, oracle).references, d.references, d.decision_turns)
            for d in corpus.dialogues
        ),
        start=compare_windows((), (), ()),
    )
    means = total.means()
    assert 0.8 < (means["ready_iou"] or 0) < 1 and 0.7 < (means["coverage_iou"] or 0) < 1


def logged(trigger: int | None, dialogue: Dialogue = BOOKING, **said: int) -> Dialogue:
    values = {"day": "monday", "people": "4"}
    return dialogue.model_copy(
        update={
            "references": (
                Reference(
                    id="r",
                    name="book",
                    params={k: values[k] for k in said},
                    observed_trigger=trigger,
                    value_turns=said,
                ),
            )
        }
    )


def test_a_tool_that_asks_first_is_ready_at_the_assent() -> None:
    references = annotated(logged(7, day=3, people=5), TOOLS, LogOracle()).references
    assert [(r.coverage, r.ready, r.params) for r in references] == [
        ((3, 7), (7, 7), {"day": "monday", "people": "4"})
    ]


def test_an_action_run_before_the_assent_has_no_window() -> None:
    references = annotated(logged(5, day=3, people=5), TOOLS, LogOracle()).references
    assert [(r.coverage, r.ready, r.null_reason) for r in references] == [((3, 5), None, "never_ready")]


def test_an_action_that_nothing_places_is_left_out_and_counted(tmp_path: Path) -> None:
    assert annotated(logged(None), TOOLS, LogOracle()) == MergedMarks()
    report = annotate(
        [logged(None), logged(7, day=3).model_copy(update={"id": "e"})], TOOLS, LogOracle(), tmp_path
    )
    assert report["drops"] == {"not_placed": 1}


@pytest.mark.parametrize("trigger", [3, 5, 7, 9])
def test_a_trigger_on_an_agents_turn_counts_at_the_user_turn_before(tmp_path: Path, trigger: int) -> None:
    user, agent = logged(trigger, day=3, people=5), logged(trigger + 1, day=3, people=5)
    assert annotated(agent, TOOLS, LogOracle()) == annotated(user, TOOLS, LogOracle()) != MergedMarks()
    reports = [
        annotate([dialogue], TOOLS, LogOracle(), tmp_path / name)
        for name, dialogue in (("user", user), ("agent", agent))
    ]
    windows = [(tmp_path / name / "windows.jsonl").read_text() for name in ("user", "agent")]
    assert windows[0] == windows[1] and reports[0]["gates"] == reports[1]["gates"]


@pytest.mark.parametrize("trigger", [0, 1])
@pytest.mark.parametrize("said", [{}, {"day": 4, "people": 6}])
def test_an_action_run_before_the_user_spoke_is_not_placed(
    tmp_path: Path, trigger: int, said: dict[str, int]
) -> None:
    turns = (Turn(index=1, speaker="agent", text="hello"), *BOOKING.turns)
    numbered = tuple(turn.model_copy(update={"index": i}) for i, turn in enumerate(turns, start=1))
    early = logged(trigger, Dialogue(id="d", turns=numbered), **said)
    assert annotated(early, TOOLS, LogOracle()) == MergedMarks()
    report = annotate([early], TOOLS, LogOracle(), tmp_path, AnnotationOptions(gates=False))
    assert report["drops"] == {"not_placed": 1}
    late = Reference(
        id="s", name="book", params={"day": "monday"}, observed_trigger=8, value_turns={"day": 4}
    )
    both = early.model_copy(update={"references": (*early.references, late)})
    alone = early.model_copy(update={"references": (late,)})
    assert annotated(both, TOOLS, LogOracle()) == annotated(alone, TOOLS, LogOracle()) != MergedMarks()


def test_an_offer_counts_once_the_user_takes_it_up() -> None:
    offer = talk(
        "remind me", "monday or tuesday?", "my dog barks", "monday or tuesday?", "monday then", "done"
    )
    plain = Catalog(tools=tuple(t.model_copy(update={"confirm": False}) for t in TOOLS.tools))
    references = annotated(logged(5, offer, day=2), plain, LogOracle()).references
    assert [r.ready for r in references] == [(5, 5)]


@pytest.mark.parametrize(
    ("spoken", "triggers", "wanted"),
    [
        (
            ("tell mary about order 111", "done", "and my other order?", "which?", "222", "done"),
            (1, 5),
            [((1, 1), (1, 1)), ((3, 5), (5, 5))],
        ),
        (
            ("tell mary about order 111", "done", "thanks", "ok", "mary again: 222", "done"),
            (2, 6),
            [((1, 1), (1, 1)), ((3, 5), (5, 5))],
        ),
    ],
)
def test_calls_of_one_tool_that_share_a_value_are_two(
    tmp_path: Path, spoken: tuple[str, ...], triggers: tuple[int, int], wanted: list[object]
) -> None:
    calls = tuple(
        Reference(id=i, name="tell", params={"who": "mary", "order": order}, observed_trigger=trigger)
        for i, order, trigger in zip("ab", ("111", "222"), triggers, strict=True)
    )
    tool = Tool(name="tell", parameters=(Parameter(name="who"), Parameter(name="order")))
    report = annotate([talk(*spoken, references=calls)], Catalog(tools=(tool,)), LogOracle(), tmp_path)
    assert report["merge"] == {} and report["repeated"] == [] and report["dialogues"]["kept"] == 1
    found = Dialogue.model_validate_json((tmp_path / "windows.jsonl").read_text()).references
    assert [(r.coverage, r.ready) for r in found] == wanted
    assert [(r.params["order"], r.observed_trigger) for r in found] == [("111", 1), ("222", 5)]


def test_a_call_that_adds_an_optional_value_is_one_of_its_own(tmp_path: Path) -> None:
    calls = (
        Reference(id="a", name="note", params={"text": "rome"}, observed_trigger=1),
        Reference(id="b", name="note", params={"text": "rome", "kind": "big"}, observed_trigger=3),
    )
    dialogue = talk("note rome", "done", "and now a big one", "done", references=calls)
    report = annotate([dialogue], TOOLS, LogOracle(), tmp_path)
    found = Dialogue.model_validate_json((tmp_path / "windows.jsonl").read_text()).references
    assert [(r.params, r.coverage, r.ready, r.observed_trigger) for r in found] == [
        ({"text": "rome"}, (1, 1), (1, 1), 1),
        ({"text": "rome", "kind": "big"}, (3, 3), (3, 3), 3),
    ]
    assert report["repeated"] == []


def test_its_name_tells_its_book() -> None:
    assert len({LogOracle().identity, LogOracle(ENGLISH).identity, LogOracle(synthetic_book()).identity}) == 3
    assert LogOracle(ENGLISH).identity == LogOracle(ENGLISH).identity
