"""The action board: logged, own, and drawn."""

from __future__ import annotations

from proactor.dialogue import Reference, Status
from proactor.dialogue.board import EMPTY, draw_board, logged_board
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


def test_drawn_board_is_a_function_of_its_key() -> None:
    dialogue = users(7, CALL)
    drawn = [bool(draw_board(dialogue, 3, seed=s).entries) for s in range(400)]
    assert drawn == [bool(draw_board(dialogue, 3, seed=s).entries) for s in range(400)]
    assert 150 < sum(drawn) < 250
    assert any(
        draw_board(dialogue, 3, seed=0, epoch=e) != draw_board(dialogue, 3, seed=0, epoch=0)
        for e in range(1, 20)
    )
    assert any(bool(draw_board(dialogue, 4, seed=s).entries) != drawn[s] for s in range(20))
    assert not any(draw_board(dialogue, 3, seed=s, logged=0.0).entries for s in range(50))
    assert all(draw_board(dialogue, 3, seed=s, logged=1.0).entries for s in range(50))
