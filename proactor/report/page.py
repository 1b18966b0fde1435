"""The report of a run: one HTML file that needs no network and no script, for a screen, a phone or paper.

It shows what changed, by how much and how surely, what got worse, what the trivial policies reach, and in
dialogues where the agent fired before and after training. All text from data and models is escaped; a content
policy forbids scripts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from proactor.calibration.points import TradeOffPoint
from proactor.calibration.probabilities import DialogueProbabilities
from proactor.calibration.tradeoff import TradeOff, TradeOffs
from proactor.dialogue import Dialogue
from proactor.evaluation.play import Evaluation
from proactor.report import charts, curves, marks
from proactor.report.anatomy import anatomy, classify_replays, first_fires, groups
from proactor.report.comparison import Sides, rival, table
from proactor.report.counters import counters
from proactor.report.heatmap import heat_maps
from proactor.report.numbers import number, signed_number
from proactor.report.stages import STAGES, reward_parts

HEADLINES = ("reward", "values_right", "first_fire_f1", "first_fire_recall")
RIVALS = ("reward", "first_fire_f1")
SHOWN = 3
"""Dialogues drawn in each group of timelines."""


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The results of `proactor calibrate`: lead against false fires, and probabilities of some dialogues."""

    trade_offs: TradeOffs | None = None
    probabilities: Sequence[DialogueProbabilities] = ()


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

    ``history``: rows of metrics.jsonl. ``notes``: other facts for a reader (model, seconds, seed, …), shown
    as given. ``calibrated``: drawn if given. ``sides``: names of the two systems, if they are not before and
    after training. ``beside``: the rows of the run called ``sides.before``, if ``history`` is of the other;
    the parts of the reward by stage are then left out. ``shown``: dialogues drawn in each group.

    Raises ProactorError without dialogues, or when ``before`` and ``after`` hold different ones.
    """
    sides, calibrated = sides or Sides(), calibrated or Calibrated()
    sections = table(before, after, trivial, sides)
    lines = {line.metric.key: line for section in sections.values() for line in section}
    systems = {"before": before, "after": after, **trivial}
    replays = {name: classify_replays(dialogues, evaluation) for name, evaluation in systems.items()}
    values: dict[str, Any] = {
        "title": title,
        "sides": sides,
        "size": {"dialogues": len(dialogues), "decisions": sum(len(d.decision_turns) for d in dialogues)},
        "headlines": [lines[key] for key in HEADLINES],
        "rivals": [rival(key, lines[key], after, trivial) for key in RIVALS if trivial],
        "worse": [line for line in lines.values() if line.verdict == "worse"],
        "leaning": [line for line in lines.values() if line.verdict == "leaning_worse"],
        "sections": sections,
        "trivial": list(trivial),
        "anatomy": [anatomy(getattr(sides, name, name), dialogues, replays[name]) for name in systems],
        "offsets": charts.offsets(
            first_fires(dialogues, replays["before"]), first_fires(dialogues, replays["after"])
        ),
        "trade_offs": calibrated.trade_offs,
        "trade_off_chart": trade_off_chart(calibrated.trade_offs) if calibrated.trade_offs else "",
        "curves": curves.sections(history, beside or ()),
        "two_runs": beside is not None,
        "only_beside": curves.only_in(beside or (), history),
        "stages": reward_parts(history) if beside is None else (),
        "stage_names": STAGES,
        "groups": groups(dialogues, before, after, shown, sides),
        "heat": heat_maps(dialogues, calibrated.probabilities),
        "counters": counters(dialogues, before, after),
        "notes": [(str(key), _note(value)) for key, value in notes.items()],
    }
    return _environment(sides).get_template("report.html.j2").render(values)


def table_points(curve: TradeOff) -> list[TradeOffPoint]:
    """The points of a curve in the table: the chosen one, else the only one, else both ends."""
    if curve.chosen is not None:
        return [curve.chosen]
    return list(curve.points[:1] + curve.points[-1:] if len(curve.points) > 1 else curve.points)


def trade_off_chart(trade_offs: TradeOffs) -> Markup:
    """Systems with thresholds as curves, the others as points."""

    def place(p: TradeOffPoint) -> charts.Point:
        return p.wrong_per_100, p.turns_saved

    systems = trade_offs.systems
    lines = {c.system: [place(p) for p in c.points] for c in systems if len(c.points) > 1}
    dots = {c.system: place(c.points[0]) for c in systems if len(c.points) == 1}
    chosen = next((place(c.chosen) for c in systems if c.chosen is not None), None)
    return charts.trade_off(lines, dots, trade_offs.budget, chosen)


def _note(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str | int | Path) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str, indent=1)


def _environment(sides: Sides) -> jinja2.Environment:
    """The templates' environment; ``sides`` names the systems in the tooltips of marks."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"table_points": table_points, "number": number, "signed_number": signed_number}
    names = {"before": sides.before, "after": sides.after}

    def mark(kind: str, system: str, words: str = "", count: int = 1) -> Markup:
        return marks.mark(kind, system, words, count, names.get(system, system))

    environment.globals |= {"mark": mark, "symbols": marks.symbols, "number": number}
    return environment
