"""The page of a run in an environment: start and best on the test tasks, the price in turns of the user, how
episodes end, and the episodes themselves, turn by turn. And the page of several runs, a point each.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from proactor.report.comparison import Sides
from proactor.report.conversations import (
    FIRST_PAGE,
    LONGEST,
    EpisodeGroup,
    compared_groups,
    read_training_groups,
    said_in,
)
from proactor.report.curves import Trained
from proactor.report.endings import endings_chart, endings_table
from proactor.report.episode_counters import episode_counters
from proactor.report.episode_metrics import HEADLINES, METRICS, SIDES, EpisodeSummary
from proactor.report.pareto import Mark, front, marks_of, pareto_chart, path_of
from proactor.report.run_part import run_facts, run_values
from proactor.report.templating import environment, pack, script
from proactor.training.episode_rows import BeforeAfter, read_before_after, sample_files
from proactor.training.record import RunRecord
from proactor.training.runs import read_rows


@dataclass(frozen=True, slots=True)
class EpisodeRun:
    """What the folder of a run in an environment holds: rows and record, and, where the run has them, its
    summary, its test episodes and the files of its training episodes by step.
    """

    trained: Trained
    summary: EpisodeSummary | None = None
    tested: BeforeAfter | None = None
    samples: Mapping[int, Path] | None = None

    @classmethod
    def read(cls, folder: Path) -> EpisodeRun:
        """The run in a folder. Raises SourceError for a file that is missing or cannot be read."""
        record = RunRecord.read(folder)
        rows = read_rows(folder / "metrics.jsonl")
        summary = EpisodeSummary.of(record)
        return cls(Trained(rows, record), summary, read_before_after(folder), sample_files(folder))

    @property
    def tasks(self) -> tuple[str, frozenset[str]]:
        """The gym, and the names of the test tasks."""
        names = (e.task for e in self.tested.after) if self.tested else ()
        return _gym(self.trained.record), frozenset(names)

    @property
    def success(self) -> float:
        """The least score that solves a task."""
        options = self.trained.record.config.get("eval")
        given = options.get("success") if isinstance(options, Mapping) else None
        return float(given) if isinstance(given, int | float) else 1.0


def build_episodes_report(title: str, run: EpisodeRun) -> str:
    """The report of one run as HTML text. Raises SourceError for a file of episodes that cannot be read."""
    sides, trained = Sides(), run.trained
    templates = environment(sides)
    templates.globals |= {"longest": LONGEST, "said_in": said_in}
    sections = run.summary.lines(sides) if run.summary else {}
    lines = {line.metric.key: line for section in sections.values() for line in section}
    tested = compared_groups(run.tested) if run.tested else []
    path = path_of(trained.rows, trained.chosen)
    values: dict[str, Any] = {
        "title": title,
        "gym": _gym(trained.record),
        "tasks": run.summary.tasks if run.summary else 0,
        "headlines": [lines[key] for key in HEADLINES if key in lines],
        "rivals": (),
        "worse": [line for line in lines.values() if line.verdict == "worse"],
        "leaning": [line for line in lines.values() if line.verdict == "leaning_worse"],
        "main_sections": sections,
        "more_sections": {},
        "trivial": (),
        "tested": tested,
        "pareto": pareto_chart(_tested(run.summary), path),
        "path": path,
        "endings_chart": endings_chart(trained.rows),
        **endings_table(trained.rows, run.tested),
        **_episodes([*tested, *read_training_groups(run.samples or {}, run.success)], run, templates),
        **run_values(trained, HEADLINES),
        "counters": episode_counters(trained.rows),
        "notes": (),
        **script("entries.js", "episodes.js"),
    }
    return templates.get_template("episodes.html.j2").render(values)


def _tested(summary: EpisodeSummary | None) -> list[Mark]:
    if summary is None:
        return []
    return [mark for side in SIDES for mark in marks_of(f"{side} on test", summary, side)]


def _gym(record: RunRecord) -> str:
    options = record.config.get("environment")
    return str(options.get("gym", "")) if isinstance(options, Mapping) else ""


def _episodes(
    groups: Sequence[EpisodeGroup], run: EpisodeRun, templates: jinja2.Environment
) -> dict[str, Any]:
    """The first page, and all groups drawn and packed for the script."""
    template = templates.get_template("episode_group.html.j2")
    steps = sorted({g.step for g in groups if g.step is not None})
    return {
        "first_page": groups[:FIRST_PAGE],
        "group_count": len(groups),
        "steps": steps,
        "steps_sampled": len(run.samples or {}),
        "kinds": sorted({(e.row.ending, e.ending) for g in groups for e in g.episodes}),
        "packed": pack([{**g.row, "html": template.render(group=g, open=False)} for g in groups]),
    }


def build_runs_report(title: str, runs: Sequence[EpisodeRun]) -> str:
    """Several finished runs beside one another as HTML text: their metrics, and a point each on the plot.

    The page says where they were not tested on the same tasks.
    """
    templates = environment(Sides())
    finished = [(run.trained.record.name, run.summary) for run in runs if run.summary is not None]
    marks = [m for _, summary in finished for m in marks_of("", summary, "before")]
    marks += [m for name, summary in finished for m in marks_of(name, summary, "after")]
    rows = [(name, side, summary.intervals[side]) for name, summary in finished for side in SIDES]
    best = front(m.point for m in marks)
    values: dict[str, Any] = {
        "title": title,
        "runs": [
            (name, side, estimates, (estimates["user_actions"].estimate, estimates["score"].estimate) in best)
            for name, side, estimates in rows
        ],
        "tasks": sorted({summary.tasks for _, summary in finished}),
        "metrics": [metric for metrics in METRICS.values() for metric in metrics if metric.key in HEADLINES],
        "pareto": pareto_chart(marks),
        "apart": len({run.tasks for run in runs}) > 1,
        "notes": (),
        **run_facts([run.trained for run in runs]),
        **script(),
    }
    return templates.get_template("runs.html.j2").render(values)
