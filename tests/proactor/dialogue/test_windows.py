from __future__ import annotations

import pytest

from proactor.dialogue import Dialogue, Reference, Status, Turn, windows

SPEAKERS = "uauauuau"
TURNS = tuple(
    Turn(index=i, speaker="user" if who == "u" else "agent", text=f"text {i}")
    for i, who in enumerate(SPEAKERS, start=1)
)
WIDE = Reference(
    id="wide",
    name="t",
    params={"a": "x", "b": "y"},
    coverage=(1, 8),
    ready=(3, 6),
    value_turns={"a": 1, "b": 3},
)
POINT = Reference(id="point", name="t", coverage=(3, 3), ready=(3, 3))
UNKNOWN = Reference(id="unknown", name="t", coverage=(5, 6), null_reason="untraced")
NOWHERE = Reference(id="nowhere", name="t")
DIALOGUE = Dialogue(id="d", turns=TURNS, references=(WIDE, POINT, UNKNOWN, NOWHERE))


def ids(references: tuple[Reference, ...]) -> list[str]:
    return [r.id for r in references]


def test_open_ready_masked() -> None:
    assert ids(windows.open_at(DIALOGUE, 1)) == ["wide"]
    assert ids(windows.open_at(DIALOGUE, 3)) == ["wide", "point"]
    assert ids(windows.open_at(DIALOGUE, 6)) == ["wide", "unknown"]
    assert (
        ids(windows.ready_at(DIALOGUE, 3)) == ["wide", "point"] and ids(windows.ready_at(DIALOGUE, 8)) == []
    )
    assert [r.id for r in DIALOGUE.references if r.ready is None] == ["unknown", "nowhere"]


def test_due_is_the_last_decision_point_inside_the_window() -> None:
    assert [ids(windows.due_at(DIALOGUE, u)) for u in DIALOGUE.decision_turns] == [
        [],
        ["point"],
        [],
        ["wide"],
        [],
    ]
    until_agent = Dialogue(
        id="d", turns=TURNS, references=(Reference(id="r", name="t", coverage=(1, 4), ready=(1, 4)),)
    )
    assert ids(windows.due_at(until_agent, 3)) == ["r"] and ids(windows.due_at(until_agent, 1)) == []


def test_status_and_width() -> None:
    assert [windows.status_at(WIDE, u) for u in (1, 3, 6, 8)] == [
        Status.PENDING,
        Status.READY,
        Status.READY,
        None,
    ]
    assert windows.status_at(POINT, 1) is None and windows.status_at(UNKNOWN, 5) is None
    assert [windows.width(r) for r in DIALOGUE.references] == [3, 0, None, None]
    assert windows.mean_width([DIALOGUE]) == 1.5 and windows.mean_width([]) is None


def test_params_grow_with_the_conversation() -> None:
    assert windows.params_at(WIDE, 1) == {"a": "x"}
    assert windows.params_at(WIDE, 3) == {"a": "x", "b": "y"}
    unsaid = WIDE.model_copy(update={"value_turns": {"a": 1}})
    assert windows.params_at(unsaid, 1) == {"a": "x"} and windows.params_at(unsaid, 3) == {"a": "x", "b": "y"}
    later = WIDE.model_copy(update={"value_turns": {"a": 1, "b": 4}})
    assert [set(windows.params_at(later, u)) for u in (3, 4)] == [
        {"a"},
        {"a", "b"},
    ]  # ready at 3, b is said at 4


@pytest.mark.parametrize(
    ("spellings", "turn"),
    [
        (("5 PM",), 2),
        (("pm",), 2),
        (("5 p",), None),
        (("Five", "noon"), 1),
        (("blue  hat",), 2),
        (("",), None),
        (("!",), None),
    ],
)
def test_first_mention_is_literal_and_on_word_boundaries(
    spellings: tuple[str, ...], turn: int | None
) -> None:
    turns = (
        Turn(index=1, speaker="user", text="Not before noon."),
        Turn(index=2, speaker="agent", text="15 or 5 pm? Blue hat!"),
    )
    assert windows.first_mention(turns, spellings) == turn


def test_mentions() -> None:
    turns = (Turn(index=1, speaker="user", text="friday"), Turn(index=2, speaker="agent", text="at five"))
    assert windows.mentions(turns, {"day": "Friday", "time": "17:00"}, {"time": ("five",)}) == (
        {"day": 1, "time": 2},
        2,
    )
    assert windows.mentions(turns, {"day": "Friday", "time": "17:00"}) == ({"day": 1}, None)
    assert windows.mentions(turns, {}) == ({}, 1)


@pytest.mark.parametrize(
    ("window", "snapped"), [((2, 7), (3, 6)), ((1, 1), (1, 1)), ((4, 4), None), ((2, 3), (3, 3))]
)
def test_snap(window: tuple[int, int], snapped: tuple[int, int] | None) -> None:
    assert windows.snap(TURNS, window) == snapped


def point(*references: Reference, turns: str = SPEAKERS + "a") -> list[tuple[object, object]]:
    spoken = tuple(
        Turn(index=i, speaker="user" if who == "u" else "agent", text="x")
        for i, who in enumerate(turns, start=1)
    )
    labelled = windows.as_points(Dialogue(id="d", turns=spoken, references=references))
    return [(r.coverage, r.ready) for r in labelled.references]


@pytest.mark.parametrize(
    ("trigger", "turn"),
    [
        (None, 6),  # no log: the window's end
        (3, 3),
        (4, 3),  # acted after an agent turn: its last chance was the user turn before
        (1, 1),  # early, but covered
        (8, 8),  # late, but covered
        (9, 6),  # outside coverage, and too late for it
        (0, 6),
    ],
)
def test_a_point_is_the_logged_trigger_or_the_end_of_the_window(trigger: int | None, turn: int) -> None:
    wide = WIDE.model_copy(update={"observed_trigger": trigger})
    assert point(wide) == [((turn, turn), (turn, turn))]
    assert windows.point_of(DIALOGUE, wide) == (turn, turn == trigger or trigger == 4)


def test_points_stay_inside_coverage_and_on_decision_points() -> None:
    late_start = WIDE.model_copy(update={"coverage": (4, 6), "ready": (4, 6), "observed_trigger": 4})
    assert point(late_start) == [((6, 6), (6, 6))]  # its user turn 3 lies before coverage
    agent_only = WIDE.model_copy(update={"coverage": (4, 5), "ready": (4, 5)})
    assert point(agent_only, turns="uauaau") == [((5, 5), (5, 5))]  # nothing to decide at: kept as it ends


def test_points_know_nothing_of_pending_and_leave_unknown_windows_unknown() -> None:
    dialogue = DIALOGUE.model_copy(
        update={"withdrawn": (WIDE.model_copy(update={"id": "w", "ready": None}),)}
    )
    labelled = windows.as_points(dialogue)
    assert labelled.withdrawn == () and [r.id for r in labelled.references if r.ready is None] == [
        "unknown",
        "nowhere",
    ]
    assert labelled.references[2] == UNKNOWN
    assert [windows.status_at(labelled.references[0], u) for u in (1, 3, 6, 8)] == [
        None,
        None,
        Status.READY,
        None,
    ]
    assert labelled.references[0].params == WIDE.params and labelled.turns == dialogue.turns
    assert windows.as_points(labelled) == labelled
    assert dialogue.references[0] == WIDE  # the windows are still there


def test_counters() -> None:
    assert windows.count([DIALOGUE]) == {
        "dialogues": 1,
        "turns": 8,
        "decision_turns": 5,
        "references": 4,
        "null": 2,
        "null_untraced": 1,
        "null_unknown": 1,
        "width_0": 1,
        "wider": 1,
        "withdrawn": 0,
    }
