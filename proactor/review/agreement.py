"""Agreement of two reviewers of the same dialogues: windows against windows, verdict against verdict."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rich.table import Table
from rich.text import Text

from proactor.annotation import WindowAgreement, compare_windows
from proactor.dialogue import Reference
from proactor.review.doubts import overlap
from proactor.review.windows_file import Entry, ReviewError, WindowsFile
from proactor.sources.reviewed import review_of, windows_in

MOST_NAMED = 10
"""Dialogues with the least agreement that are named."""
DECIDED = ("accepted", "rejected")


@dataclass(slots=True)
class Agreement:
    """Of two files. ``tools``: sums by tool; ``dialogues``: mean IoU by id, of those with windows on a side.

    ``verdicts``: windows that both decided on, and how many of them alike. ``only``: dialogues that one file
    alone has.
    """

    tools: dict[str, WindowAgreement] = field(default_factory=dict)
    dialogues: dict[str, float] = field(default_factory=dict)
    verdicts: tuple[int, int] = (0, 0)
    only: tuple[int, int] = (0, 0)


def compare_files(first: Path, second: Path) -> Agreement:
    """The agreement of two files of windows. A rejected window counts as none.

    Raises SourceError for a file that cannot be read, ReviewError for files without a common dialogue, or
    with other turns in one.
    """
    left, right = WindowsFile(first).entries(), WindowsFile(second).entries()
    common = [name for name in left if name in right]
    if not common:
        raise ReviewError(f"{first} and {second} have no dialogue in common")
    sums: dict[str, WindowAgreement] = defaultdict(WindowAgreement)
    found = Agreement(only=(len(left) - len(common), len(right) - len(common)))
    for name in common:
        a, b = left[name], right[name]
        if a.dialogue.turns != b.dialogue.turns:
            raise ReviewError(f"{second}: dialogue {name!r} has other turns than in {first}")
        windows, others = standing(a), standing(b)
        points = a.dialogue.decision_turns
        for tool in dict.fromkeys(r.name for r in (*windows, *others)):
            sums[tool] += compare_windows(_of(windows, tool), _of(others, tool), points)
        if windows or others:
            found.dialogues[name] = overlap(windows, others, points)
        found.verdicts = _add(found.verdicts, _verdicts(a, b))
    found.tools = dict(sorted(sums.items()))
    return found


def standing(entry: Entry) -> list[Reference]:
    """The windows of a dialogue that are not rejected."""
    statuses = _statuses(entry)
    return [r for r in entry.dialogue.references if statuses.get(r.id) != "rejected"]


def agreement_table(agreement: Agreement) -> Table:
    """Agreement by tool and over all, as a table for a terminal."""
    table = Table(title="agreement", title_justify="left", box=None, padding=(0, 2))
    table.add_column("tool")
    for name in ("windows", "ready windows (IoU)", "coverages (IoU)", "both the same"):
        table.add_column(name, justify="right")
    total = sum(agreement.tools.values(), start=WindowAgreement())
    for tool, sums in {**agreement.tools, "all": total}.items():
        means = sums.means()
        shares = (means[key] for key in ("ready_iou", "coverage_iou", "exact"))
        table.add_row(
            Text(tool), str(means["references"]), *("–" if s is None else f"{s:.3f}" for s in shares)
        )
    return table


def agreement_notes(agreement: Agreement) -> list[str]:
    """Lines below the table: verdicts, dialogues of one file alone, and those with the least agreement."""
    both, alike = agreement.verdicts
    lines = [f"verdicts: {alike} of {both} windows that both decided on are alike"] if both else []
    if any(agreement.only):
        lines.append(
            f"in one file alone: {agreement.only[0]} and {agreement.only[1]} dialogues, not compared"
        )
    worst = sorted((iou, name) for name, iou in agreement.dialogues.items() if iou < 1)
    lines += [f"{name}: {iou:.2f}" for iou, name in worst[:MOST_NAMED]]
    if len(worst) > MOST_NAMED:
        lines.append(f"  and {len(worst) - MOST_NAMED} more that differ")
    return lines


def _of(references: Iterable[Reference], tool: str) -> list[Reference]:
    return [r for r in references if r.name == tool]


def _statuses(entry: Entry) -> Mapping[str, str]:
    reviews = {w["id"]: review_of(w) for w in windows_in(entry.record, "references")}
    return {name: review.status for name, review in reviews.items() if review is not None}


def _verdicts(a: Entry, b: Entry) -> tuple[int, int]:
    """(windows of one id and tool that both decided on, those decided alike)."""
    names = {r.id: r.name for r in a.dialogue.references}
    left, right = _statuses(a), _statuses(b)
    both = [
        (left[r.id], right[r.id])
        for r in b.dialogue.references
        if names.get(r.id) == r.name and left.get(r.id) in DECIDED and right.get(r.id) in DECIDED
    ]
    return len(both), sum(one == other for one, other in both)


def _add(first: tuple[int, int], second: tuple[int, int]) -> tuple[int, int]:
    return first[0] + second[0], first[1] + second[1]
