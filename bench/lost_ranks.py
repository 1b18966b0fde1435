"""Runs on two ranks, one of which is killed or stopped."""

from __future__ import annotations

import signal
from pathlib import Path

from bench.forked import Child, Ended
from bench.tiny_run import refused
from bench.trials import LIVES, Tally, Trials


def deaths(trials: Trials, count: int) -> Tally:
    """SIGKILL to one of two ranks at a random time: the other ends with one line."""
    return _lose(trials, count, signal.SIGKILL, timeout=20)


def stuck(trials: Trials, count: int) -> Tally:
    """SIGSTOP to one of two ranks at a random time: the other ends with one line."""
    return _lose(trials, count, signal.SIGSTOP, timeout=8)


ROLLOUT = ("unit.leased", "unit.running", "unit.ended", "unit.done")
"""Fault points of a rank while ranks share a step's sampling: it has a lease, samples, has sampled a unit,
has put that into the store.
"""


def rollouts(trials: Trials, count: int) -> Tally:
    """SIGKILL to each of two ranks in turn, at each point of the sampling: the other ends with one line."""
    tally = Tally(
        "SIGKILL to one of two ranks while they sample, by turns rank 0, which holds the store, and 1"
    )
    while tally.trials < count:
        runs = trials.scratch / f"rollouts-{tally.runs}"
        for _ in range(min(LIVES, count - tally.trials)):
            lost, point = tally.trials % 2, ROLLOUT[tally.trials // 2 % len(ROLLOUT)]
            fault = f"{point}:{trials.random.randint(1, 3)}"
            ranks = trials.tiny.train_ranks(runs, 2, lost, fault)
            if not _noted(tally, ranks, lost, at=f" at {point}"):
                break
        trials.compare(runs, _both(trials, runs), tally, rounded=True)
    return tally


def _lose(trials: Trials, count: int, number: signal.Signals, timeout: float) -> Tally:
    tally = Tally(f"{number.name} to one of two ranks at a random time; engine.rank_timeout {timeout:g} s")
    trials.tiny.timeout = timeout
    runs = trials.scratch / f"{number.name}-none"
    with trials.timed():
        end = _both(trials, runs)
    trials.compare(runs, end, tally, rounded=True)
    while tally.trials < count:
        runs = trials.scratch / f"{number.name}-{tally.runs}"
        for _ in range(min(LIVES, count - tally.trials)):
            if not _lost(trials, runs, number, tally):
                break
        trials.compare(runs, _both(trials, runs), tally, rounded=True)
    return tally


def _lost(trials: Trials, runs: Path, number: signal.Signals, tally: Tally) -> bool:
    """One life of a run on two ranks. False where it ended before one was lost."""
    ranks = trials.tiny.train_ranks(runs)
    lost = trials.random.randrange(2)
    trials.moment()
    ranks[lost].kill(number)
    return _noted(tally, ranks, lost, stopped=number == signal.SIGSTOP)


def _noted(tally: Tally, ranks: list[Child], lost: int, at: str = "", stopped: bool = False) -> bool:
    """Note how the ranks end of which one is ``lost``. False where the run ended before."""
    other = ranks[1 - lost].end()
    if stopped:
        ranks[lost].kill()
    gone = ranks[lost].end()
    if gone.code == 0 or other.code == 0:  # after the last meeting
        return False
    tally.trials += 1
    if refused(other) and (f"rank {lost}" in other.errors or "joined within" in other.errors):
        tally.note(f"rank {lost} lost{at}, the other ended with one line")
    else:
        tally.fail(f"rank {lost} lost{at}: the other ended with {other.code}: {other.errors[-400:]}")
    return True


def _both(trials: Trials, runs: Path) -> Ended:
    """Both ranks to the end; how the worse one ended."""
    return max((child.end() for child in trials.tiny.train_ranks(runs)), key=lambda end: end.code != 0)
