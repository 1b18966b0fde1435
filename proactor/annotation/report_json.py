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
from proactor.dialogue.catalog import Catalog
from proactor.sources.corpus import Corpus

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
    "repeated": "logged actions in the window of one before",
    "withdrawn_only": "withdrawn, never open",
}


READER = {
    "actions_before_user": "actions before the user spoke, left out",
    "broken_characters": "texts with half of a character, mended",
    "effects_proposed": "tools whose effect is a proposal",
    "empty_turns": "turns without text, left out",
    "files_ignored": "files of a later kind, not read",
    "ignored_keys": "keys or columns not read",
    "no_agent_turns": "dialogues without the agent",
    "no_user_turns": "dialogues without the user",
    "parts_without_text": "images and other parts, left out",
    "repeated_chats": "chats without an id that came before, left out",
    "system_messages": "instructions, left out",
    "tool_messages": "results of tools, left out",
    "triggers_moved": "actions moved to the user turn before",
    "unknown_parameters": "values of parameters that the tool does not have",
    "unknown_tools": "actions and offers of tools not in the catalog, left out",
    "unreadable_calls": "calls whose arguments are no JSON, left out",
    "values_as_text": "numbers and the like, taken as text",
    "values_empty": "values without text, not given",
    "windows_accepted": "windows that a reviewer accepted",
    "windows_edited": "windows that a reviewer changed and did not decide on",
    "windows_rejected": "windows that a reviewer rejected: masked",
    "windows_removed": "windows that a reviewer took out",
}
"""Words for the counters of `sources.jsonl`."""
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
    reader: Corpus | None = None,
    left_out: Sequence[LeftOut] = (),
) -> dict[str, Any]:
    """The report of an annotation.

    Everything but ``cost``, which is this process's own, is the same however often the work was resumed.
    ``reader``: the corpus; "source" has those of its counters that are not about the old windows.
    ``unanswered``: dialogues that were left out, by the kind of failure. ``left_out``: dialogues without a
    record; those that the reader dropped and those that failed a gate join them. "places": the lines of the
    dialogues named in the report that have no id of their own.
    """
    reader = reader or Corpus(Catalog(tools=()), ())
    counters: Counter[str] = Counter()
    for record in records:
        counters.update(record.counters)
    failed = Counter(record.failed for record in records if record.failed)
    own = _mean_agreement([r.own for r in records])
    names = {d.id for d in kept}
    dropped = [LeftOut(id=r.id, reason=r.failed, detail=r.detail) for r in records if r.id not in names]
    unread = [LeftOut(id=name, reason="reader", detail=why) for name, why in reader.dropped.items()]
    report: dict[str, Any] = {
        "oracle": oracle.identity,
        "options": options.model_dump(),
        "dialogues": {
            "read": len(records) + sum(unanswered.values()),
            "kept": len(kept),
            "failed": dict(failed),
            "unanswered": dict(unanswered),
        },
        "source": {
            name: n for name, n in sorted(reader.counters.items()) if n and not windows.is_counter(name)
        },
        "left_out": [dialogue.model_dump() for dialogue in (*unread, *left_out, *dropped)],
        "losses": [{"dialogue": name, "lost": lost} for name, lost in reader.losses.items()],
        "windows": windows.count(kept),
        "masked": [w.model_dump(mode="json") for r in records if r.id in names for w in r.masked],
        "inferred": [w.model_dump(mode="json") for r in records if r.id in names for w in r.inferred],
        "repeated": [{"dialogue": r.id, "actions": r.repeated} for r in records if r.repeated],
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
    kinds = ("left_out", "losses", "masked", "inferred", "repeated")
    named = [one.get("dialogue") or one["id"] for kind in kinds for one in report[kind]]
    return {**report, "places": {name: reader.places[name] for name in named if name in reader.places}}


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
        rows.add_row(f"  reader: {reason}", str(count), READER.get(reason, ""))
    rows.add_row(
        "references", str(report["windows"]["references"]), f"{report['windows']['null']} without a window"
    )
    if report["values_inferred"]:
        count = f"{len(report['inferred'])} windows rest on them"
        rows.add_row("values inferred", str(report["values_inferred"]), count)
    if repeated := sum(len(d["actions"]) for d in report["repeated"]):
        rows.add_row("repeated", str(repeated), MEANING["repeated"])
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
    """A line for each dialogue that was left out, what was left out of others, each masked window, each that
    rests on inferred values and each that several logged actions share, at most `MOST_NAMED` of either. A
    dialogue without an id of its own is named by its line too.
    """
    left_out = [
        f"left out: {d['id']}: {d['reason']}{', ' if d['detail'] else ''}{d['detail']}"
        for d in report["left_out"]
    ]
    losses = [f"not read: {d['dialogue']} {lost}" for d in report["losses"] for lost in d["lost"]]
    masked = [f"masked: {MaskedWindow.model_validate(w)}" for w in report["masked"]]
    inferred = [f"inferred: {InferredWindow.model_validate(w)}" for w in report["inferred"]]
    repeated = [
        f"repeated: {d['dialogue']} {action}: in the window of the call before it"
        for d in report["repeated"]
        for action in d["actions"]
    ]
    lines = []
    for listed in (left_out, losses, masked, inferred, repeated):
        lines += [_with_place(line, report["places"]) for line in listed[:MOST_NAMED]]
        if len(listed) > MOST_NAMED:
            lines.append(f"  and {len(listed) - MOST_NAMED} more in report.json")
    return lines


def _with_place(line: str, places: Mapping[str, str]) -> str:
    """A note ("kind: id…") with the file and line of a dialogue whose id is a hash."""
    kind, name = line.split(": ", 1)
    identity = name.split(maxsplit=1)[0].removesuffix(":")
    place = f" ({places[identity]})" if identity in places else ""
    return f"{kind}: {identity}{place}{name.removeprefix(identity)}"


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
