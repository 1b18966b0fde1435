"""RULER: candidates for one decision, scored against one another by a judge.

The procedure is OpenPipe ART's [CODE, methods 2]: the context that candidates share is shown once, the judge
gives each a score in 0..1, and a group without a usable verdict is dropped. Improved here [INFERRED]: scores
go by id, not by position; they are clamped and checked; the order of candidates is permuted; candidates are
escaped; one retry with another seed, and so another order, comes before a drop; every failure is counted by
name. ProActor's group is the K candidates of one turn, with the logged dialogue as context [NOTES].
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proactor.dialogue.candidates import Candidates
from proactor.ruler.cache import Scores, VerdictCache
from proactor.ruler.endpoint_judge import EndpointJudge
from proactor.ruler.engine_judge import EngineJudge
from proactor.ruler.judge import Judge, JudgeFailure
from proactor.ruler.question import JudgeRequest, Question
from proactor.ruler.rubric import Rubric, RulerError, find_rubric
from proactor.ruler.verdict import Unusable, Verdict, read_verdict

if TYPE_CHECKING:  # an import at run time would import torch
    from proactor.engine import Engine

ATTEMPTS = 2
"""Times that the judge is asked about a group before the group is dropped."""

FAILURES = {"timeout": "timeouts", "rate_limit": "rate_limited"}
"""The counter of a failure kind, where it has another name."""


@dataclass
class Ruler:
    """Scores groups of candidates by a judge and a rubric.

    ``rubric``: "general", "custom", the user's own text, or a `Rubric`. ``timeout``: seconds for one answer
    of a concurrent judge, with its own retries, without the time in the endpoint's queue; an in-process judge
    cannot be interrupted. ``cache``: a JSONL file that keeps verdicts, None for memory only. ``grading``: the
    judge's whole system message instead of the default, with ``{rubric}`` replaced (short, for small models).

    ``counters``: groups, requests (attempts), retries, cache_hits (also for a group twice in one batch),
    collapsed (candidates not sent because another one is the same), escaped (candidates that needed
    escaping), scored_groups, clamped, missing_parts, further_verdicts (in one answer; the first counts),
    dropped_groups, cache_bad_lines, and the failures of single attempts: timeouts, rate_limited, connection,
    http, empty, too_long, bad_json, wrong_ids, bad_scores. Always
    ``groups = scored_groups + dropped_groups`` and ``requests = groups - cache_hits + retries``. A group
    without candidates counts nowhere.

    ``failure``: the reason of the last attempt without a usable verdict, in one line.

    Raises RulerError for an unknown rubric and a timeout that is not above 0.
    """

    judge: Judge
    rubric: str | Rubric = "custom"
    seed: int = 0
    timeout: float | None = None
    cache: str | Path | None = None
    grading: str | None = None
    counters: Counter[str] = field(default_factory=Counter, init=False)
    failure: str = field(default="", init=False)
    _rubric: Rubric = field(init=False, repr=False)
    _cache: VerdictCache = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._rubric = find_rubric(self.rubric)
        if self.timeout is not None and not self.timeout > 0:
            raise RulerError(f"ruler: timeout={self.timeout} is not above 0")
        self._cache = VerdictCache(self.cache, counters=self.counters)

    @property
    def concurrent(self) -> bool:
        """Whether the judge may be asked while the policy is being sampled."""
        return self.judge.concurrent

    def bind(self, engine: Engine) -> None:
        """Give the engine to an `EngineJudge`; others need none. Raises RulerError as its `bind` does."""
        if isinstance(self.judge, EngineJudge):
            self.judge.bind(engine)

    async def score(self, candidates: Candidates) -> list[dict[str, float]] | None:
        """For each candidate "ruler" in 0..1 and the rubric's sub-scores by name.

        None without a usable verdict: the group is dropped and counted. Identical candidates get one score.
        """
        return (await self.score_all([candidates]))[0]

    async def score_all(self, groups: Sequence[Candidates]) -> list[list[dict[str, float]] | None]:
        """`score` for many groups; a judge that is not concurrent gets them as one batch."""
        return await self._score([Question.of(group, self.grading) for group in groups])

    async def score_messages(
        self, groups: Sequence[Sequence[Sequence[Mapping[str, Any]]]], tools: str = ""
    ) -> list[list[dict[str, float]] | None]:
        """`score` for groups of plain message lists; ``tools``: a text that describes the tools on offer."""
        return await self._score([Question.of_messages(group, tools, self.grading) for group in groups])

    async def _score(self, questions: Sequence[Question]) -> list[list[dict[str, float]] | None]:
        keys = [f"{self.judge.name}/{question.cache_key(self._rubric)}" for question in questions]
        scores: dict[str, Scores] = {}
        unanswered: dict[str, Question] = {}
        for key, question in zip(keys, questions, strict=True):
            if not question.trajectories:
                continue
            self.counters["groups"] += 1
            self.counters["collapsed"] += len(question.trajectories) - len(question.distinct)
            self.counters["escaped"] += question.escaped
            cached = self._cache.get(key)
            if cached is not None:
                scores[key] = cached
            if cached is not None or key in unanswered:  # a batch may hold a group twice
                self.counters["cache_hits"] += 1
            else:
                unanswered[key] = question
        for attempt in range(ATTEMPTS):
            answered = await self._ask(unanswered, attempt)
            for key, group_scores in answered.items():
                self._cache.put(key, group_scores)
                del unanswered[key]
            scores |= answered
        return [
            self._scores_by_candidate(question, scores.get(key))
            for key, question in zip(keys, questions, strict=True)
        ]

    async def _ask(self, questions: Mapping[str, Question], attempt: int) -> dict[str, Scores]:
        """Ask each question once: the scores of those with a usable verdict, by key."""
        if not questions:
            return {}
        requests = [question.ask(self._rubric, self.seed, attempt) for question in questions.values()]
        self.counters["requests"] += len(requests)
        self.counters["retries"] += len(requests) if attempt else 0
        if self.judge.concurrent:
            answers = list(await asyncio.gather(*(self._reply_in_time(request) for request in requests)))
        else:
            answers = await self._reply(requests)
        scores: dict[str, Scores] = {}
        for (key, question), request, answer in zip(questions.items(), requests, answers, strict=True):
            verdict = self._read(request, answer)
            if verdict is not None:
                index = dict(zip(request.ids, request.shown, strict=True))
                scores[key] = {
                    question.candidate_digest(index[id]): score for id, score in verdict.scores.items()
                }
        return scores

    async def _reply_in_time(self, request: JudgeRequest) -> str | JudgeFailure:
        if isinstance(self.judge, EndpointJudge):  # time in its queue does not count
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
            self.failure = answer.message or answer.kind
            return None
        verdict = read_verdict(answer, request.ids, request.rubric.parts)
        if isinstance(verdict, Unusable):
            self.counters[verdict.reason] += 1
            self.failure = f"{verdict.reason}: {answer[:80]!r}"
            return None
        self.counters["clamped"] += verdict.clamped
        self.counters["missing_parts"] += verdict.missing_parts
        self.counters["further_verdicts"] += verdict.further
        return verdict

    def _scores_by_candidate(
        self, question: Question, scores: Scores | None
    ) -> list[dict[str, float]] | None:
        """The scores of all candidates, identical ones included; counts the group as scored or dropped."""
        if not question.trajectories:
            return []
        self.counters["dropped_groups" if scores is None else "scored_groups"] += 1
        if scores is None:
            return None
        ordered = [scores[question.candidate_digest(i)] for i in range(len(question.trajectories))]
        return [{"ruler": score.value, **score.parts} for score in ordered]


async def ruler_scores(
    message_lists: Sequence[Sequence[Mapping[str, Any]]],
    judge: Judge,
    rubric: str | Rubric = "general",
    *,
    tools: str = "",
    seed: int = 0,
) -> list[float] | None:
    """Scores in 0..1 for a group of message lists of one task, like ART's ``ruler_score_group``.

    For training loops of the user's own:

        for group, lists in zip(groups, message_lists):
            if (scores := await ruler_scores(lists, EndpointJudge(Endpoint("gpt-4.1-mini")))) is not None:
                group.rewards = scores

    None without a usable verdict after a retry: drop the group. `Ruler` has counters, cache and sub-scores.
    """
    (scores,) = await Ruler(judge, rubric, seed).score_messages([message_lists], tools)
    return None if scores is None else [parts["ruler"] for parts in scores]
