"""How well two sets of windows over one dialogue agree: intersection over union of their decision turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proactor.dialogue import Action, Interval, Reference, Status
from proactor.dialogue.matching import similarity


@dataclass(frozen=True, slots=True)
class WindowAgreement:
    """Sums over references of both sides, matched one to one; one without a partner counts with IoU 0.

    ``ready``/``coverage``: summed IoU of the `judged` ready windows and of the `references` coverages.
    ``exact``: pairs whose coverage and ready window are both equal.
    """

    references: int = 0
    judged: int = 0
    ready: float = 0.0
    coverage: float = 0.0
    exact: int = 0

    def __add__(self, other: WindowAgreement) -> WindowAgreement:
        return WindowAgreement(
            self.references + other.references,
            self.judged + other.judged,
            self.ready + other.ready,
            self.coverage + other.coverage,
            self.exact + other.exact,
        )

    def means(self) -> dict[str, float | int | None]:
        """references, mean IoU of ready windows and of coverage (None for none), share of exact ones."""
        return {
            "references": self.references,
            "ready_iou": self.ready / self.judged if self.judged else None,
            "coverage_iou": self.coverage / self.references if self.references else None,
            "exact": self.exact / self.references if self.references else None,
        }


def iou(first: Interval | None, second: Interval | None, points: Sequence[int]) -> float:
    """Decision turns in both over decision turns in either; 1 when neither has any."""
    a, b = ({p for p in points if window and window[0] <= p <= window[1]} for window in (first, second))
    return len(a & b) / len(a | b) if a | b else 1.0


def compare_windows(
    found: Iterable[Reference], known: Iterable[Reference], points: Sequence[int]
) -> WindowAgreement:
    """``found`` against ``known``. A ready window is judged unless the known side says that it does not know
    it; an action that only ``found`` has counts as wrong in both.
    """
    left, right = list(found), list(known)
    ranked = sorted(
        (
            (_likeness(a, b, points), -i, -j)
            for i, a in enumerate(left)
            for j, b in enumerate(right)
            if a.name == b.name
        ),
        reverse=True,
    )
    partner: dict[int, int] = {}
    for likeness, i, j in ranked:
        if likeness > (0.0, 0.0) and -i not in partner and -j not in partner.values():
            partner[-i] = -j
    total = WindowAgreement()
    for i, a in enumerate(left):
        if i in partner:
            b = right[partner[i]]
            same = (a.coverage, a.ready) == (b.coverage, b.ready)
            judged = b.ready is not None
            total += WindowAgreement(
                1,
                judged,
                iou(a.ready, b.ready, points) if judged else 0.0,
                iou(a.coverage, b.coverage, points),
                same,
            )
        else:
            total += WindowAgreement(1, a.ready is not None)
    for j, b in enumerate(right):
        if j not in partner.values():
            total += WindowAgreement(1, b.ready is not None)
    return total


def _likeness(a: Reference, b: Reference, points: Sequence[int]) -> tuple[float, float]:
    """Parameters in common first, then time in common."""
    return similarity(Action(name=a.name, params=a.params, status=Status.PENDING), b), iou(
        a.coverage, b.coverage, points
    )
