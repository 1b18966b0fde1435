"""What came of an annotation: kept and dropped, by reason, gates, agreement with known windows, and what it
cost.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from proactor.annotation.oracle import Oracle
from proactor.annotation.record import AnnotationOptions, Record, Sums
from proactor.annotation.window_agreement import WindowAgreement
from proactor.dialogue import Dialogue, windows

MEANING = {
    "not_json": "answers that are no JSON",
    "truncated": "lists that were cut off",
    "not_a_list": "JSON, but no list",
    "not_an_object": "entries that are no object",
    "missing_field": "name or status missing",
    "bad_type": "a value of the wrong type",
    "unknown_tool": "tools that are not on offer",
    "unknown_parameter": "parameters that the tool does not have",
    "bad_status": "no such status",
    "outside_dialogue": "turns that the dialogue does not have",
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


def report_json(
    records: Sequence[Record],
    kept: Sequence[Dialogue],
    oracle: Oracle,
    options: AnnotationOptions,
    unanswered: Mapping[str, int],
    read: Mapping[str, int],
) -> dict[str, Any]:
    """The report; everything in it but ``cost`` (this process's own) is the same however often the work was
    resumed. ``source``: what the reader dropped, adjusted or left out before anything was asked; of its
    counters those that say nothing of the old windows.
    """
    counters: Counter[str] = Counter()
    for record in records:
        counters.update(record.counters)
    failed = Counter(record.failed for record in records if record.failed)
    own = _sum([r.own for r in records])
    agreed = (
        None if own is None else own["ready_iou"] if own["ready_iou"] is not None else own["coverage_iou"]
    )
    logged = counters["logged/triggers"]
    return {
        "oracle": oracle.identity,
        "options": options.model_dump(),
        "dialogues": {
            "read": len(records) + sum(unanswered.values()),
            "kept": len(kept),
            "failed": dict(failed),
            "unanswered": dict(unanswered),
        },
        "source": {name: n for name, n in sorted(read.items()) if n and not windows.is_counter(name)},
        "windows": windows.count(kept),
        "questions": _part(counters, "questions"),
        "entries": _part(counters, "entries"),
        "drops": _part(counters, "drop"),
        "repairs": _part(counters, "repair"),
        "merge": _part(counters, "merge"),
        "gates": {
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
                "iou": agreed,
                "passed": None if agreed is None else agreed >= options.self_agreement,
                "second": own,
            },
            "G4": {"on": options.causality, "failed_references": counters["gate/G4"]},
        },
        "known": _sum([r.known for r in records]),
        "cost": dict(oracle.cost()),
    }


def _part(counters: Counter[str], kind: str) -> dict[str, int]:
    return {
        name.removeprefix(f"{kind}/"): count
        for name, count in sorted(counters.items())
        if name.startswith(f"{kind}/") and count
    }


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _sum(parts: Sequence[Sums | None]) -> dict[str, float | int | None] | None:
    """Mean agreement over the dialogues that have one, None when none has."""
    found = [part.agreement() for part in parts if part is not None]
    return sum(found, start=WindowAgreement()).means() if found else None


def report_table(found: Mapping[str, Any]) -> Table:
    """The report for a terminal."""
    rows = Table(title="annotation", title_justify="left", box=None, padding=(0, 2))
    rows.add_column("what")
    rows.add_column("count", justify="right")
    rows.add_column("meaning", style="dim")
    dialogues = found["dialogues"]
    rows.add_row("dialogues kept", f"{dialogues['kept']} of {dialogues['read']}")
    for kind in ("failed", "unanswered"):
        for reason, count in dialogues[kind].items():
            rows.add_row(
                f"  {kind}: {reason}",
                str(count),
                "the same command tries again" if kind == "unanswered" else "",
            )
    for reason, count in found["source"].items():
        rows.add_row(f"  reader: {reason}", str(count))
    rows.add_row(
        "references", str(found["windows"]["references"]), f"{found['windows']['null']} without a window"
    )
    rows.add_row(
        "questions",
        str(found["questions"].get("asked", 0)),
        f"{found['questions'].get('asked_again', 0)} asked again",
    )
    rows.add_row("entries", str(found["entries"].get("all", 0)))
    for kind in ("drops", "merge"):
        for reason, count in found[kind].items():
            rows.add_row(f"  {reason}", str(count), MEANING.get(reason, ""))
    gates = found["gates"]
    rows.add_row(
        "G1 validity",
        _number(gates["G1"]["validity"]),
        f"{gates['G1']['failed']} dialogues below {gates['G1']['least']}",
    )
    if gates["G2"]["triggers"]:
        rows.add_row(
            "G2 logged triggers",
            _number(gates["G2"]["recall"]),
            f"{gates['G2']['failed']} dialogues below {gates['G2']['least']}",
        )
    if gates["G3"]["iou"] is not None:
        verdict = "" if gates["G3"]["passed"] else f"below {gates['G3']['least']}: change the oracle"
        rows.add_row("G3 self-agreement", _number(gates["G3"]["iou"]), verdict)
    rows.add_row(
        "G4 causality",
        str(gates["G4"]["failed_references"]),
        "references dropped" if gates["G4"]["on"] else "off",
    )
    if found["known"]:
        for name in ("ready_iou", "coverage_iou", "exact"):
            rows.add_row(f"known windows: {name}", _number(found["known"][name]))
    for name, count in found["cost"].items():
        rows.add_row(f"cost: {name}", f"{count:,}")
    return rows


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"
