"""The report of a run: one HTML file that needs no network and no library, for a screen, a phone or paper.

It shows what changed, by how much and how surely, what got worse, what the trivial policies reach, and in all
dialogues where the agent fired before and after training. All text from data and models is escaped; a content
policy allows one script, by its hash: the one that searches the dialogues. Without it a first page of them
stands there.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from proactor.calibration.probabilities import DialogueProbabilities
from proactor.calibration.tradeoff import TradeOffs
from proactor.dialogue import Dialogue
from proactor.evaluation.play import Evaluation
from proactor.report import charts, curves, marks
from proactor.report.anatomy import anatomy, classify_replays, first_fires
from proactor.report.comparison import MAIN, MetricLine, Sides, rival, table
from proactor.report.counters import counters
from proactor.report.curves import Trained
from proactor.report.heatmap import heat_maps
from proactor.report.numbers import number, signed_number
from proactor.report.rewards import RewardsApart
from proactor.report.stages import STAGES, reward_parts
from proactor.report.talks import FIRST_PAGE, OUTCOMES, Talk, pack, talks, tools_of
from proactor.report.trade_off import table_points, trade_off_chart

HEADLINES = ("reward", "values_right", "first_fire_f1", "first_fire_recall")
RIVALS = ("reward", "first_fire_f1")
TEMPLATES = Path(__file__).parent / "templates"


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
    environment = _environment(sides, one_reward=not apart.evaluation)
    script = (TEMPLATES / "talks.js").read_text(encoding="utf-8")
    values: dict[str, Any] = {
        "title": title,
        "sides": sides,
        "size": {"dialogues": len(dialogues), "decisions": sum(len(d.decision_turns) for d in dialogues)},
        **_verdicts(lines, after, trivial),
        "main_sections": {name: rows for name, rows in sections.items() if name in MAIN},
        "more_sections": {name: rows for name, rows in sections.items() if name not in MAIN},
        "trivial": list(trivial),
        **_dialogues(talks(dialogues, before, after, replays, one_reward=not apart.evaluation), environment),
        "anatomy": [anatomy(getattr(sides, name, name), dialogues, replays[name]) for name in systems],
        "offsets": charts.offsets(
            first_fires(dialogues, replays["before"]), first_fires(dialogues, replays["after"])
        ),
        "trade_offs": calibrated.trade_offs,
        "trade_off_chart": trade_off_chart(calibrated.trade_offs) if calibrated.trade_offs else "",
        **_training(trained, beside, apart),
        "heat": heat_maps(dialogues, calibrated.probabilities),
        "counters": counters(dialogues, before, after),
        "notes": [(str(key), _note(value)) for key, value in notes.items()],
        "script": Markup(script),  # nosec B704 # a file of this package
        "script_hash": f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
    }
    return environment.get_template("report.html.j2").render(values)


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


def _dialogues(found: Sequence[Talk], environment: jinja2.Environment) -> dict[str, Any]:
    """The first page, and all of them drawn and packed for the script."""
    template = environment.get_template("talk.html.j2")
    return {
        "first_page": found[:FIRST_PAGE],
        "talk_count": len(found),
        "tools": tools_of(found),
        "packed": Markup(  # nosec B704 # `pack` encodes what the template has escaped
            pack(found, [template.render(talk=talk, open=False) for talk in found])
        ),
    }


def _training(trained: Trained, beside: Trained | None, apart: RewardsApart) -> dict[str, Any]:
    """Curves, the chosen step with its values on dev, and the facts and configs of the runs."""
    runs = [run for run in (beside, trained) if run is not None]
    check = trained.rows[trained.chosen] if beside is None and trained.chosen is not None else {}
    told = [(run.record.name, run.record.chosen) for run in runs]
    return {
        "curves": curves.sections(trained, beside, apart),
        "marked": any(run.chosen is not None for run in runs),
        "chosen": [
            f"{'After training' if beside is None else name}: {chosen}".replace("->", "→")
            for name, chosen in told
            if chosen is not None
        ],
        "on_dev": {
            key: value for key in HEADLINES if isinstance(value := check.get(f"eval_{key}"), int | float)
        },
        "two_runs": beside is not None,
        "only_beside": curves.only_in(beside.rows, trained.rows) if beside is not None else [],
        "stages": reward_parts(trained.rows) if beside is None else (),
        "stage_names": STAGES,
        "facts": [(run.record.name, run.record.facts()) for run in runs],
        "configs": [(run.record.name, run.record.config_text) for run in runs if run.record.config_text],
    }


def _note(value: object) -> str:
    if isinstance(value, float):
        return number(value)
    if isinstance(value, str | int | Path) or value is None:
        return str(value)
    return json.dumps(value, ensure_ascii=False, default=str, indent=1)


def _environment(sides: Sides, *, one_reward: bool) -> jinja2.Environment:
    """The templates' environment; ``sides`` names the systems in the tooltips of marks.

    ``one_reward``: whether turn rewards of the two systems stand side by side.
    """
    environment = ImmutableSandboxedEnvironment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
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
    environment.globals |= {"sides": sides, "outcomes": OUTCOMES, "one_reward": one_reward}
    return environment
