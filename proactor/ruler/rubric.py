"""Rubrics, the standards that a judge grades by: general, proactiveness ("custom"), or the user's own text.

Upstream RULER's default has four points [CODE, methods 2]; the general rubric says the same in our own words.
That ProActor used a proactiveness rubric with sub-scores is confirmed [NOTES, methods 1.6]; its text and its
choice of sub-scores are ours [INFERRED].
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from proactor.engine import ProactorError


class RulerError(ProactorError):
    """A rubric, judge or request that cannot work. Failures of a judge's answers are counted, not raised."""


@dataclass(frozen=True, slots=True)
class Rubric:
    """``text``: as the judge reads it. ``parts``: names of the sub-scores beside the score, all in 0..1."""

    name: str
    text: str
    parts: tuple[str, ...] = ()


GENERAL = Rubric(
    "general",
    """\
- A candidate that reaches the goal scores far above one that does not.
- Of two that reach it, the one that gets there with less (fewer steps, nothing superfluous) scores higher.
- Distances between scores say how far apart the candidates are: near equals get near equal scores.
- Progress counts: a candidate that falls short but came closer gets part of the credit.""",
)

CUSTOM = Rubric(
    "custom",
    """\
- Best is an action that is READY while it may fire: everything it needs has been said, consent included \
where the tool asks for it, and it is still of use.
- READY too early, for something the user is heading for, costs a little. READY for something the user does \
not want costs much.
- When nothing is called for, waiting with [] is right and any action is wrong. When something has to be \
done now, waiting is wrong.
- PENDING is right while something is still missing; its parameters may then be incomplete.
- Values come from the conversation. An invented value is worse than a missing one.
- What stands on the board as triggered must not be proposed again.
- Fewer and better: each action beyond those called for lowers the score.
Sub-scores: timing (is each action proposed when it should be, or rightly withheld), correctness (right \
tools, right values, nothing invented), restraint (nothing superfluous, nothing repeated). The score sums \
them up in your judgement.""",
    ("timing", "correctness", "restraint"),
)

RUBRICS = {rubric.name: rubric for rubric in (GENERAL, CUSTOM)}


def find_rubric(rubric: str | Rubric) -> Rubric:
    """A rubric by name, or one of the user's own text, without sub-scores (for those pass a `Rubric`).

    Raises RulerError for a single word that is no name: most likely a misspelt one.
    """
    if isinstance(rubric, Rubric):
        return rubric
    if rubric in RUBRICS:
        return RUBRICS[rubric]
    if len(rubric.split()) < 2:
        raise RulerError(f"rubric {rubric!r} is neither one of {', '.join(RUBRICS)} nor a text")
    return Rubric(f"own-{hashlib.blake2b(rubric.encode(), digest_size=4).hexdigest()}", rubric.strip())
