"""Named ranges: what is counted for which, and nothing where nobody listens."""

from __future__ import annotations

import threading
from itertools import count

import pytest

from proactor.engine.ranges import SILENCE, Times, listening, ranged


def test_each_range_counts_without_those_inside() -> None:
    ticks = count()
    times = Times(lambda: float(next(ticks)))  # each begin and each end is a second later
    with listening(times), ranged("outer"):
        with ranged("inner"):
            pass
        with ranged("inner"):
            pass
    outer, inner = times.by_name["outer"], times.by_name["inner"]
    assert (inner.count, inner.seconds, inner.own) == (2, 2.0, 2.0)
    assert (outer.count, outer.seconds, outer.own) == (1, 5.0, 3.0)


def test_an_error_ends_a_range() -> None:
    times = Times()
    with listening(times), pytest.raises(ValueError, match="x"), ranged("outer"), ranged("inner"):
        raise ValueError("x")
    assert times.by_name["outer"].count == times.by_name["inner"].count == 1
    with listening(times), ranged("outer"):
        pass
    assert times.by_name["outer"].count == 2


def test_threads_do_not_lie_inside_of_each_other() -> None:
    times, begun, end = Times(), threading.Event(), threading.Event()

    def work() -> None:
        with ranged("thread"):
            begun.set()
            end.wait()

    with listening(times), ranged("caller"):
        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        end.set()
        thread.join()
    assert times.by_name["caller"].own == times.by_name["caller"].seconds >= times.by_name["thread"].own


def test_nobody_listens() -> None:
    assert ranged("a") is SILENCE
    with listening(Times()):
        assert ranged("a") is not SILENCE
    assert ranged("a") is SILENCE
