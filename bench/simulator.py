"""A discrete-event model of the sampler under load: requests arrive, share steps and pages, and end.

It follows `engine/scheduler.py`: a row for each sequence that decodes, then chunks of prompts in order of
arrival; a request computes its prompt once and forks into its samples, which share its whole pages. What a
step takes comes from a table (`bench.step_times`), times a seeded noise. Prefixes that different requests
share are not modelled, nor is the copy of a prompt's last page. A group is admitted as a whole, where the
scheduler may begin with a part of its samples: with fixed limits in a tight pool this is slower.
"""

from __future__ import annotations

import heapq
import math
import random
from collections import Counter, deque
from collections.abc import Sequence

from bench.simulated import PAGE, Arrival, Outcome, Piece, Running
from bench.step_times import StepTimes
from proactor.engine.controller import BUCKETS, Decision, Readings, choose_victims
from proactor.engine.load import LoadPolicy


class Simulator:
    """Runs arrivals through a policy.

    ``pages``: of the KV pool. ``noise``: deviation of a step's seconds, as a share. ``chunk``: most rows of
    one prompt in a step. ``log``: every decision with its readings.
    """

    def __init__(
        self,
        times: StepTimes,
        policy: LoadPolicy,
        pages: int,
        noise: float = 0.05,
        chunk: int = 2048,
        seed: int = 0,
    ) -> None:
        self.times, self.policy, self.pages, self.noise, self.chunk = times, policy, pages, noise, chunk
        self.log: list[tuple[Readings, Decision]] = []
        self.out = Outcome()
        self._rng = random.Random(seed)
        self._queue: deque[Piece] = deque()
        self._filling: list[Piece] = []
        self._ready: deque[Running] = deque()  # they have a first token and no place
        self._decoding: dict[Running, None] = {}
        self._ends: list[
            tuple[int, int, Running]
        ] = []  # a heap by the step before which a sample is complete
        self._growth: Counter[int] = Counter()  # decoding samples by their phase
        self._holders: Counter[Arrival] = Counter()  # admitted samples, which hold their prompt's whole pages
        self._unended: dict[Arrival, int] = {}
        self._step = self._kv = self._used = self._waiting = self._admitted = self._backlog = self._serial = 0
        self._last = (0, 0, 0, 0.0)
        self._lengths: list[int] = []

    def run(self, arrivals: Sequence[Arrival], window: float = math.inf, until: float = math.inf) -> Outcome:
        """Simulate arrivals, which are in order of time, until all are finished or ``until`` seconds."""
        out, now, at = self.out, 0.0, 0
        numbers = {arrival: i for i, arrival in enumerate(arrivals)}
        out.latency = [None] * len(arrivals)
        while now < until:
            while at < len(arrivals) and arrivals[at].time <= now:
                arrival = arrivals[at]
                self._unended[arrival] = len(arrival.lengths)
                self._enqueue(Piece(arrival, tuple(range(len(arrival.lengths)))))
                at += 1
            if not self._unended:
                if at == len(arrivals):
                    break
                now = arrivals[at].time
                continue
            now += self._run_step()
            if now <= window:
                out.window_drawn = out.drawn
            for arrival in self._finish():
                out.latency[numbers[arrival]] = now - arrival.time
        out.seconds = now
        return out

    def check(self) -> None:
        """Assert that pages and sequences are those of what is there. For tests."""
        step, used = self._step, 0
        used += sum(r.arrival.own_pages(r.age(step) - 1) for r in self._decoding)
        used += sum(r.arrival.own_pages(r.drawn) for r in self._ready)
        used += sum(piece.own_pages for piece in self._filling)
        used += sum(arrival.prompt // PAGE for arrival in self._holders)
        admitted = len(self._decoding) + len(self._ready) + sum(len(p.samples) for p in self._filling)
        assert used == self._used <= self.pages and admitted == self._admitted == self._holders.total()
        assert self._waiting == sum(len(piece.samples) for piece in self._queue)
        assert self._backlog == sum(piece.rows - piece.done for piece in [*self._queue, *self._filling])
        assert self._kv == sum(r.arrival.prompt + r.age(step) for r in self._decoding)
        assert self._admitted + self._waiting == sum(self._unended.values())

    # -- a step ---

    def _run_step(self) -> float:
        """Decide, plan and run a step; returns its seconds."""
        out = self.out
        decision = self._decide()
        if decision.free_pages:
            self._preempt(decision.free_pages)
        self._used += self._growth[self._step % PAGE]
        assert self._used <= self.pages, "out of pages"
        self._start(decision.max_seqs)
        self._admit(decision)
        rows, read = self._fill(decision.prefill_rows)
        if not rows and not self._decoding:  # no step is empty
            rows, read = self._fill(self.chunk)
        decodes = len(self._decoding)
        assert decodes + rows, "requests wait and nothing runs"
        size = self.policy_bucket(decodes) if self.times.padded and not rows else decodes
        seconds = self.times.seconds(size, self._kv, rows, read)
        seconds *= self._rng.lognormvariate(0, self.noise) if self.noise else 1.0
        self._last = (decodes, self._kv, rows, seconds)
        self._kv += decodes
        self._step += 1
        self._backlog -= rows
        out.drawn += decodes
        out.prompt_rows += rows
        out.steps += 1
        out.sequences += decodes
        return seconds

    @staticmethod
    def policy_bucket(decodes: int) -> int:
        """The captured graph that runs so many sequences."""
        return next(b for b in BUCKETS if b >= decodes)

    def _decide(self) -> Decision:
        short = max(0, self._growth[self._step % PAGE] - (self.pages - self._used))
        decodes, kv, rows, seconds = self._last
        readings = Readings(
            waiting=self._waiting,
            admitted=self._admitted,
            decoding=len(self._decoding) + len(self._ready),
            backlog=self._backlog,
            pages_total=self.pages,
            pages_used=self._used,
            pages_promised=self._promised() if self._queue else 0,
            pages_short=short,
            last_decodes=decodes,
            last_kv=kv,
            last_rows=rows,
            last_seconds=seconds,
            ended=tuple(self._lengths),
        )
        self._lengths = []
        decision = self.policy.decide(readings)
        self.log.append((readings, decision))
        return decision

    def _expected_pages(self, arrival: Arrival, drawn: int) -> int:
        """Own pages that a sample of ``drawn`` tokens is expected to have at its end."""
        more = int(self.policy.expected(drawn, arrival.max_tokens))
        return max(arrival.own_pages(max(drawn, 1)), arrival.own_pages(drawn + more - 1))

    def _promised(self) -> int:
        """Pages that admitted samples are expected to take yet."""
        step, total = self._step, 0
        for running in self._decoding:
            drawn, arrival = running.age(step), running.arrival
            total += self._expected_pages(arrival, drawn) - arrival.own_pages(drawn - 1)
        for running in self._ready:
            total += self._expected_pages(running.arrival, running.drawn)
            total -= running.arrival.own_pages(running.drawn)
        for piece in self._filling:
            total += len(piece.samples) * self._expected_pages(piece.arrival, piece.drawn) - piece.own_pages
        return total

    def _enqueue(self, piece: Piece, front: bool = False) -> None:
        self._queue.appendleft(piece) if front else self._queue.append(piece)
        self._waiting += len(piece.samples)
        self._backlog += piece.rows

    def _hold(self, arrival: Arrival, samples: int) -> None:
        """So many more samples hold a prompt's whole pages, or fewer."""
        before = self._holders[arrival]
        self._holders[arrival] += samples
        self._admitted += samples
        if not self._holders[arrival]:
            del self._holders[arrival]
        self._used += arrival.prompt // PAGE * ((before + samples > 0) - (before > 0))

    def _start(self, places: int) -> None:
        """Let samples that are ready decode."""
        while self._ready and len(self._decoding) < places:
            running = self._ready.popleft()
            running.since = self._step
            self._decoding[running] = None
            self._growth[running.phase] += 1
            self._kv += running.arrival.prompt + running.drawn
            self._serial += 1
            end = self._step + running.arrival.lengths[running.sample] - running.drawn
            heapq.heappush(self._ends, (end, self._serial, running))

    def _admit(self, decision: Decision) -> None:
        room = decision.room
        while self._queue and self._admitted < decision.max_seqs:
            piece = self._queue[0]
            arrival, held = piece.arrival, self._holders[piece.arrival] > 0
            prompt = 0 if held else arrival.prompt // PAGE
            need = prompt + len(piece.samples) * self._expected_pages(arrival, piece.drawn)
            if self._used + prompt + piece.own_pages > self.pages or (need > room and self._admitted):
                return
            room -= need
            self._queue.popleft()
            self._waiting -= len(piece.samples)
            self._used += piece.own_pages
            self._hold(arrival, len(piece.samples))
            if piece.drawn and held:  # its siblings hold the prompt
                piece.done = arrival.prompt
                self._backlog -= arrival.prompt
            self._filling.append(piece)

    def _fill(self, budget: int) -> tuple[int, int]:
        """Compute rows of prompts, in order; returns how many, and the tokens that they read."""
        rows = read = 0
        for piece in list(self._filling):
            count = min(budget - rows, self.chunk, piece.rows - piece.done)
            rows += count
            read += count * (piece.done + count // 2)
            piece.done += count
            self.out.recomputed += count if piece.drawn else 0
            if piece.done < piece.rows:
                break
            self._filling.remove(piece)
            self.out.drawn += len(piece.samples) if not piece.drawn else 0
            self._ready.extend(Running(piece.arrival, s, max(piece.drawn, 1)) for s in piece.samples)
        return rows, read

    # -- ending ---

    def _finish(self) -> list[Arrival]:
        """End the samples whose last token was drawn; returns the requests that are complete."""
        complete, ended = [], []
        while self._ends and self._ends[0][0] <= self._step:
            running = heapq.heappop(self._ends)[2]
            if running in self._decoding:
                self._stop(running)
                ended.append(running)
        for running in [r for r in self._ready if r.drawn == r.arrival.lengths[r.sample]]:
            self._ready.remove(running)
            self._used -= running.arrival.own_pages(running.drawn)
            self._hold(running.arrival, -1)
            ended.append(running)
        for running in ended:
            arrival = running.arrival
            self._lengths.append(arrival.lengths[running.sample])
            self._unended[arrival] -= 1
            if not self._unended[arrival]:
                del self._unended[arrival]
                complete.append(arrival)
        return complete

    def _stop(self, running: Running) -> None:
        """Take a sample out of those that decode and free what it holds."""
        drawn = running.age(self._step)
        del self._decoding[running]
        self._growth[running.phase] -= 1
        self._kv -= running.arrival.prompt + drawn
        self._used -= running.arrival.own_pages(drawn - 1)
        self._hold(running.arrival, -1)

    def _preempt(self, pages: int) -> None:
        """Put samples back to the head of the queue until so many pages are free."""
        step = self._step
        candidates: list[tuple[Running | Piece, int, int]] = [
            (r, r.arrival.prompt + r.age(step), r.arrival.own_pages(r.age(step) - 1)) for r in self._decoding
        ]
        candidates += [(r, r.arrival.prompt + r.drawn, r.arrival.own_pages(r.drawn)) for r in self._ready]
        candidates += [(piece, piece.done, piece.own_pages) for piece in self._filling]
        for victim in choose_victims(candidates, pages):
            self.out.preempted += 1
            if isinstance(victim, Piece):
                self._filling.remove(victim)
                self._used -= victim.own_pages
                self._hold(victim.arrival, -len(victim.samples))
                self._backlog -= victim.rows - victim.done
                self.out.recomputed += victim.done if not victim.drawn else 0
                self._enqueue(Piece(victim.arrival, victim.samples, victim.drawn), front=True)
                continue
            drawn = victim.drawn
            if victim in self._decoding:
                drawn = victim.age(step)
                self._stop(victim)
            else:
                self._ready.remove(victim)
                self._used -= victim.arrival.own_pages(drawn)
                self._hold(victim.arrival, -1)
            self._enqueue(Piece(victim.arrival, (victim.sample,), drawn), front=True)
