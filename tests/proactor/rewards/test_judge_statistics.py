"""What a step tells about its judge, over ranks and with dropped groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from proactor.dialogue import Dialogue, Turn
from proactor.dialogue.board import EMPTY
from proactor.dialogue.decisions import Decision
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
