"""The action board: logged, own, and drawn."""

from __future__ import annotations

from proactor.dialogue import Reference, Status
from proactor.dialogue.board import EMPTY, BoardShares, acted_board, draw_board, earlier_board, logged_board
from proactor.dialogue.matching import Timing
from tests.proactor.dialogues import pending, ready, users

BOOK = Reference(
    id="b", name="book", params={"day": "Monday"}, coverage=(2, 6), ready=(4, 5), observed_trigger=4
)
CALL = Reference(id="c", name="call", coverage=(1, 6), ready=(2, 2), observed_trigger=2)


def test_logged_board_holds_what_was_triggered_before_the_turn() -> None:
    dialogue = users(7, BOOK, CALL)
    assert [logged_board(dialogue, u).render() for u in (2, 3, 5)] == [
        "Board: []",
        'Board: [{"TRIGGERED":"call"}]',
        'Board: [{"TRIGGERED":"call"},{"TRIGGERED":"book","day":"Monday"}]',
    ]
    assert set(logged_board(dialogue, 5).fired) == {"b", "c"}


def test_own_board_keeps_every_fire_and_scores_the_right_ones() -> None:
    dialogue = users(7, BOOK, CALL)
    board = EMPTY.after(dialogue, 2, (ready("book", day="Monday"), ready("eat"), pending("call")))
    assert [(a.name, a.status) for a in board.entries] == [
        ("book", Status.TRIGGERED),
        ("eat", Status.TRIGGERED),
    ]
    assert board.fired == {"b": Timing.EARLY}
    again = board.after(dialogue, 4, (ready("book", day="monday"), ready("call")))
    assert [a.name for a in again.entries] == ["book", "eat", "call"]
    assert again.fired == {"b": Timing.EARLY, "c": Timing.LATE}
    assert again.after(dialogue, 5, (pending("eat"),)) is again
    assert EMPTY.entries == () and EMPTY.fired == {}


def test_own_board_tells_two_references_of_the_same_action_apart() -> None:
    dialogue = users(7, BOOK, BOOK.model_copy(update={"id": "b2"}))
    fire = (ready("book", day="Monday"),)
    board = EMPTY.after(dialogue, 4, fire)
    assert board.fired == {"b": Timing.ON_TIME}
    assert board.after(dialogue, 6, fire).fired == {"b": Timing.ON_TIME, "b2": Timing.LATE}


def test_acted_board_holds_what_could_be_triggered_before_the_turn() -> None:
    late = BOOK.model_copy(update={"observed_trigger": 6})
    unknown = Reference(id="u", name="eat", observed_trigger=3)
    dialogue = users(7, late, CALL, unknown)
    assert [set(acted_board(dialogue, u).fired) for u in (2, 3, 4, 5)] == [
        set(),
        {"c"},
        {"c", "u"},
        {"c", "u", "b"},
    ]
    assert acted_board(dialogue, 5).render().endswith('{"TRIGGERED":"book","day":"Monday"}]')
    assert set(logged_board(dialogue, 5).fired) == {"c", "u"}


def test_earlier_board_is_that_of_the_same_agent() -> None:
    dialogue = users(7, BOOK.model_copy(update={"observed_trigger": 6}), CALL)
    acted, logged = acted_board(dialogue, 6), logged_board(dialogue, 6)
    assert acted != logged
    assert earlier_board(dialogue, 6, acted, 5) == acted_board(dialogue, 5) != logged_board(dialogue, 5)
    assert earlier_board(dialogue, 6, logged, 5) == logged_board(dialogue, 5)
    assert earlier_board(dialogue, 6, EMPTY, 5) == EMPTY


def test_drawn_board_is_a_function_of_its_key() -> None:
    dialogue = users(7, BOOK, CALL.model_copy(update={"observed_trigger": 6}))
    turn = 5  # logged: book; acted: both

    def kind(seed: int, epoch: int = 0, at: int = turn, **shares: float) -> int:
        return len(draw_board(dialogue, at, seed=seed, epoch=epoch, shares=BoardShares(**shares)).entries)

    drawn = [kind(s) for s in range(400)]
    assert drawn == [kind(s) for s in range(400)]
    assert 150 < drawn.count(1) < 250 and 60 < drawn.count(2) < 140 and 60 < drawn.count(0) < 140
    assert any(kind(0, epoch=e) != drawn[0] for e in range(1, 20))
    assert any(bool(kind(s, at=3)) != bool(drawn[s]) for s in range(20))
    assert {kind(s, logged=0.0, acted=0.0) for s in range(50)} == {0}
    assert {kind(s, logged=1.0) for s in range(50)} == {1}
    assert {kind(s, logged=0.0, acted=1.0) for s in range(50)} == {2}
