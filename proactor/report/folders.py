"""Reports from the folders of runs: of one run, written again at any time, or of several side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from proactor.calibration.store import load_probabilities
from proactor.calibration.tradeoff import load_trade_offs
from proactor.dialogue import Dialogue
from proactor.engine import atomic_file
from proactor.evaluation.play import Evaluation
from proactor.evaluation.store import find_system, load_comparable, notes_of
from proactor.files import SourceError
from proactor.report.comparison import Sides
from proactor.report.curves import Trained
from proactor.report.episodes_page import EpisodeRun, build_episodes_report, build_runs_report
from proactor.report.page import Calibrated, build_report
from proactor.training.record import RunRecord, check_run
from proactor.training.runs import Run, read_rows


def rebuild_report(run: str | Path, *, say: Callable[[str], None] | None = None) -> Path:
    """Write ``report.html`` again from the files of a run's folder.

    Needs ``metrics.jsonl`` and, on dialogues, ``evaluations.json``; ``summary.json``, ``config.yaml``,
    ``episodes.json``, samples and the files of `proactor calibrate` are used where they exist. ``say`` gets a
    line for evaluations of an older version, which are scored again.

    Raises ProactorError or OSError, naming the file, for one that is missing or cannot be read, and naming
    the folder, where it is not a run's.
    """
    run = Path(run)
    check_run(run)
    record = RunRecord.read(run)
    if record.in_environment:
        return write_page(run / "report.html", build_episodes_report(record.name, EpisodeRun.read(run)))
    file = run / "evaluations.json"
    ((dialogues, systems),) = load_comparable([file])
    scored_again = _scored_again(systems.values(), say)
    text = build_report(
        record.name,
        dialogues,
        find_system(systems, "before", file),
        find_system(systems, "after", file),
        _trivial(systems),
        Trained(read_rows(run / "metrics.jsonl"), record),
        scored_again,
        calibrated=read_calibration(run, dialogues),
    )
    return write_page(run / "report.html", text)


def side_by_side(
    first: str | Path, second: str | Path, path: str | Path, *, say: Callable[[str], None] | None = None
) -> Path:
    """Two runs after training, on the same test dialogues, as one report at ``path``.

    The trivial policies are those of ``first``. ``say``: as in `rebuild_report`. Raises ProactorError, naming
    the file that is missing, or the dialogue that only one of them played.
    """
    folders = Path(first), Path(second)
    files = [folder / "evaluations.json" for folder in folders]
    (dialogues, one), (_, other) = load_comparable(files)
    sides = find_system(one, "after", files[0]), find_system(other, "after", files[1])
    scored_again = _scored_again(sides, say)
    runs = [Trained(Run(folder).rows(), RunRecord.read(folder)) for folder in folders]
    names = [run.record.name for run in runs]
    text = build_report(
        f"{names[0]} and {names[1]}",
        dialogues,
        *sides,
        _trivial(one),
        runs[1],
        scored_again,
        sides=Sides.of_runs(names[0], names[1]),
        beside=runs[0],
    )
    return write_page(path, text)


def together(
    folders: Sequence[str | Path], path: str | Path, *, say: Callable[[str], None] | None = None
) -> Path:
    """Several runs of one kind as one report at ``path``: two on dialogues (`side_by_side`), or any number in
    an environment, all of them finished.

    Raises ProactorError, naming the folder that does not fit or the file that is missing.
    """
    records = [RunRecord.read(folder) for folder in folders]
    if not records[0].in_environment:
        if len(folders) > 2:
            raise SourceError(f"{folders[2]}: a page shows two runs on dialogues side by side, not more")
        return side_by_side(folders[0], folders[1], path, say=say)
    runs = [EpisodeRun.read(Path(folder)) for folder in folders]
    for folder, run in zip(folders, runs, strict=True):
        if run.summary is None:
            raise SourceError(f"{folder}: has not played its test tasks, so it has no point to show")
    names = [record.name for record in records]
    return write_page(path, build_runs_report(f"{', '.join(names[:-1])} and {names[-1]}", runs))


def read_calibration(run: Path, dialogues: Iterable[Dialogue]) -> Calibrated:
    """The files of `proactor calibrate`, where they exist. Raises SourceError for one that cannot be read, or
    tells of turns that one of the ``dialogues`` does not have.
    """
    trade_offs, probabilities = run / "tradeoff.json", run / "probabilities.json"
    scored = load_probabilities(probabilities) if probabilities.exists() else []
    turns = {d.id: {turn.index for turn in d.turns} for d in dialogues}
    for each in scored:
        if odd := {t.turn for t in each.turns} - turns.get(each.dialogue_id, {t.turn for t in each.turns}):
            raise SourceError(f"{probabilities}: dialogue {each.dialogue_id!r} has no turn {min(odd)}")
    return Calibrated(load_trade_offs(trade_offs) if trade_offs.exists() else None, scored)


def write_page(path: str | Path, text: str) -> Path:
    """Write a page atomically; returns its path. A lone surrogate in the data becomes a question mark."""
    atomic_file(path, text.encode("utf-8", "replace"))
    return Path(path)


def _scored_again(evaluations: Iterable[Evaluation], say: Callable[[str], None] | None) -> dict[str, str]:
    """A note of the page for evaluations that were scored again, each told to ``say``; {} without any."""
    notes = notes_of(evaluations)
    if say is not None:
        for note in notes:
            say(note)
    return {"scored again": "\n".join(notes)} if notes else {}


def _trivial(systems: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
    return {name: e for name, e in systems.items() if name not in ("before", "after")}
