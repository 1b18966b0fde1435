"""The whole way from dialogues to windows.jsonl: resumed at any point, with servers that go away, gates, and
dialogues of every kind.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.annotation import (
    AnnotationError,
    AnnotationOptions,
    Mark,
    OracleAnswer,
    OracleRequest,
    annotate,
    marks_of,
)
from proactor.annotation.estimate import estimate
from proactor.annotation.folder import CATALOG, PARTIAL, REPORT, WINDOWS
from proactor.annotation.log_oracle import LogOracle
from proactor.annotation.marks import render
from proactor.annotation.report_json import report_table
from proactor.dialogue import Dialogue, Reference, Turn
from proactor.dialogue.catalog import Catalog
from proactor.sources import load
from tests.proactor.annotation.scripted import BOOKING, TOOLS, Say, Scripted, mark, says, talk

CORPUS = load("synthetic", limit=12)


def known(request: OracleRequest) -> str:
    return render(marks_of(request.dialogue)[request.turn])


def dialogues(out: Path) -> list[Dialogue]:
    return [Dialogue.model_validate_json(line) for line in (out / WINDOWS).read_text().splitlines()]


def outcome(out: Path) -> tuple[bytes, dict[str, Any]]:
    report = json.loads((out / REPORT).read_bytes())
    return (out / WINDOWS).read_bytes(), {k: v for k, v in report.items() if k != "cost"}


def test_an_oracle_that_knows_gives_the_known_windows(tmp_path: Path) -> None:
    oracle = Scripted(known)
    report = annotate(CORPUS.dialogues, CORPUS.catalog, oracle, tmp_path)
    assert (
        report["known"]["exact"] == 1
        and report["drops"] == {}
        and report["gates"]["G2"]["recall"] == 1
        and report["gates"]["G3"]["iou"] == 1
    )
    for mine, theirs in zip(dialogues(tmp_path), CORPUS.dialogues, strict=True):
        assert mine.turns == theirs.turns and mine.tools == theirs.tools
        assert {r.observed_trigger for r in mine.references} == {
            r.observed_trigger for r in theirs.references
        }
    assert Catalog.model_validate_json((tmp_path / CATALOG).read_bytes()) == CORPUS.catalog
    assert not (tmp_path / PARTIAL).exists() and oracle.closed == 1 and report_table(report).row_count > 5
    with pytest.raises(AnnotationError, match="finished already"):
        annotate(CORPUS.dialogues, CORPUS.catalog, oracle, tmp_path)
    assert (
        annotate(CORPUS.dialogues, CORPUS.catalog, oracle, tmp_path, fresh=True)["known"] == report["known"]
    )


class Killed(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 5, 11, 12])
@pytest.mark.parametrize("torn", [0, 1, 30])
def test_killed_at_any_moment_it_goes_on_and_ends_the_same(tmp_path: Path, after: int, torn: int) -> None:
    whole = tmp_path / "whole"
    annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(known), whole)
    finished: set[str] = set()

    def dies(request: OracleRequest) -> str:
        finished.add(request.dialogue.id)
        if len(finished) > after:
            raise Killed
        return known(request)

    out = tmp_path / "out"
    if after < 12:
        with pytest.raises(Killed):
            annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(dies), out)
        assert not (out / WINDOWS).exists()
        partial = out / PARTIAL
        lines = partial.read_bytes()
        assert lines.count(b"\n") == after + 1
        partial.write_bytes(lines + b'{"id":"half a line that was being wri'[:torn])
    second = Scripted(known)
    annotate(CORPUS.dialogues, CORPUS.catalog, second, out)
    assert outcome(out) == outcome(whole)
    assert len({q.dialogue.id for q in second.asked}) == 12 - (after if after < 12 else 0)


def test_a_line_cut_inside_is_written_again(tmp_path: Path) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(known), whole)
    with pytest.raises(Killed):
        annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(_dying_after(20)), out)
    content = (out / PARTIAL).read_bytes()
    for size in (len(content) - 1, len(content) // 2, 3, 0):
        (out / PARTIAL).write_bytes(content[:size])
        annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(known), out)
        assert outcome(out) == outcome(whole)
        (out / WINDOWS).unlink()


def _dying_after(questions: int) -> Say:
    left = [questions]

    def dies(request: OracleRequest) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise Killed
        return known(request)

    return dies


def test_a_partial_of_other_settings_or_damaged_is_refused_and_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(_dying_after(20)), tmp_path)
    with pytest.raises(AnnotationError, match="begun with another"):
        annotate(
            CORPUS.dialogues, CORPUS.catalog, Scripted(known), tmp_path, AnnotationOptions(causality=False)
        )
    partial = tmp_path / PARTIAL
    partial.write_bytes(partial.read_bytes() + b"{}\n")
    with pytest.raises(AnnotationError, match=rf"{PARTIAL}:\d+: damaged"):
        annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(known), tmp_path)
    assert (
        annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(known), tmp_path, fresh=True)["known"]["exact"]
        == 1
    )


def test_dialogues_without_answers_are_left_out_counted_and_tried_again(tmp_path: Path) -> None:
    lost = CORPUS.dialogues[3].id

    def flaky(request: OracleRequest) -> str | OracleAnswer:
        return OracleAnswer(failure="timeout") if request.dialogue.id == lost else known(request)

    report = annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(flaky), tmp_path)
    assert report["dialogues"] == {"read": 12, "kept": 11, "failed": {}, "unanswered": {"timeout": 1}}
    assert report["left_out"] == [{"id": lost, "reason": "timeout", "detail": ""}]
    assert lost not in {d.id for d in dialogues(tmp_path)}
    second = Scripted(known)
    report = annotate(CORPUS.dialogues, CORPUS.catalog, second, tmp_path)
    assert report["dialogues"]["kept"] == 12 and {q.dialogue.id for q in second.asked} == {lost}
    assert not (tmp_path / PARTIAL).exists()


@pytest.mark.parametrize("gates", [True, False])
def test_a_dialogue_that_does_not_fit_is_dropped_for_good(gates: bool, tmp_path: Path) -> None:
    """Without gates too: it was never asked about, and no window would mean that every fire is false."""

    def say(request: OracleRequest) -> str | OracleAnswer:
        fits = request.dialogue.id == "fits" or (request.dialogue.id == "half" and request.turn < 5)
        return "[]" if fits else OracleAnswer(failure="too_long")

    asked = [BOOKING, *(BOOKING.model_copy(update={"id": name}) for name in ("fits", "half"))]
    options = AnnotationOptions(gates=gates, second_reading=0)
    report = annotate(asked, TOOLS, Scripted(say), tmp_path, options)
    assert report["dialogues"] == {"read": 3, "kept": 1, "failed": {"too_long": 2}, "unanswered": {}}
    assert report["left_out"] == [
        {"id": "d", "reason": "too_long", "detail": "5 of 5 questions"},
        {"id": "half", "reason": "too_long", "detail": "3 of 5 questions"},
    ]
    assert [d.id for d in dialogues(tmp_path)] == ["fits"] and not (tmp_path / PARTIAL).exists()


def test_turns_whose_status_goes_back_are_asked_once_more_and_then_dropped(tmp_path: Path) -> None:
    bad = {1: [mark("note", "READY", text="book")], 3: [mark("note", "PENDING", text="book")]}
    good = {**bad, 3: [mark("note", "READY", text="book")]}
    oracle = Scripted(lambda q: says(good if q.complaint else bad)(q))
    report = annotate([BOOKING], TOOLS, oracle, tmp_path / "a", AnnotationOptions(second_reading=0))
    assert [(q.turn, bool(q.complaint)) for q in oracle.asked] == [
        (1, False),
        (3, False),
        (5, False),
        (7, False),
        (9, False),
        (1, True),
        (3, True),
    ]
    assert [r.ready for r in dialogues(tmp_path / "a")[0].references] == [(1, 3)] and report["questions"] == {
        "asked": 5,
        "asked_again": 2,
    }
    assert "between turns 1 and 3" in oracle.asked[-1].complaint
    stubborn = Scripted(says(bad))
    report = annotate([BOOKING], TOOLS, stubborn, tmp_path / "b", AnnotationOptions(second_reading=0))
    assert (
        len(stubborn.asked) == 7
        and report["merge"]["not_monotone"] == 1
        and dialogues(tmp_path / "b")[0].references == ()
    )


def test_gates_drop_dialogues_and_references_and_count_them(tmp_path: Path) -> None:
    called = BOOKING.model_copy(
        update={"references": (Reference(id="r", name="note", coverage=(1, 1), observed_trigger=1),)}
    )
    broken = BOOKING.model_copy(update={"id": "broken"})

    def say(request: OracleRequest) -> str:
        return "no JSON" if request.dialogue.id == "broken" else "[]"

    for gates, kept in ((True, 0), (False, 2)):
        report = annotate(
            [called, broken],
            TOOLS,
            Scripted(say),
            tmp_path / str(gates),
            AnnotationOptions(gates=gates, second_reading=0),
        )
        assert report["dialogues"]["failed"] == {"G2": 1, "G1": 1} and report["dialogues"]["kept"] == kept
        assert report["drops"] == {"not_json": 5} and report["gates"]["G2"]["recall"] == 0
        named = [
            {"id": "d", "reason": "G2", "detail": "not covered: note at turn 1"},
            {"id": "broken", "reason": "G1", "detail": "0 of 5 entries valid (5 not_json)"},
        ]
        assert report["left_out"] == (named if gates else [])


def test_a_value_known_only_later_never_reaches_the_window_unless_allowed(tmp_path: Path) -> None:
    """G4 on the whole way: READY at turn 1 with the day that is said at turn 3."""
    hindsight: dict[int, list[Mark]] = {u: [mark("note", "READY", text="monday")] for u in (1, 3, 5)}
    annotate([BOOKING], TOOLS, Scripted(says(hindsight)), tmp_path / "on")
    assert [r.ready for r in dialogues(tmp_path / "on")[0].references] == [(3, 5)]
    report = annotate(
        [BOOKING], TOOLS, Scripted(says(hindsight)), tmp_path / "off", AnnotationOptions(causality=False)
    )
    assert [r.ready for r in dialogues(tmp_path / "off")[0].references] == [(1, 5)] and report["gates"][
        "G4"
    ] == {
        "on": False,
        "failed_references": 0,
    }


def test_an_oracle_that_disagrees_with_itself_is_told_off(tmp_path: Path) -> None:
    late = {7: [mark("note", "READY", text="book")]}
    early = {1: [mark("note", "READY", text="book")]}
    oracle = Scripted(lambda q: says(late if q.repeat else early)(q))
    report = annotate([BOOKING], TOOLS, oracle, tmp_path)
    assert report["gates"]["G3"]["iou"] == 0 and report["gates"]["G3"]["passed"] is False
    steady = annotate([BOOKING], TOOLS, Scripted(says(early), steady=True), tmp_path, fresh=True)
    assert steady["gates"]["G3"]["iou"] is None


ODD = [
    talk("only me", id="user only").model_copy(
        update={
            "turns": (
                Turn(index=1, speaker="user", text="only me"),
                Turn(index=2, speaker="user", text="still me"),
            )
        }
    ),
    Dialogue(id="agent only", turns=(Turn(index=1, speaker="agent", text="hello?"),)),
    talk("", "", " ", id="empty"),
    talk(
        "🎉👩‍👩‍👧 book 🍽️",
        "\ud83c\udf89".encode("utf-16", "surrogatepass").decode("utf-16"),
        "yes",
        id="emoji",
    ),
    talk("احجز طاولة ليوم الاثنين", "كم شخص؟", "أربعة \u202e אבג \u2066", id="right to left"),
    talk(*(f"turn {i} on monday\nfor {{{{ 4 }}}} people" for i in range(500)), id="long"),
]


@pytest.mark.parametrize("dialogue", ODD, ids=[d.id for d in ODD])
@pytest.mark.parametrize("kind", ["log", "marks", "noise"])
def test_odd_dialogues_go_through(dialogue: Dialogue, kind: str, tmp_path: Path) -> None:
    values = {"text": dialogue.turns[0].text.strip() or "x"}
    reference = Reference(
        id="r", name="note", params=values, coverage=(1, 1), observed_trigger=1, value_turns={"text": 1}
    )
    dialogue = dialogue.model_copy(update={"references": (reference,) if dialogue.decision_turns else ()})
    one = {u: [mark("note", "READY", **values)] for u in dialogue.decision_turns}
    oracle = {
        "log": LogOracle(),
        "marks": Scripted(says(one)),
        "noise": Scripted(lambda q: '[{"name":"\ud800'),
    }[kind]
    report = annotate([dialogue], TOOLS, oracle, tmp_path, AnnotationOptions(gates=False))
    written = dialogues(tmp_path)[0]
    assert written.turns == dialogue.turns and report["dialogues"]["kept"] == 1
    assert len(written.references) == (kind != "noise" and bool(dialogue.decision_turns))


def test_input_that_cannot_be_annotated_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(AnnotationError, match="'d' appears twice"):
        annotate([BOOKING, BOOKING], TOOLS, Scripted(known), tmp_path)
    with pytest.raises(AnnotationError, match="offers 'fly', which the catalog does not have"):
        annotate([BOOKING.model_copy(update={"tools": ("fly",)})], TOOLS, Scripted(known), tmp_path)


def test_the_estimate_says_what_sharing_saves_and_prices_what_is_billed() -> None:
    cost = estimate([BOOKING], TOOLS, Scripted(known), price_in=2.0, price_out=4.0)
    assert cost.questions == 5 and cost.naive > cost.shared > 0
    assert cost.price == pytest.approx((cost.naive * 2 + cost.answers * 4) / 1e6) and "5 questions" in str(
        cost
    )
    twice = estimate([BOOKING, BOOKING.model_copy(update={"id": "e"})], TOOLS, Scripted(known))
    assert twice.naive == 2 * cost.naive and twice.price is None
    assert estimate([ODD[1]], TOOLS, LogOracle()).naive == 0


@pytest.mark.parametrize(
    ("lost", "share", "refused"), [(6, 0.5, False), (7, 0.5, True), (7, 1.0, False), (1, 0.0, True)]
)
def test_more_unanswered_dialogues_than_the_share_are_no_success(
    tmp_path: Path, lost: int, share: float, refused: bool
) -> None:
    """What was answered is kept, and the same call ends the work once the server is back."""
    away = {d.id for d in CORPUS.dialogues[:lost]}

    def answer(request: OracleRequest) -> str | OracleAnswer:
        return (
            OracleAnswer(failure="http", reason="no credit")
            if request.dialogue.id in away
            else known(request)
        )

    def go() -> dict[str, Any]:
        return annotate(CORPUS.dialogues, CORPUS.catalog, Scripted(answer), tmp_path, max_failed_share=share)

    if refused:
        words = rf"{lost} of 12 dialogues were not answered, more than the share {share:g} .*\(no credit\)"
        with pytest.raises(AnnotationError, match=words):
            go()
        assert not (tmp_path / WINDOWS).exists() and (tmp_path / PARTIAL).exists()
    else:
        assert go()["dialogues"]["unanswered"] == {"http": lost}
    away.clear()
    assert go()["dialogues"]["kept"] == 12


def test_a_server_that_went_away_is_not_asked_for_the_rest(tmp_path: Path) -> None:
    many = load("synthetic", limit=60)
    asked: list[str] = []

    def answer(request: OracleRequest) -> str | OracleAnswer:
        asked.append(request.dialogue.id)
        return known(request) if len(set(asked)) <= 10 else OracleAnswer(failure="timeout")

    with pytest.raises(AnnotationError, match=r"1\d of the last 20 dialogues were not answered, .*timeout"):
        annotate(many.dialogues, many.catalog, Scripted(answer), tmp_path)
    assert len(set(asked)) < 30
    report = annotate(many.dialogues, many.catalog, Scripted(known), tmp_path)
    assert report["dialogues"] == {"read": 60, "kept": 60, "failed": {}, "unanswered": {}}
