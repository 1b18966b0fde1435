"""The report of a run: one HTML file that needs no network and no script, for a screen, a phone or paper.

It says what changed, by how much and how surely, what got worse, what the trivial policies reach, and shows in dialogues where
the agent fired before and after training. All text from data and models is escaped; a content policy forbids scripts.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from proactor import charts, curves, windows
from proactor.comparison import rival, table
from proactor.dialogue import Dialogue
from proactor.evaluate import Evaluation
from proactor.evaluations import load_evaluations, write_whole
from proactor.metrics import FIELDS, Contribution
from proactor.timeline import MASKED, MISSED, Played, Timeline, play, timeline

HEADLINES = ("reward", "first_fire_f1", "first_fire_precision", "first_fire_recall")
OUTCOMES = ("on_time", "early", "late", MISSED)
SHOWN = 3
"""Dialogues drawn in each group of timelines."""


@dataclass(frozen=True, slots=True)
class Group:
    """Timelines under one heading."""

    title: str
    help: str
    items: list[tuple[Timeline, float, float]]


def build_report(
    title: str,
    dialogues: Sequence[Dialogue],
    before: Evaluation,
    after: Evaluation,
    trivial: Mapping[str, Evaluation],
    history: Sequence[Mapping[str, Any]],
    notes: Mapping[str, Any],
    *,
    shown: int = SHOWN,
) -> str:
    """The report as HTML text.

    `history`: rows of metrics.jsonl. `notes`: what else a reader should know (model, seconds, seed, …), shown as given.
    `shown`: dialogues drawn in each group. ValueError when there are no dialogues or `before` and `after` hold different ones.
    """
    lines = table(before, after, trivial)
    flat = {line.metric.key: line for rows in lines.values() for line in rows}
    systems = {"before": before, "after": after, **trivial}
    played = {name: _played(dialogues, evaluation) for name, evaluation in systems.items()}
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=title,
            headlines=[flat[key] for key in HEADLINES],
            sections=lines,
            trivial=list(trivial),
            worse=[line for line in flat.values() if line.verdict == "worse"],
            leaning=[line for line in flat.values() if line.verdict == "leaning_worse"],
            rivals=[rival(key, flat[key], after, trivial) for key in HEADLINES[:2] if trivial],
            anatomy=[_anatomy(name, dialogues, played[name]) for name in systems],
            offsets=charts.offsets(_offsets(dialogues, played["before"]), _offsets(dialogues, played["after"])),
            curves=curves.sections(history),
            groups=_groups(dialogues, before, after, shown),
            counters=_counters(dialogues, before, after),
            shares={name: (e.unparsed_share, e.truncated_share) for name, e in (("before", before), ("after", after))},
            size={"dialogues": len(dialogues), "decisions": sum(len(d.decision_turns) for d in dialogues)},
            notes=[(str(key), _note(value)) for key, value in notes.items()],
        )
    )


def write_report(
    path: str | Path,
    title: str,
    dialogues: Sequence[Dialogue],
    before: Evaluation,
    after: Evaluation,
    trivial: Mapping[str, Evaluation],
    history: Sequence[Mapping[str, Any]],
    notes: Mapping[str, Any],
) -> Path:
    """`build_report` into a file, which appears whole or not at all. Returns its path."""
    text = build_report(title, dialogues, before, after, trivial, history, notes)
    write_whole(path, text.encode("utf-8", "replace"))
    return Path(path)


def rebuild_report(run: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` again from the files of a run's folder: `evaluations.json` and `metrics.jsonl`.

    Without `notes`, the run is described by `seconds` of `summary.json` and by `config.yaml`, where these are there.
    ValueError, one line, names the file (and line) that is missing or cannot be read.
    """
    run = Path(run)
    dialogues, named = load_evaluations(run / "evaluations.json")
    for name in ("before", "after"):
        if name not in named:
            raise ValueError(f"{run / 'evaluations.json'}: evaluations.{name}: missing")
    trivial = {name: e for name, e in named.items() if name not in ("before", "after")}
    history = read_history(run / "metrics.jsonl")
    before, after = named["before"], named["after"]
    notes = _described(run) if notes is None else notes
    return write_report(run / "report.html", run.resolve().name, dialogues, before, after, trivial, history, notes)


def _described(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    summary, config = run / "summary.json", run / "config.yaml"
    if summary.exists():
        try:
            found["seconds"] = json.loads(summary.read_text(encoding="utf-8")).get("seconds")
        except (json.JSONDecodeError, AttributeError):
            raise ValueError(f"{summary}: not a JSON object") from None
    if config.exists():
        found["config"] = config.read_text(encoding="utf-8").strip()
    return found


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line that was cut off is left out. ValueError names file and line of any other bad one."""
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file")
    rows: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8").split("\n")
    for position, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except json.JSONDecodeError as error:
            if position == len(lines):
                break  # no newline after it: the run was killed while it wrote
            raise ValueError(f"{path}:{position}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{position}: not an object")
        rows.append(row)
    return rows


def _played(dialogues: Sequence[Dialogue], evaluation: Evaluation) -> dict[str, Played]:
    replays = {r.dialogue_id: r for r in evaluation.replays}
    return {d.id: play(d, replays[d.id].actions if d.id in replays else {}) for d in dialogues}


def _anatomy(name: str, dialogues: Sequence[Dialogue], played: Mapping[str, Played]) -> dict[str, Any]:
    """What became of each reference, as shares, and the fires that belonged to none."""
    counts: Counter[str] = Counter()
    for dialogue in dialogues:
        counts.update(played[dialogue.id].counts(dialogue))
    total = sum(counts[kind] for kind in OUTCOMES)
    parts = [(kind, counts[kind], counts[kind] / total if total else 0.0) for kind in OUTCOMES]
    return {"name": name, "parts": parts, "total": total, **{k: counts[k] for k in ("false", "repeat", MASKED)}}


def _offsets(dialogues: Sequence[Dialogue], played: Mapping[str, Played]) -> Counter[int]:
    """Turns from the opening of a reference's window to its first fire."""
    return Counter(
        played[d.id].first[r.id][0] - r.ready[0]
        for d in dialogues
        for r in d.references
        if r.ready and r.id in played[d.id].first
    )


def _f1(contribution: Contribution) -> float:
    """First-fire F1 of one dialogue; 1 when nothing was called for and nothing was fired."""
    s = contribution.sums
    below = s["first_fires"] + s["references"]
    return 2 * s["first_hits"] / below if below else 1.0


def _groups(dialogues: Sequence[Dialogue], before: Evaluation, after: Evaluation, shown: int) -> list[Group]:
    """The dialogues that gained and lost most, then the worst and the best of the rest; none appears twice."""
    old = {c.dialogue: (_f1(c), _mean(c)) for c in before.contributions}
    new = {c.dialogue: (_f1(c), _mean(c)) for c in after.contributions}
    replays = [{r.dialogue_id: r for r in e.replays} for e in (before, after)]
    scored = old.keys() & new.keys() & replays[0].keys() & replays[1].keys()
    known = {d.id: d for d in dialogues if d.id in scored}

    def gain(name: str) -> tuple[float, float, str]:
        return new[name][0] - old[name][0], new[name][1] - old[name][1], name

    def quality(name: str) -> tuple[float, float, str]:
        return *new[name], name

    left = sorted(known)
    wanted = (
        ("Gained most", "first-fire F1 after training minus before", sorted(left, key=gain, reverse=True), gain, 1),
        ("Lost most", "what training cost", sorted(left, key=gain), gain, -1),
        ("Worst after training", "what it still gets wrong", sorted(left, key=quality), None, 0),
        ("Best after training", "what it gets right", sorted(left, key=quality, reverse=True), None, 0),
    )
    groups, used = [], set[str]()
    for title, help, order, measure, sign in wanted:
        picked = [n for n in order if n not in used and (measure is None or sign * measure(n)[0] > 0)][:shown]
        used.update(picked)
        items = [
            (timeline(known[n], {"before": replays[0][n], "after": replays[1][n]}), old[n][0], new[n][0])
            for n in picked
        ]
        if items:
            groups.append(Group(title, help, items))
    return groups


def _mean(contribution: Contribution) -> float:
    return contribution.sums["reward_sum"] / max(contribution.sums["rewarded"], 1.0)


def _counters(dialogues: Sequence[Dialogue], before: Evaluation, after: Evaluation) -> list[tuple[str, str, str]]:
    """(name, value, sentence) of what was counted rather than dropped."""
    found = windows.count(dialogues)
    known = found["references"] - found["null"]
    width = windows.mean_width(dialogues)
    rows = [
        (
            "Dialogues",
            charts.number(found["dialogues"], 0),
            f"{found['turns']} turns, {found['decision_turns']} decision points",
        ),
        (
            "References",
            charts.number(found["references"], 0),
            f"{found.get('withdrawn', 0)} more were withdrawn by the user",
        ),
        ("Unknown windows", _of(found["null"], found["references"]), _reasons(found)),
        ("Windows of a single turn", _of(found["width_0"], known), f"mean width {charts.number(width, 2)} turns"),
    ]
    names = {
        "null_masked": ("Masked proposals", "they belong to an unknown window: neither right nor wrong"),
        "early_masked": ("Masked repeats", "of actions that had fired early, which the logged dialogue does not know"),
        "acted": ("Turns with a proposal", "decision points at which it proposed anything that counts"),
    }
    assert names.keys() <= set(FIELDS)
    for key, (name, help) in names.items():
        sums = [sum(c.sums[key] for c in e.contributions) for e in (before, after)]
        rows.append((name, f"{sums[0]:.0f} → {sums[1]:.0f}", help))
    for name, attribute in (("Unparsed outputs", "unparsed_share"), ("Truncated outputs", "truncated_share")):
        shares = [getattr(e, attribute) for e in (before, after)]
        help = "could not be read in full" if attribute == "unparsed_share" else "ended at the token limit"
        rows.append((name, f"{shares[0]:.1%} → {shares[1]:.1%}", help))
    return rows


def _of(part: int, whole: int) -> str:
    return f"{part} ({part / whole:.0%})" if whole else str(part)


def _reasons(found: Mapping[str, int]) -> str:
    reasons = [f"{key[5:].replace('_', ' ')} {value}" for key, value in found.items() if key.startswith("null_")]
    return "not counted, neither right nor wrong" + (f": {', '.join(reasons)}" if reasons else "")


def _note(value: object) -> str:
    if isinstance(value, float):
        return charts.number(value)
    if isinstance(value, str | int | Path) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str, indent=1)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters |= {"number": charts.number, "signed": charts.signed}
    environment.globals |= {"mark": charts.mark, "symbols": charts.symbols, "number": charts.number}
    return environment
