"""RULER: candidates for one decision, scored against one another by a judge.

The procedure is OpenPipe ART's [CODE, methods 2]: what the candidates share is shown once, a judge gives each
a score in 0..1, a group whose verdict cannot be used is dropped. Fixed here [INFERRED]: scores go by id, not
by place; they are clamped and checked; the order of candidates is permuted; what candidates wrote is escaped;
one retry with another seed, and so another order, comes before a drop; every failure is counted by name.
ProActor's group is the K candidates of one turn, the logged dialogue their context [NOTES].
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proactor.dialogue.candidates import Candidates
from proactor.ruler.cache import Cache, Scores
from proactor.ruler.judges import EndpointJudge, EngineJudge, Judge, JudgeFailure
from proactor.ruler.question import JudgeRequest, Question
from proactor.ruler.rubric import Rubric, RulerError, find_rubric
from proactor.ruler.verdict import Unusable, Verdict, read_verdict

if TYPE_CHECKING:
    from proactor.engine import Engine

ATTEMPTS = 2
"""Times a group is put before the judge before it is dropped."""

FAILURES = {"timeout": "timeouts", "rate_limit": "rate_limited"}
"""Counter of a failure kind where it is not the kind itself."""


@dataclass
class Ruler:
    """``rubric``: "general", "custom", a text of one's own, or a `Rubric`. ``timeout``: seconds for one
    answer of a concurrent judge (its own retries included, the wait for a turn not); an in-process judge
    cannot be interrupted. ``cache``: a JSONL file in which verdicts are kept, None for memory only.
    ``grading``: the judge's whole system message instead of the default, ``{rubric}`` in it is replaced (a
    short one for small models).

    ``counters``: groups, requests (attempts put before the judge), retries, cache_hits (also of a group that
    is in the same batch twice), collapsed (candidates not sent because another one is the same), escaped
    (candidates with something to escape), scored_groups, clamped, missing_parts, dropped_groups,
    cache_bad_lines, and failures of single attempts: timeouts, rate_limited, connection, http, empty,
    too_long, bad_json, wrong_ids, bad_scores. Always ``groups = scored_groups + dropped_groups`` and
    ``requests = groups - cache_hits + retries``. A group of no candidates counts nowhere.
    """

    judge: Judge
    rubric: str | Rubric = "custom"
    seed: int = 0
    timeout: float | None = None
    cache: str | Path | None = None
    grading: str | None = None
    counters: Counter[str] = field(default_factory=Counter, init=False)
    _rubric: Rubric = field(init=False, repr=False)
    _cache: Cache = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rubric = find_rubric(self.rubric)
        if self.timeout is not None and not self.timeout > 0:
            raise RulerError(f"ruler: timeout={self.timeout} is not above 0")
        self._cache = Cache(self.cache, counters=self.counters)

    @property
    def concurrent(self) -> bool:
        """May it run while the policy is being sampled?"""
        return self.judge.concurrent

    def bind(self, engine: Engine) -> None:
        """Give the engine to a judge that grades with it; nothing for the others."""
        if isinstance(self.judge, EngineJudge):
            self.judge.bind(engine)

    async def score(self, candidates: Candidates) -> list[dict[str, float]] | None:
        """For each candidate "ruler" in 0..1 and the rubric's sub-scores under their names; None: no usable
        verdict, the group was dropped and counted. Identical candidates get identical scores.
        """
        return (await self.score_all([candidates]))[0]

    async def score_all(self, groups: Sequence[Candidates]) -> list[list[dict[str, float]] | None]:
        """`score` of many groups; a judge that is not concurrent gets them as one batch."""
        return await self._score([Question.of(group, self.grading) for group in groups])

    async def score_messages(
        self, groups: Sequence[Sequence[Sequence[Mapping[str, Any]]]], tools: str = ""
    ) -> list[list[dict[str, float]] | None]:
        """The same for groups of plain message lists; ``tools``: a text that describes what was on offer."""
        return await self._score([Question.of_messages(group, tools, self.grading) for group in groups])

    async def _score(self, questions: Sequence[Question]) -> list[list[dict[str, float]] | None]:
        keys = [f"{self.judge.name}/{question.content(self._rubric)}" for question in questions]
        found: dict[str, Scores] = {}
        open_: dict[str, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            if not question.trajectories:
                continue
            self.counters["groups"] += 1
            self.counters["collapsed"] += len(question.trajectories) - len(question.distinct)
            self.counters["escaped"] += question.escaped
            known = self._cache.get(key)
            if known is not None:
                found[key] = known
            if known is not None or key in open_:  # a batch may hold a group twice
                self.counters["cache_hits"] += 1
            else:
                open_[key] = question
        for attempt in range(ATTEMPTS):
            verdicts = await self._ask(open_, attempt)
            for key, scores in verdicts.items():
                self._cache.put(key, scores)
                del open_[key]
            found |= verdicts
        return [self._spread(question, found.get(key)) for key, question in zip(keys, questions, strict=True)]

    async def _ask(self, asked: Mapping[str, Question], attempt: int) -> dict[str, Scores]:
        """One attempt at each question; what came of it where that can be used."""
        if not asked:
            return {}
        requests = [question.ask(self._rubric, self.seed, attempt) for question in asked.values()]
        self.counters["requests"] += len(requests)
        self.counters["retries"] += len(requests) if attempt else 0
        if self.judge.concurrent:
            answers = list(await asyncio.gather(*(self._one(request) for request in requests)))
        else:
            answers = await self._reply(requests)
        found: dict[str, Scores] = {}
        for (key, question), request, answer in zip(asked.items(), requests, answers, strict=True):
            verdict = self._read(request, answer)
            if verdict is not None:
                of_id = dict(zip(request.ids, request.shown, strict=True))
                found[key] = {question.digest(of_id[id]): score for id, score in verdict.scores.items()}
        return found

    async def _one(self, request: JudgeRequest) -> str | JudgeFailure:
        if isinstance(self.judge, EndpointJudge):  # requests queue there, which is no fault of the judge's
            return await self.judge.reply_within(request, self.timeout)
        try:
            async with asyncio.timeout(self.timeout):
                return (await self._reply([request]))[0]
        except TimeoutError:
            return JudgeFailure("timeout", f"no answer within {self.timeout:g} s")

    async def _reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        answers = await self.judge.reply(requests)
        if len(answers) != len(requests):
            raise RulerError(
                f"judge {self.judge.name} gave {len(answers)} answers to {len(requests)} requests"
            )
        return answers

    def _read(self, request: JudgeRequest, answer: str | JudgeFailure) -> Verdict | None:
        if isinstance(answer, JudgeFailure):
            self.counters[FAILURES.get(answer.kind, answer.kind)] += 1
            return None
        verdict = read_verdict(answer, request.ids, request.rubric.parts)
        if isinstance(verdict, Unusable):
            self.counters[verdict.reason] += 1
            return None
        self.counters["clamped"] += verdict.clamped
        self.counters["missing_parts"] += verdict.missing_parts
        return verdict

    def _spread(self, question: Question, scores: Scores | None) -> list[dict[str, float]] | None:
        """A question's scores over all its candidates, equal ones included."""
        if not question.trajectories:
            return []
        self.counters["dropped_groups" if scores is None else "scored_groups"] += 1
        if scores is None:
            return None
        said = [scores[question.digest(i)] for i in range(len(question.trajectories))]
        return [{"ruler": score.value, **score.parts} for score in said]


async def ruler_scores(
    message_lists: Sequence[Sequence[Mapping[str, Any]]],
    judge: Judge,
    rubric: str | Rubric = "general",
    *,
    tools: str = "",
    seed: int = 0,
) -> list[float] | None:
    """Scores in 0..1 for any group of message lists that belong to one task, in the style of ART's
    ``ruler_score_group``: a group score (hook H2) for training loops of one's own.

        for group, lists in zip(groups, message_lists):
            if (scores := await ruler_scores(lists, EndpointJudge(Endpoint("gpt-4.1-mini")))) is not None:
                group.rewards = scores

    None: no usable verdict after a retry, the group is to be dropped. For counters, a cache or sub-scores use
    `Ruler.score_messages`.
    """
    found = (await Ruler(judge, rubric, seed).score_messages([message_lists], tools))[0]
    return None if found is None else [parts["ruler"] for parts in found]
