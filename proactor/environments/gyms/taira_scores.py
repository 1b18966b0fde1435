"""TAIRA's scores of recommended lists (CODE, github.com/Alcein/TAIRA), with the reciprocal rank put right.

A judge gives each of a list's items 0, 1 or 2, and says of each list whether it is one that was asked for; an
invalid list scores 0. With ``m = max(lists wanted, lists given)``:

    hit  = sum of scores / (10 m)                  up to 2: upstream divides by items, not by their best score
    NDCG = sum over lists of DCG@10 / ideal DCG / m        DCG = sum of score / log2(rank + 1)
    MRR  = sum over lists of 1 / rank of the first item that scores / m

The ideal order is that of the list's own items: NDCG sees the order, hit what was found. Upstream's MRR adds
rank / rank, which is 1 for any hit; here it is 1 / rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

LENGTH = 10
"""Items of a list; those beyond are not looked at."""
OPEN = -1
"""Lists wanted, where a request leaves their number open: two at least."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The scores of an answer; ``success``: upstream's, far from strict: a hit, more than half of the lists
    valid, and two lists where their number was left open.
    """

    hit: float
    ndcg: float
    mrr: float
    success: bool


def score_lists(lists: Sequence[Sequence[int]], valid: Sequence[bool], wanted: int) -> Scores:
    """The scores of the items of each list, in order. ``wanted``: lists, or `OPEN`.

    Raises ValueError where ``valid`` is not one a list, or ``wanted`` neither positive nor `OPEN`.
    """
    if wanted != OPEN and wanted < 1:
        raise ValueError(f"{wanted} lists wanted")
    judged = [list(one[:LENGTH]) if ok else [] for one, ok in zip(lists, valid, strict=True)]
    count = max(2 if wanted == OPEN else wanted, len(lists))
    hit = sum(map(sum, judged)) / (LENGTH * count)
    enough = len(lists) >= 2 or wanted != OPEN
    return Scores(
        hit=hit,
        ndcg=sum(map(ndcg, judged)) / count,
        mrr=sum(map(reciprocal_rank, judged)) / count,
        success=hit > 0 and enough and 2 * sum(valid) > len(lists),
    )


def ndcg(scores: Sequence[int]) -> float:
    """NDCG of a list against the best order of its own items; 0 where none scores."""
    best = _dcg(sorted(scores, reverse=True))
    return _dcg(scores) / best if best else 0.0


def _dcg(scores: Sequence[int]) -> float:
    return sum(score / math.log2(rank + 1) for rank, score in enumerate(scores, start=1))


def reciprocal_rank(scores: Sequence[int]) -> float:
    """1 / rank of the first item that scores; 0 where none does."""
    return next((1 / rank for rank, score in enumerate(scores, start=1) if score > 0), 0.0)
