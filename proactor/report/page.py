"""The report of a run: one HTML file that needs no network and no library, for a screen, a phone or paper.

It shows what changed, by how much and how surely, what got worse, what the trivial policies reach, and in all
dialogues where the agent fired before and after training. All text from data and models is escaped; a content
policy allows one script, by its hash: the one that searches the dialogues. Without it a first page of them
stands there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from proactor.calibration.probabilities import DialogueProbabilities
from proactor.calibration.tradeoff import TradeOffs
from proactor.dialogue import Dialogue
from proactor.evaluation.play import Evaluation
from proactor.report import charts
from proactor.report.anatomy import anatomy, classify_replays, first_fires
from proactor.report.comparison import MAIN, MetricLine, Sides, rival, table
from proactor.report.counters import counters
from proactor.report.curves import Trained
from proactor.report.heatmap import heat_maps
from proactor.report.numbers import number
from proactor.report.rewards import RewardsApart
from proactor.report.run_part import run_values
from proactor.report.talks import FIRST_PAGE, OUTCOMES, Talk, talks, tools_of
from proactor.report.templating import environment, pack, script
from proactor.report.trade_off import table_points, trade_off_chart

HEADLINES = ("reward", "values_right", "first_fire_f1", "first_fire_recall")
RIVALS = ("reward", "first_fire_f1")


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
    trained: Trained,
    notes: Mapping[str, Any],
    *,
    calibrated: Calibrated | None = None,
    sides: Sides | None = None,
    beside: Trained | None = None,
) -> str:
    """The report as HTML text.

    ``trained``: rows and record of the run. ``notes``: other facts for a reader, shown as given.
    ``calibrated``: drawn if given. ``sides``: names of the two systems, if they are not before and after
    training. ``beside``: the run called ``sides.before``, if ``trained`` is the other; the parts of the
    reward by stage are then left out. Two runs with different rewards have no chart or difference of them.

    Raises ProactorError without dialogues, or when ``before`` and ``after`` hold different ones.
    """
    sides, calibrated = sides or Sides(), calibrated or Calibrated()
    apart = RewardsApart() if beside is None else RewardsApart.of_runs(beside.record, trained.record)
    sections = table(
        before, after, trivial, sides, {"reward": apart.evaluation} if apart.evaluation else None
    )
    lines = {line.metric.key: line for section in sections.values() for line in section}
    systems = {"before": before, "after": after, **trivial}
    replays = {name: classify_replays(dialogues, evaluation) for name, evaluation in systems.items()}
    templates = environment(sides)
    templates.filters["table_points"] = table_points
    templates.globals |= {"outcomes": OUTCOMES, "one_reward": not apart.evaluation}
    values: dict[str, Any] = {
        "title": title,
        "sides": sides,
        "size": {"dialogues": len(dialogues), "decisions": sum(len(d.decision_turns) for d in dialogues)},
        **_verdicts(lines, after, trivial),
        "main_sections": {name: rows for name, rows in sections.items() if name in MAIN},
        "more_sections": {name: rows for name, rows in sections.items() if name not in MAIN},
        "trivial": list(trivial),
        **_dialogues(talks(dialogues, before, after, replays, one_reward=not apart.evaluation), templates),
        "anatomy": [anatomy(getattr(sides, name, name), dialogues, replays[name]) for name in systems],
        "offsets": charts.offsets(
            first_fires(dialogues, replays["before"]), first_fires(dialogues, replays["after"])
        ),
        "trade_offs": calibrated.trade_offs,
        "trade_off_chart": trade_off_chart(calibrated.trade_offs) if calibrated.trade_offs else "",
        **run_values(trained, HEADLINES, beside, apart),
        "heat": heat_maps(dialogues, calibrated.probabilities),
        "counters": counters(dialogues, before, after),
        "notes": [(str(key), _note(value)) for key, value in notes.items()],
        **script("entries.js", "talks.js"),
    }
    return templates.get_template("report.html.j2").render(values)


def _verdicts(
    lines: Mapping[str, MetricLine], after: Evaluation, trivial: Mapping[str, Evaluation]
) -> dict[str, Any]:
    """Tiles, the strongest trivial policies, and what got worse."""
    rivals = [key for key in RIVALS if trivial and not lines[key].apart]
    return {
        "headlines": [lines[key] for key in HEADLINES],
        "rivals": [rival(key, lines[key], after, trivial) for key in rivals],
        "worse": [line for line in lines.values() if line.verdict == "worse"],
        "leaning": [line for line in lines.values() if line.verdict == "leaning_worse"],
    }


def _dialogues(found: Sequence[Talk], templates: jinja2.Environment) -> dict[str, Any]:
    """The first page, and all of them drawn and packed for the script."""
    template = templates.get_template("talk.html.j2")
    return {
        "first_page": found[:FIRST_PAGE],
        "talk_count": len(found),
        "tools": tools_of(found),
        "packed": pack([{**talk.row, "html": template.render(talk=talk, open=False)} for talk in found]),
    }


def _note(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str | int | Path) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str, indent=1)
