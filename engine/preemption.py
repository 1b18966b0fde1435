"""Preemption by recomputation: who gives pages back when they run out, and what becomes of it.

A sequence that is preempted joins the waiting line again, as a request whose prompt goes on with the tokens
that it drew. What it computed stays in the prefix tree until it is evicted, so only the rest is computed
again. The noise of a token depends on its position alone, so in deterministic mode the tokens are the same.

The one with the most tokens is never preempted, and each step adds to its tokens or to those of another that
has more. So some sample always ends.
"""

from __future__ import annotations

from dataclasses import replace

from proactor.engine.controller import choose_victims
from proactor.engine.running import AdmittedRequest, Running
from proactor.engine.step import Decode
from proactor.engine.waiting import WaitingLine


def preempt(running: Running, line: WaitingLine, pages: int) -> int:
    """Preempt sequences until ``pages`` more are available, or one is left; returns how many."""
    pool = running.pool
    goal, count = pool.available + pages, 0
    candidates: list[tuple[Decode | AdmittedRequest, int, int]] = [
        (decode, decode.length, pool.own(decode.seq)) for decode in running.decoding
    ]
    for run in (*running.forking, *running.prefilling):
        assert run.seq is not None
        candidates.append((run, run.seq.computed, pool.own(run.seq)))
    for victim in choose_victims(candidates, pages):
        if pool.available >= goal:  # pages that only victims shared came on top
            break
        if isinstance(victim, Decode):
            count += _preempt_sequence(running, line, victim)
        else:
            count += _preempt_request(running, line, victim)
    return count


def preempt_all(running: Running, line: WaitingLine) -> None:
    """Preempt everything, so that no page is in use; what ran longest waits first."""
    for run in [*reversed(running.prefilling), *reversed(running.forking)]:
        _preempt_request(running, line, run)
    for decode in reversed(running.decoding.decodes):
        _preempt_sequence(running, line, decode)


def _preempt_sequence(running: Running, line: WaitingLine, decode: Decode) -> int:
    line.put_back(decode.request.resumed(decode.id[1], decode.generated))
    running.decoding.replace([other for other in running.decoding if other is not decode])
    running.end(decode)
    return 1


def _preempt_request(running: Running, line: WaitingLine, run: AdmittedRequest) -> int:
    """Preempt a prompt: as it is while it is computed, after that each of its forks that have not begun."""
    request, count = run.request, len(run.pending)
    assert run.seq is not None
    if not count:
        known = max(request.known, run.seq.computed)
        line.put_back(replace(request, known=known, lease=None))
        running.remove(run)
        return 1
    for sample, token in reversed(run.pending):
        line.put_back(request.resumed(sample, [token]))
    running.drop_forks(run)
    return count
