"""What a step tells about its judge and its answers that act, over ranks and with dropped groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from proactor.dialogue import Action, Dialogue, Reference, Status, Turn
from proactor.dialogue.board import EMPTY, Board
from proactor.dialogue.decisions import Decision
from proactor.dialogue.matching import Timing
from proactor.dialogue.parse import Parsed
from proactor.engine import Group, Sample
from proactor.training.answers import Answer, AnswerGroup
from proactor.training.stats import judge_statistics, reward_statistics

POINT = Decision(Dialogue(id="d", turns=(Turn(index=1, speaker="user", text="hi"),)), 1, EMPTY, [1])


def judged(*pairs: tuple[float, float] | None, name: str = "ruler") -> AnswerGroup:
    """A group of answers by (judge's score, metric reward); None: it was dropped."""
    answers = []
    for pair in pairs:
        parts = {} if pair is None else {"reward": 0.5, name: pair[0], "metric": pair[1], "rac": 1 - pair[1]}
        sample = Sample([1], [2, 3], reward=None if pair is None else 0.5)
        answers.append(Answer(sample, Parsed(), parts))
    return AnswerGroup(POINT, Group([1], [a.sample for a in answers]), answers)


def alone(value: Any) -> list[Any]:
    return [value]


def test_spread_and_agreement_with_the_metric() -> None:
    groups = [judged((0.0, 0.1), (1.0, 0.2)), judged((0.5, 0.9), (0.7, 0.3), (0.7, 0.4)), judged(None, None)]
    stats = judge_statistics(alone, groups, ["ruler"], {"requests": 2})
    assert stats["judge/requests"] == 2 and stats["judge/pairs"] == 3
    assert stats["judge/agreement"] == pytest.approx(1 / 3), "one of the three pairs that both tell apart"
    assert stats["judge/spread"] == pytest.approx((0.5 + 0.2 * 2**0.5 / 3) / 2)
    assert -1 <= stats["judge/tau"] < 0


def test_ranks_are_added_and_one_may_have_nothing() -> None:
    mine, theirs = [judged((0.0, 0.1), (1.0, 0.2))], [judged((0.0, 0.2), (0.6, 0.1))]
    others: list[tuple[Sequence[AnswerGroup], dict[str, int]]] = [
        (theirs, {"requests": 3, "timeouts": 1}),
        ([], {}),
    ]

    def gather(value: Any) -> list[Any]:
        gathered = [value]
        for groups, counters in others:
            seen: list[Any] = []
            judge_statistics(lambda v, seen=seen: seen.append(v) or [v], groups, ["ruler"], counters)  # type: ignore[misc]
            gathered += seen
        return gathered

    gathered = judge_statistics(gather, mine, ["ruler"], {"requests": 1})
    assert (gathered["judge/requests"], gathered["judge/timeouts"]) == (4.0, 1.0)
    assert (gathered["judge/agreement"], gathered["judge/pairs"]) == (0.5, 2.0)
    assert gathered["judge/spread"] == pytest.approx((0.5 + 0.3) / 2)


def test_a_judge_that_was_not_asked_says_nothing() -> None:
    assert judge_statistics(alone, [judged((0.1, 0.1))], ["other"], {"groups": 0}) == {"judge/groups": 0.0}
    assert judge_statistics(alone, [], ["ruler"], {}) == {}


def test_dropped_groups_are_counted_and_no_part_of_the_means() -> None:
    stats = reward_statistics(alone, [judged((1.0, 0.0), (0.0, 0.0)), judged(None, None, None)])
    assert (stats["groups"], stats["groups_dropped"], stats["samples"]) == (1.0, 1.0, 2.0)
    assert stats["parts/ruler"] == 0.5 and stats["parts/ruler_within"] == 0.5
    assert stats["tokens_sampled"] == 10.0 and stats["unparsed_share"] == 0.0


BOOK = Reference(id="r", name="book", coverage=(1, 3), ready=(3, 3))
LONGER = Dialogue(
    id="d",
    turns=tuple(Turn(index=i, speaker="user" if i % 2 else "agent", text="hi") for i in range(1, 6)),
    references=(BOOK,),
)


def answered(turn: int, *answers: tuple[Status | None, float | None], board: Board = EMPTY) -> AnswerGroup:
    """A group at a turn of `LONGER`, by (status of the one action or None, advantage)."""
    read = [Parsed(() if status is None else (Action(name="book", status=status),)) for status, _ in answers]
    samples = [Sample([1], [2], reward=0.0, advantage=advantage) for _, advantage in answers]
    listed = [Answer(sample, parsed) for sample, parsed in zip(samples, read, strict=True)]
    return AnswerGroup(Decision(LONGER, turn, board, [1]), Group([1], samples), listed)


def test_answers_that_act_are_told_apart_by_what_is_ready() -> None:
    fired = Board(fired={"r": Timing.ON_TIME})
    dropped = answered(3, (Status.READY, 9.0))
    dropped.group.samples[0].reward = None
    other: list[Any] = []
    reward_statistics(
        lambda sums: other.append(sums) or [sums], [answered(3, (Status.READY, 1.0), (None, -1.0))]
    )  # type: ignore[func-returns-value]
    mine = [
        answered(1, (Status.READY, -2.0), (None, 0.5), (Status.PENDING, 0.75), (Status.READY, None)),
        answered(3, (Status.READY, -0.5), (None, 0.5), board=fired),
        dropped,
    ]
    stats = reward_statistics(lambda sums: [sums, *other], mine)
    assert (stats["acts/ready"], stats["acts/not_ready"]) == (1 / 2, 3 / 6)
    assert (stats["pull/ready"], stats["pull/not_ready"]) == (1.0 / 8, -2.5 / 8)


def test_decisions_that_nobody_can_judge_are_left_out() -> None:
    unknown = LONGER.model_copy(update={"references": (BOOK.model_copy(update={"ready": None}),)})
    group = answered(3, (Status.READY, 1.0))
    group.decision = Decision(unknown, 3, EMPTY, [1])
    stats = reward_statistics(alone, [group])
    assert not [key for key in stats if key.startswith(("acts/", "pull/"))]
