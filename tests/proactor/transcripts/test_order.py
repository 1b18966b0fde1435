"""Turns by a column: in the order it means, or refused."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proactor.transcripts.order import places_of

START = datetime(2026, 1, 31, 22, 0, tzinfo=UTC)
WRITTEN = {
    "number": str,
    "fraction": lambda n: f"{n}.50",
    "id beyond a float": lambda n: str(2**60 + n),
    "label": lambda n: f"c12-turn-{n}",
    "clock": lambda n: f"{n // 60}:{n % 60:02}",
    "clock with seconds": lambda n: f"{n // 3600}:{n // 60 % 60:02}:{n % 60:02}.5",
    "clock of 12 hours": lambda n: f"{(n // 60 + 11) % 12 + 1}:{n % 60:02} {'AP'[n >= 720]}M",
    "clock of 12 hours, small": lambda n: f"{(n // 60 + 11) % 12 + 1}:{n % 60:02}{'ap'[n >= 720]}.m.",
    "ISO 8601": lambda n: (START + timedelta(seconds=n)).isoformat(),
    "with Z and odd fractions": lambda n: (
        f"{START + timedelta(seconds=n):%Y-%m-%dT%H:%M:%S}{'.2' * (n % 2)}Z"
    ),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_values_come_in_the_order_they_mean(kind: str) -> None:
    meant = [9, 10, 99, 100, 598, 599, 600, 750, 810, 870, 1000, 1439]
    meant += [] if "12" in kind else [3599, 3600]  # of one day
    random.Random(0).shuffle(meant)
    places = places_of([WRITTEN[kind](n) for n in meant])
    assert [meant[place] for place in places] == sorted(meant)


@given(st.lists(st.integers(0, 50)), st.sampled_from(["number", "label", "clock"]))
def test_equal_values_stay_as_they_stand(meant: list[int], kind: str) -> None:
    places = places_of([WRITTEN[kind](n) for n in meant])
    assert places == sorted(range(len(meant)), key=lambda i: (meant[i], i))


def test_one_turn_needs_no_order() -> None:
    assert places_of(["1/31/2026 1:30 PM"]) == [0] and places_of([]) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["2", "", "10"], "turn 2 has no value"),
        (["2", " "], "turn 2 has no value"),
        (["2", "10", "soon"], "turn 3 has 'soon' after '10'"),
        (["2", "nan", "1"], "turn 2 has 'nan'"),
        (["9:58", "1:02 PM"], "turn 2 has '1:02 PM'"),
        (["13:58 PM", "1:02 PM"], "turn 2 has '1:02 PM'"),
        (["1/31/2026 12:30 PM", "1/31/2026 1:30 PM"], "turn 2 has '1/31/2026 1:30 PM'"),
        (["12 p.m.", "1 p.m."], "turn 2 has '1 p.m.'"),
        (["下午12:30", "下午1:30"], "turn 2 has '下午1:30'"),
        (["12/31/2025", "1/2/2026"], "turn 2 has '1/2/2026'"),
        (["2026-01-31T09:58:00", "2026-01-31T09:59:00Z"], "turn 2 has"),
        (["first", "second"], "turn 2 has 'second'"),
    ],
)
def test_what_has_no_sure_order_is_refused(values: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        places_of(values)
    assert "\n" not in str(caught.value)
