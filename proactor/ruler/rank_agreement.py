"""How far a judge separates the candidates of a group, and whether it ranks them as another score does."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, pstdev

from proactor.engine import ProactorError


def spread(groups: Iterable[Sequence[float]]) -> float | None:
    """Mean population standard deviation of the scores in a group, over groups of two or more; None without.

    Near 0 a judge gives no gradient: what is left is noise, which group normalisation amplifies.
    """
    deviations = [pstdev(group) for group in groups if len(group) > 1]
    return fmean(deviations) if deviations else None


@dataclass(frozen=True, slots=True)
class RankAgreement:
    """Counts of the pairs of candidates within groups, by how two scores order them."""

    same: int = 0
    opposite: int = 0
    tied_first: int = 0
    tied_second: int = 0
    tied_both: int = 0

    @property
    def pairs(self) -> int:
        """All pairs."""
        return self.same + self.opposite + self.tied_first + self.tied_second + self.tied_both

    @property
    def rate(self) -> float | None:
        """``same / (same + opposite)``: of the pairs that both scores order, the share ordered alike.

        0.5 is chance; None where both scores order no pair.
        """
        ordered = self.same + self.opposite
        return self.same / ordered if ordered else None

    @property
    def tau(self) -> float | None:
        """Kendall's tau-b over all pairs within groups, in -1..1; None where one score ties every pair."""
        first = self.same + self.opposite + self.tied_second
        second = self.same + self.opposite + self.tied_first
        return (self.same - self.opposite) / math.sqrt(first * second) if first and second else None

    def __add__(self, other: RankAgreement) -> RankAgreement:
        return RankAgreement(
            self.same + other.same,
            self.opposite + other.opposite,
            self.tied_first + other.tied_first,
            self.tied_second + other.tied_second,
            self.tied_both + other.tied_both,
        )


def compare_rankings(
    first: Sequence[Sequence[float]], second: Sequence[Sequence[float]], tolerance: float = 1e-9
) -> RankAgreement:
    """Compare two scores of the same groups, pair by pair within each group.

    Differences up to ``tolerance`` are ties. Raises ProactorError where groups differ in size, ValueError
    where they differ in number.
    """
    total = RankAgreement()
    for a, b in zip(first, second, strict=True):
        if len(a) != len(b):
            raise ProactorError(f"agreement: a group of {len(a)} scores beside one of {len(b)}")
        for i, j in combinations(range(len(a)), 2):
            total += _compare_pair(_sign(a[i] - a[j], tolerance), _sign(b[i] - b[j], tolerance))
    return total


def _compare_pair(first: int, second: int) -> RankAgreement:
    if first == 0 and second == 0:
        return RankAgreement(tied_both=1)
    if first == 0:
        return RankAgreement(tied_first=1)
    if second == 0:
        return RankAgreement(tied_second=1)
    return RankAgreement(same=1) if first == second else RankAgreement(opposite=1)


def _sign(difference: float, tolerance: float) -> int:
    if abs(difference) <= tolerance:
        return 0
    return 1 if difference > 0 else -1
