"""A judge by rules, which grades decisions against the reference windows as the rubrics say.

Deterministic; for tests, and for runs without a judge model. It knows the references, so training with it
says nothing about training with a judge model. It answers in JSON like any judge, so that everything after
the judge is exercised. Every number here is ours [INFERRED].
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from statistics import mean

from proactor.dialogue import Reference, Status
from proactor.dialogue.candidates import Candidates
from proactor.dialogue.matching import ClassifiedAction, Timing, classify, similarity
from proactor.dialogue.parse import Parsed
from proactor.dialogue.windows import due_at, first_mention, open_at, ready_at
from proactor.ruler.judge import JudgeFailure
from proactor.ruler.question import JudgeRequest
from proactor.ruler.rubric import CUSTOM, GENERAL, RulerError

FIRED = {Timing.ON_TIME: 1.0, Timing.EARLY: 0.5, Timing.LATE: 0.3, Timing.FALSE: 0.0, Timing.REPEAT: 0.0}
"""The timing score of a READY action: half for early, nothing outside the coverage."""

WEIGHTS = {"timing": 0.4, "correctness": 0.4, "restraint": 0.2}
"""Weights of the sub-scores in the score."""


@dataclass
class RuleJudge:
    """Grades by `grade_general` or `grade_custom`; needs `JudgeRequest.candidates`."""

    name: str = field(default="rule", init=False)
    concurrent: bool = field(default=True, init=False)

    async def reply(self, requests: Sequence[JudgeRequest]) -> list[str | JudgeFailure]:
        """One verdict per request. Raises RulerError for other rubrics, and for plain message lists."""
        return [self._grade(request) for request in requests]

    def _grade(self, request: JudgeRequest) -> str:
        if request.candidates is None:
            raise RulerError("the rule judge grades decisions of a dialogue, not message lists")
        if request.rubric not in (GENERAL, CUSTOM):
            raise RulerError(
                f"the rule judge knows the rubrics general and custom, not {request.rubric.name}"
            )
        grade = grade_general if request.rubric == GENERAL else grade_custom
        scores: list[dict[str, str | float]] = []
        for id, index in zip(request.ids, request.shown, strict=True):
            parts = {name: round(value, 4) for name, value in grade(request.candidates, index).items()}
            scores.append({"id": id, "explanation": "", **parts})
        return json.dumps({"scores": scores})


def grade_general(candidates: Candidates, index: int) -> dict[str, float]:
    """{"score"} by the general rubric: the goal is to serve what is open at this turn.

    The mean over the open references of the similarity of the nearest action (half of it for a PENDING one),
    times the share of actions that serve one. With nothing open: 1 for waiting, 0 for acting.
    """
    kept, unread = _unmasked(candidates, index)
    wanted = _live(candidates, open_at(candidates.dialogue, candidates.turn))
    n = len(kept) + unread
    if not wanted:
        return {"score": float(n == 0)}
    if n == 0:
        return {"score": 0.0}
    reached = mean(
        max((similarity(j.action, r) * (1.0 if _fires(j) else 0.5) for j in kept), default=0.0)
        for r in wanted
    )
    return {"score": reached * sum(j.similarity > 0 for j in kept) / n}


def grade_custom(candidates: Candidates, index: int) -> dict[str, float]:
    """{"timing", "correctness", "restraint", "score"} by the proactiveness rubric.

    timing: the mean of `FIRED` over the actions. A PENDING action scores 1 before the ready window, 0.4
    inside it (0 at the last turn at which it may fire), 0 elsewhere. A ready reference without an action
    counts as one that scores 0.5, or 0 at its last turn, where that lowers the mean. Waiting scores 1 with
    nothing open, 0.9 while something is open but not ready.
    correctness: right values as a share of those that the action should have by now (all when READY, those it
    has when PENDING), minus the share of invented values, which neither the reference accepts nor anybody has
    said. For waiting: as timing.
    restraint: share of actions that are not false, repeated, unreadable or more than are open.
    score: the sum of the three by `WEIGHTS`.
    """
    dialogue, turn = candidates.dialogue, candidates.turn
    kept, unread = _unmasked(candidates, index)
    n = len(kept) + unread
    targets = [_target(j, candidates) for j in kept]
    served = {r.id for r in targets if r is not None}
    due = {r.id for r in due_at(dialogue, turn)}
    left = [r for r in _live(candidates, ready_at(dialogue, turn)) if r.id not in served]
    opened = _live(candidates, open_at(dialogue, turn))
    timings = [_timing(j, r, turn, due) for j, r in zip(kept, targets, strict=True)] + [0.0] * unread
    missed = [0.0 if r.id in due else 0.5 for r in left]
    if n:
        timing = min(mean(timings), mean([*timings, *missed]))
    elif missed:
        timing = mean(missed)
    else:
        timing = 0.9 if opened else 1.0
    right = [_correct(j, r, candidates) for j, r in zip(kept, targets, strict=True)] + [0.0] * unread
    good = sum(
        r is not None and j.timing not in (Timing.FALSE, Timing.REPEAT)
        for j, r in zip(kept, targets, strict=True)
    )
    parts = {
        "timing": timing,
        "correctness": mean(right) if right else timing,
        "restraint": min(good, max(len(opened), len(served))) / n if n else 1.0,
    }
    return parts | {"score": sum(WEIGHTS[name] * value for name, value in parts.items())}


def _unmasked(candidates: Candidates, index: int) -> tuple[list[ClassifiedAction], int]:
    """(the actions that are not masked, the number of entries that could not be read) of one answer."""
    parsed: Parsed = candidates.parsed[index]
    classified = classify(candidates.dialogue, candidates.turn, parsed.actions, fired=candidates.board.fired)
    return [j for j in classified if not j.masked], sum(parsed.unread.values())


def _live(candidates: Candidates, references: Sequence[Reference]) -> list[Reference]:
    """Those of known window that are not on the board."""
    return [r for r in references if r.ready is not None and r.id not in candidates.board.fired]


def _fires(classified: ClassifiedAction) -> bool:
    return classified.action.status is Status.READY


def _target(classified: ClassifiedAction, candidates: Candidates) -> Reference | None:
    """The reference that an action is for.

    A PENDING action may lack most of its values, so its name is enough; of several references of that name,
    the one that accepts most of its values.
    """
    if classified.reference is not None:
        return None if classified.reference.id in candidates.board.fired else classified.reference
    if _fires(classified):
        return None
    dialogue, turn = candidates.dialogue, candidates.turn
    begun = [r for r in dialogue.withdrawn if r.coverage and r.coverage[0] <= turn <= r.coverage[1]]
    named = [
        r for r in (*_live(candidates, open_at(dialogue, turn)), *begun) if r.name == classified.action.name
    ]
    values = classified.action.params.items()
    return max(named, key=lambda r: sum(r.accepts(name, value) for name, value in values), default=None)


def _timing(
    classified: ClassifiedAction, reference: Reference | None, turn: int, due: Collection[str]
) -> float:
    """The timing score of one action (see `grade_custom`)."""
    if classified.timing is not None:
        return FIRED.get(classified.timing, 0.0)
    if reference is None:
        return 0.0
    if reference.ready is None or turn < reference.ready[0]:
        return 1.0
    return 0.4 if turn <= reference.ready[1] and reference.id not in due else 0.0


def _correct(classified: ClassifiedAction, reference: Reference | None, candidates: Candidates) -> float:
    """The correctness score of one action (see `grade_custom`)."""
    values = classified.action.params
    if reference is None:
        return 0.0
    wrong = [value for name, value in values.items() if not reference.accepts(name, value)]
    past = candidates.dialogue.turns[: candidates.turn]
    invented = sum(first_mention(past, (value,)) is None for value in wrong)
    needed = values.keys() | reference.params.keys() if _fires(classified) else values.keys()
    return max(0.0, (len(values) - len(wrong) - invented) / len(needed)) if needed else 1.0
