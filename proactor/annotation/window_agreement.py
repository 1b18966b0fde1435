"""Agreement of two sets of windows over one dialogue: intersection over union (IoU) of decision turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from proactor.dialogue import Action, Interval, Reference, Status
from proactor.dialogue.matching import similarity


@dataclass(frozen=True, slots=True)
class WindowAgreement:
    """Sums over the references of both sides, matched one to one; a reference without a partner has IoU 0.

    ``ready``: summed IoU of the ``judged`` ready windows. ``coverage``: summed IoU of the coverages of all
    ``references``. ``exact``: number of pairs whose coverage and ready window are both equal.
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
        """{"references", "ready_iou", "coverage_iou", "exact"}: the number and means; None without any."""
        return {
            "references": self.references,
            "ready_iou": self.ready / self.judged if self.judged else None,
            "coverage_iou": self.coverage / self.references if self.references else None,
            "exact": self.exact / self.references if self.references else None,
        }


def iou(first: Interval | None, second: Interval | None, points: Sequence[int]) -> float:
    """Decision turns (``points``) in both windows over those in either; 1 where neither has any."""
    a, b = _points_in(first, points), _points_in(second, points)
    return len(a & b) / len(a | b) if a | b else 1.0


def _points_in(window: Interval | None, points: Sequence[int]) -> set[int]:
    return {p for p in points if window and window[0] <= p <= window[1]}


def compare_windows(
    annotated: Iterable[Reference], known: Iterable[Reference], points: Sequence[int]
) -> WindowAgreement:
    """Compare ``annotated`` references with ``known`` ones over the decision turns ``points``.

    A ready window is judged unless the known reference has none. An unpaired reference counts as wrong.
    """
    left, right = list(annotated), list(known)
    partner = _match_references(left, right, points)
    total = WindowAgreement()
    for i, a in enumerate(left):
        if i in partner:
            b = right[partner[i]]
            judged = b.ready is not None
            total += WindowAgreement(
                references=1,
                judged=judged,
                ready=iou(a.ready, b.ready, points) if judged else 0.0,
                coverage=iou(a.coverage, b.coverage, points),
                exact=(a.coverage, a.ready) == (b.coverage, b.ready),
            )
        else:
            total += WindowAgreement(references=1, judged=a.ready is not None)
    for j, b in enumerate(right):
        if j not in partner.values():
            total += WindowAgreement(references=1, judged=b.ready is not None)
    return total


def _match_references(
    left: Sequence[Reference], right: Sequence[Reference], points: Sequence[int]
) -> dict[int, int]:
    """Pairs of one name, as indices in ``left`` and ``right``: the most alike first, then the first ones."""
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
    return partner


def _likeness(a: Reference, b: Reference, points: Sequence[int]) -> tuple[float, float]:
    """(similarity of the parameters, IoU of the coverages)."""
    action = Action(name=a.name, params=a.params, status=Status.PENDING)
    return similarity(action, b), iou(a.coverage, b.coverage, points)
