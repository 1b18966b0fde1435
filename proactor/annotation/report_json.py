"""report.json: what an annotation kept and dropped, its gates, its agreement and its cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict
from rich.table import Table

from proactor.annotation.blocked import MaskedWindow
from proactor.annotation.oracle import Oracle
from proactor.annotation.record import AgreementSums, AnnotationOptions, DialogueRecord, InferredWindow
from proactor.annotation.window_agreement import WindowAgreement
from proactor.dialogue import Dialogue, windows

MEANING = {
    "not_json": "answers that are no JSON",
    "truncated": "lists that were cut off",
    "more_values": "lists or objects beside the answer",
    "repeated_key": "a key given two values",
    "not_an_object": "entries that are no object",
    "missing_field": "name or status missing",
    "bad_type": "a value of the wrong type",
    "unknown_tool": "tools that are not on offer",
    "unknown_parameter": "parameters that the tool does not have",
    "bad_status": "no such status",
    "outside_dialogue": "turns that the dialogue does not have",
    "too_many": "more marks than one answer may have",
    "hindsight_value": "values first said later (G4)",
    "not_placed": "logged actions that no turn of the user's can be given",
    "duplicate": "said twice for one turn",
    "not_monotone": "actions whose status goes back",
    "gap_filled": "single turns filled in",
    "reopened": "listed again after a longer gap",
    "ready_before_assent": "READY before the assent, made PENDING",
    "assent_unknown": "READY without a turn of assent",
    "value_after_ready": "values that came after the window opened",
    "never_ready": "never READY: masked",
    "withdrawn_only": "withdrawn, never open",
}


AGREEMENT = {
    "ready_iou": "overlap of ready windows (IoU)",
    "coverage_iou": "overlap of coverages (IoU)",
    "exact": "both the same",
}
"""Words for `WindowAgreement.means`."""
MOST_NAMED = 10
"""Dialogues and windows that `notes` names; report.json has all."""


class LeftOut(BaseModel):
    """A dialogue that is not in the windows, and why.

    ``reason``: "reader", the gate that it failed, or the kind of its failure.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    reason: str
    detail: str = ""


def report_json(
    records: Sequence[DialogueRecord],
    kept: Sequence[Dialogue],
    oracle: Oracle,
    options: AnnotationOptions,
    unanswered: Mapping[str, int],
    reader_counters: Mapping[str, int],
    left_out: Sequence[LeftOut] = (),
) -> dict[str, Any]:
    """The report of an annotation.

    Everything but ``cost``, which is this process's own, is the same however often the work was resumed.
    ``reader_counters``: the corpus reader's counters; "source" has those that are not about the old windows.
    ``unanswered``: dialogues that were left out, by the kind of failure. ``left_out``: dialogues without a
    record; those that failed a gate join them.
    """
    counters: Counter[str] = Counter()
    for record in records:
        counters.update(record.counters)
    failed = Counter(record.failed for record in records if record.failed)
    own = _mean_agreement([r.own for r in records])
    names = {d.id for d in kept}
    dropped = [LeftOut(id=r.id, reason=r.failed, detail=r.detail) for r in records if r.id not in names]
    return {
        "oracle": oracle.identity,
        "options": options.model_dump(),
        "dialogues": {
            "read": len(records) + sum(unanswered.values()),
            "kept": len(kept),
            "failed": dict(failed),
            "unanswered": dict(unanswered),
        },
        "source": {
            name: n for name, n in sorted(reader_counters.items()) if n and not windows.is_counter(name)
        },
        "left_out": [dialogue.model_dump() for dialogue in (*left_out, *dropped)],
        "windows": windows.count(kept),
        "masked": [w.model_dump(mode="json") for r in records if r.id in names for w in r.masked],
        "inferred": [w.model_dump(mode="json") for r in records if r.id in names for w in r.inferred],
        "values_inferred": counters["inferred/values_inferred"],
        "questions": _part(counters, "questions"),
        "entries": _part(counters, "entries"),
        "drops": _part(counters, "drop"),
        "repairs": _part(counters, "repair"),
        "merge": _part(counters, "merge"),
        "gates": _gates(counters, failed, own, options),
        "known": _mean_agreement([r.known for r in records]),
        "cost": dict(oracle.cost()),
    }


def _gates(
    counters: Counter[str],
    failed: Counter[str],
    own: dict[str, float | int | None] | None,
    options: AnnotationOptions,
) -> dict[str, Any]:
    """What each gate measured, and how many failed it; ``own``: agreement with the second reading."""
    logged = counters["logged/triggers"]
    iou = None
    if own is not None:
        iou = own["ready_iou"] if own["ready_iou"] is not None else own["coverage_iou"]
    return {
        "G1": {
            "least": options.validity,
            "validity": _share(counters["entries/valid"], counters["entries/all"]),
            "failed": failed["G1"],
        },
        "G2": {
            "least": options.trigger_recall,
            "recall": _share(counters["logged/covered"], logged),
            "triggers": logged,
            "failed": failed["G2"],
        },
        "G3": {
            "least": options.self_agreement,
            "iou": iou,
            "passed": None if iou is None else iou >= options.self_agreement,
            "second": own,
        },
        "G4": {"on": options.causality, "failed_references": counters["gate/G4"]},
    }


def _part(counters: Counter[str], kind: str) -> dict[str, int]:
    """The counters of one kind, by name."""
    return {
        name.removeprefix(f"{kind}/"): count
        for name, count in sorted(counters.items())
        if name.startswith(f"{kind}/") and count
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _mean_agreement(sums: Sequence[AgreementSums | None]) -> dict[str, float | int | None] | None:
    """The mean agreement over the dialogues that have one, None where none has."""
    agreements = [part.agreement() for part in sums if part is not None]
    return sum(agreements, start=WindowAgreement()).means() if agreements else None


def report_table(report: Mapping[str, Any]) -> Table:
    """The report as a table for a terminal."""
    rows = Table(title="annotation", title_justify="left", box=None, padding=(0, 2))
    rows.add_column("what")
    rows.add_column("count", justify="right")
    rows.add_column("meaning", style="dim")
    dialogues = report["dialogues"]
    rows.add_row("dialogues kept", f"{dialogues['kept']} of {dialogues['read']}")
    for kind in ("failed", "unanswered"):
        for reason, count in dialogues[kind].items():
            rows.add_row(
                f"  {kind}: {reason}",
                str(count),
                "the same command tries again" if kind == "unanswered" else "",
            )
    for reason, count in report["source"].items():
        rows.add_row(f"  reader: {reason}", str(count))
    rows.add_row(
        "references", str(report["windows"]["references"]), f"{report['windows']['null']} without a window"
    )
    if report["values_inferred"]:
        count = f"{len(report['inferred'])} windows rest on them"
        rows.add_row("values inferred", str(report["values_inferred"]), count)
    rows.add_row(
        "questions",
        str(report["questions"].get("asked", 0)),
        f"{report['questions'].get('asked_again', 0)} asked again",
    )
    rows.add_row("entries", str(report["entries"].get("all", 0)))
    for kind in ("drops", "merge"):
        for reason, count in report[kind].items():
            rows.add_row(f"  {reason}", str(count), MEANING.get(reason, ""))
    for row in _gate_rows(report["gates"]):
        rows.add_row(*row)
    if report["known"]:
        for key, name in AGREEMENT.items():
            rows.add_row(f"known windows: {name}", _format_share(report["known"][key]))
    for name, count in report["cost"].items():
        rows.add_row(f"cost: {name}", f"{count:,}")
    return rows


def notes(report: Mapping[str, Any]) -> list[str]:
    """A line for each dialogue that was left out, each masked window and each that rests on inferred values,
    at most `MOST_NAMED` of either.
    """
    left_out = [
        f"left out: {d['id']}: {d['reason']}{', ' if d['detail'] else ''}{d['detail']}"
        for d in report["left_out"]
    ]
    masked = [f"masked: {MaskedWindow.model_validate(w)}" for w in report["masked"]]
    inferred = [f"inferred: {InferredWindow.model_validate(w)}" for w in report["inferred"]]
    lines = []
    for listed in (left_out, masked, inferred):
        lines += listed[:MOST_NAMED]
        if len(listed) > MOST_NAMED:
            lines.append(f"  and {len(listed) - MOST_NAMED} more in report.json")
    return lines


def _gate_rows(gates: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, meaning) of each gate that was applied."""
    g1, g2, g3, g4 = (gates[name] for name in ("G1", "G2", "G3", "G4"))
    rows = [
        ("G1 validity", _format_share(g1["validity"]), f"{g1['failed']} dialogues below {g1['least']}"),
    ]
    if g2["triggers"]:
        below = f"{g2['failed']} dialogues below {g2['least']}"
        rows.append(("G2 logged triggers", _format_share(g2["recall"]), below))
    if g3["iou"] is not None:
        verdict = "" if g3["passed"] else f"below {g3['least']}: change the oracle"
        rows.append(("G3 self-agreement", _format_share(g3["iou"]), verdict))
    meaning = "references dropped" if g4["on"] else "off"
    return [*rows, ("G4 causality", str(g4["failed_references"]), meaning)]


def _format_share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
