"""The report of a run: one HTML file that needs no network and no script, for a screen, a phone or paper.

It says what changed, by how much and how surely, what got worse, what the trivial policies reach, and shows
in dialogues where the agent fired before and after training. All text from data and models is escaped; a
content policy forbids scripts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from proactor.calibration.probabilities import DialogueProbabilities
from proactor.calibration.points import TradeOffPoint
from proactor.calibration.store import load_probabilities
from proactor.calibration.tradeoff import TradeOff, TradeOffs, load_trade_offs
from proactor.dialogue import Dialogue, windows
from proactor.engine import atomic_file
from proactor.evaluation.play import Evaluation
from proactor.evaluation.store import load_evaluations
from proactor.files import SourceError
from proactor.report import charts, curves
from proactor.report.anatomy import anatomy, first_fires, groups
from proactor.report.anatomy import played as played_by
from proactor.report.comparison import Sides, rival, table
from proactor.report.heatmap import heat_maps
from proactor.report.stages import STAGES, components
from proactor.scoring.metrics import FIELDS

HEADLINES = ("reward", "first_fire_f1", "first_fire_precision", "first_fire_recall")
SHOWN = 3
"""Dialogues drawn in each group of timelines."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What `proactor calibrate` leaves in a run's folder: lead against false fires, and the probabilities of
    some dialogues.
    """

    trade_offs: TradeOffs | None = None
    probabilities: Sequence[DialogueProbabilities] = ()

    @classmethod
    def read(cls, run: Path) -> Calibrated:
        """The files that are there. ValueError, one line, names one that cannot be read."""
        curves, heat = run / "tradeoff.json", run / "probabilities.json"
        return cls(
            load_trade_offs(curves) if curves.exists() else None,
            load_probabilities(heat) if heat.exists() else (),
        )


def build_report(
    title: str,
    dialogues: Sequence[Dialogue],
    before: Evaluation,
    after: Evaluation,
    trivial: Mapping[str, Evaluation],
    history: Sequence[Mapping[str, Any]],
    notes: Mapping[str, Any],
    *,
    calibrated: Calibrated | None = None,
    sides: Sides | None = None,
    beside: Sequence[Mapping[str, Any]] | None = None,
    shown: int = SHOWN,
) -> str:
    """The report as HTML text.

    `history`: rows of metrics.jsonl. `notes`: what else a reader should know (model, seconds, seed, …), shown
    as given.
    `calibrated`: drawn where it is given. `sides`: what the two systems are called, when they are not before
    and after training. `beside`: the rows of the run called `sides.before`, when `history` is of the other;
    then the parts of the reward by stage are left out.
    `shown`: dialogues drawn in each group. ValueError when there are no dialogues or `before` and `after`
    hold different ones.
    """
    sides, calibrated = sides or Sides(), calibrated or Calibrated()
    lines = table(before, after, trivial, sides)
    flat = {line.metric.key: line for rows in lines.values() for line in rows}
    systems = {"before": before, "after": after, **trivial}
    played = {name: played_by(dialogues, evaluation) for name, evaluation in systems.items()}
    return (
        _environment(sides)
        .get_template("report.html.j2")
        .render(
            title=title,
            headlines=[flat[key] for key in HEADLINES],
            sections=lines,
            trivial=list(trivial),
            worse=[line for line in flat.values() if line.verdict == "worse"],
            leaning=[line for line in flat.values() if line.verdict == "leaning_worse"],
            rivals=[rival(key, flat[key], after, trivial) for key in HEADLINES[:2] if trivial],
            anatomy=[anatomy(getattr(sides, name, name), dialogues, played[name]) for name in systems],
            offsets=charts.offsets(
                first_fires(dialogues, played["before"]), first_fires(dialogues, played["after"])
            ),
            sides=sides,
            curves=curves.sections(history, beside or ()),
            two_runs=beside is not None,
            only_beside=curves.only_in(beside or (), history),
            stages=components(history) if beside is None else (),
            stage_names=STAGES,
            trade_offs=calibrated.trade_offs,
            trade_off_chart=trade_off_chart(calibrated.trade_offs) if calibrated.trade_offs else "",
            heat=heat_maps(dialogues, calibrated.probabilities),
            groups=groups(dialogues, before, after, shown, sides),
            counters=_counters(dialogues, before, after),
            shares={
                name: (e.unparsed_share, e.truncated_share)
                for name, e in (("before", before), ("after", after))
            },
            size={"dialogues": len(dialogues), "decisions": sum(len(d.decision_turns) for d in dialogues)},
            notes=[(str(key), _note(value)) for key, value in notes.items()],
        )
    )


def write_page(path: str | Path, text: str) -> Path:
    """The page in a file, which appears whole or not at all; half a surrogate pair in the data becomes a
    question mark. Returns its path.
    """
    atomic_file(path, text.encode("utf-8", "replace"))
    return Path(path)


def rebuild_report(run: str | Path, notes: Mapping[str, Any] | None = None) -> Path:
    """Write `report.html` again from the files of a run's folder: `evaluations.json` and `metrics.jsonl`, and
    those of `proactor calibrate` where they are there.

    Without `notes`, the run is described by `seconds` of `summary.json` and by `config.yaml`, where these are
    there. ValueError, one line, names the file (and line) that is missing or cannot be read.
    """
    run = Path(run)
    dialogues, named = load_evaluations(run / "evaluations.json")
    for name in ("before", "after"):
        if name not in named:
            raise SourceError(f"{run / 'evaluations.json'}: evaluations.{name}: missing")
    trivial = {name: e for name, e in named.items() if name not in ("before", "after")}
    history = read_history(run / "metrics.jsonl")
    before, after = named["before"], named["after"]
    notes = _described(run) if notes is None else notes
    text = build_report(
        run.resolve().name, dialogues, before, after, trivial, history, notes, calibrated=Calibrated.read(run)
    )
    return write_page(run / "report.html", text)


def side_by_side(first: str | Path, second: str | Path, path: str | Path) -> Path:
    """The agents of two runs after training on the same test dialogues, as one report at `path`; trivial
    policies are taken from `first`.

    ValueError, one line, names the file that is missing, or the dialogue that only one of them played.
    """
    folders = Path(first), Path(second)
    (dialogues, one), (_, other) = (load_evaluations(folder / "evaluations.json") for folder in folders)
    for folder, named in zip(folders, (one, other), strict=True):
        if "after" not in named:
            raise SourceError(f"{folder / 'evaluations.json'}: evaluations.after: missing")
    names = [folder.resolve().name for folder in folders]
    trivial = {name: e for name, e in one.items() if name not in ("before", "after")}
    sides = Sides.of_runs(names[0], names[1])
    notes = {
        name: config
        for name, folder in zip(names, folders, strict=True)
        if (config := _described(folder).get("config"))
    }
    rows = [read_history(file) if (file := f / "metrics.jsonl").exists() else [] for f in folders]
    text = build_report(
        f"{names[0]} and {names[1]}",
        dialogues,
        one["after"],
        other["after"],
        trivial,
        rows[1],
        notes,
        sides=sides,
        beside=rows[0],
    )
    return write_page(path, text)


def _described(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    summary, config = run / "summary.json", run / "config.yaml"
    if summary.exists():
        try:
            found["seconds"] = json.loads(summary.read_text(encoding="utf-8")).get("seconds")
        except (json.JSONDecodeError, AttributeError):
            raise SourceError(f"{summary}: not a JSON object") from None
    if config.exists():
        found["config"] = config.read_text(encoding="utf-8").strip()
    return found


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl; a last line that was cut off is left out. ValueError names file and line of any
    other bad one.
    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f"{path}: no such file")
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
            raise SourceError(f"{path}:{position}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise SourceError(f"{path}:{position}: not an object")
        rows.append(row)
    return rows


def _told(curve: TradeOff) -> list[TradeOffPoint]:
    """The points of a curve that its table tells: the chosen one, else the only one, else both ends."""
    if curve.chosen is not None:
        return [curve.chosen]
    return list(curve.points[:1] + curve.points[-1:] if len(curve.points) > 1 else curve.points)


def trade_off_chart(found: TradeOffs) -> Markup:
    """Systems with thresholds as curves, the others as points."""

    def place(p: TradeOffPoint) -> charts.Point:
        return p.wrong_per_100, p.turns_saved

    curves = {c.system: [place(p) for p in c.points] for c in found.systems if len(c.points) > 1}
    dots = {c.system: place(c.points[0]) for c in found.systems if len(c.points) == 1}
    chosen = next((place(c.chosen) for c in found.systems if c.chosen is not None), None)
    return charts.trade_off(curves, dots, found.budget, chosen)


def _counters(
    dialogues: Sequence[Dialogue], before: Evaluation, after: Evaluation
) -> list[tuple[str, str, str]]:
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
        (
            "Windows of a single turn",
            _of(found["width_0"], known),
            f"mean width {charts.number(width, 2)} turns",
        ),
    ]
    names = {
        "null_masked": ("Masked proposals", "they belong to an unknown window: neither right nor wrong"),
        "early_masked": (
            "Masked repeats",
            "of actions that had fired early, which the logged dialogue does not know",
        ),
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
    reasons = [
        f"{key[5:].replace('_', ' ')} {value}" for key, value in found.items() if key.startswith("null_")
    ]
    return "not counted, neither right nor wrong" + (f": {', '.join(reasons)}" if reasons else "")


def _note(value: object) -> str:
    if isinstance(value, float):
        return charts.number(value)
    if isinstance(value, str | int | Path) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str, indent=1)


def _environment(sides: Sides) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1] / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"told": _told, "number": charts.number, "signed": charts.signed}

    def mark(kind: str, system: str, said: str = "", count: int = 1) -> Markup:
        return charts.mark(
            kind, system, said, count, {"before": sides.before, "after": sides.after}.get(system, system)
        )

    environment.globals |= {"mark": mark, "symbols": charts.symbols, "number": charts.number}
    return environment
