"""Rows of a report for counted events: unknown windows, masked proposals, unread outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from proactor.dialogue import Dialogue, windows
from proactor.evaluation.play import Evaluation
from proactor.report.numbers import number

CounterRow = tuple[str, str, str]
"""(name, value, sentence)."""

SUMS = {
    "null_masked": ("Masked proposals", "they belong to an unknown window: neither right nor wrong"),
    "early_masked": (
        "Masked repeats",
        "of actions that had fired early, which the logged dialogue does not know",
    ),
    "acted": ("Turns with a proposal", "decision points at which it proposed anything that counts"),
}
"""(name, sentence) of counts by their key in `metrics.FIELDS`."""
SHARES = {
    "unparsed_share": ("Unparsed outputs", "could not be read in full"),
    "truncated_share": ("Truncated outputs", "ended at the token limit"),
}
"""(name, sentence) of shares by their attribute of `Evaluation`."""


def counters(dialogues: Sequence[Dialogue], before: Evaluation, after: Evaluation) -> list[CounterRow]:
    """The rows for the dialogues, then for both evaluations side by side."""
    rows = _dialogue_rows(dialogues)
    for key, (name, sentence) in SUMS.items():
        old, new = (sum(c.sums[key] for c in e.contributions) for e in (before, after))
        rows.append((name, f"{old:.0f} → {new:.0f}", sentence))
    for attribute, (name, sentence) in SHARES.items():
        old, new = (getattr(e, attribute) for e in (before, after))
        rows.append((name, f"{old:.1%} → {new:.1%}", sentence))
    return rows


def _dialogue_rows(dialogues: Sequence[Dialogue]) -> list[CounterRow]:
    counts = windows.count(dialogues)
    references, unknown = counts["references"], counts["null"]
    mean_width = number(windows.mean_width(dialogues), 2)
    withdrawn = f"{counts.get('withdrawn', 0)} more were withdrawn by the user"
    points = f"{counts['turns']} turns, {counts['decision_turns']} decision points"
    single = _part(counts["width_0"], references - unknown)
    return [
        ("Dialogues", number(counts["dialogues"], 0), points),
        ("References", number(references, 0), withdrawn),
        ("Unknown windows", _part(unknown, references), _reasons(counts)),
        ("Windows of a single turn", single, f"mean width {mean_width} turns"),
    ]


def _part(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else str(part)


def _reasons(counts: Mapping[str, int]) -> str:
    """Why windows are unknown, with counts."""
    reasons = [
        f"{key.removeprefix('null_').replace('_', ' ')} {value}"
        for key, value in counts.items()
        if key.startswith("null_")
    ]
    return "not counted, neither right nor wrong" + (f": {', '.join(reasons)}" if reasons else "")
