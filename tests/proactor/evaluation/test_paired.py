"""Two runs on the same dialogues: what changed, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from proactor.commands.compare import compare
from proactor.engine import ProactorError
from proactor.evaluation.paired import PairedRuns, compare_runs, paired_tables
from proactor.evaluation.play import evaluate_policies
from proactor.evaluation.store import save_evaluations
from proactor.scoring.bootstrap import KEYS
from proactor.scoring.metrics import ALL
from proactor.sources import load

DIALOGUES = load("synthetic", limit=16, seed=5).dialogues
KNOWN = evaluate_policies(DIALOGUES)
NAMES = ("a", "b")


def test_every_metric_with_its_difference() -> None:
    comparison = compare_runs(
        NAMES, (DIALOGUES, DIALOGUES[::-1]), (KNOWN["never"], KNOWN["values_seen"]), resamples=200
    )
    assert set(comparison.metrics) == set(ALL) and comparison.dialogues == 16
    change = comparison.metrics["first_fire_f1"]
    assert change.first == 0.0 and change.difference is not None and change.clear
    assert change.difference[0] == pytest.approx(KNOWN["values_seen"].metrics["first_fire_f1"])
    assert comparison.metrics["lead"].first is None and comparison.metrics["lead"].difference is None
    called = {r.name for d in DIALOGUES for r in (*d.references, *d.withdrawn)}
    assert set(comparison.tools) == called and set(comparison.domains) == {d.domain for d in DIALOGUES}
    some = DIALOGUES[0].references[0].name
    assert comparison.tools[some]["first_fire_f1"].second == pytest.approx(1.0, abs=0.5)
    assert PairedRuns.model_validate_json(comparison.model_dump_json()) == comparison


def test_nothing_changed_is_no_clear_change() -> None:
    comparison = compare_runs(
        NAMES, (DIALOGUES, DIALOGUES), (KNOWN["always"], KNOWN["always"]), resamples=100
    )
    assert not any(change.clear for change in comparison.metrics.values())
    assert not any(change.clear for of in comparison.tools.values() for change in of.values())


def test_the_tables_show_windows_and_parts() -> None:
    comparison = compare_runs(
        NAMES, (DIALOGUES, DIALOGUES), (KNOWN["never"], KNOWN["values_seen"]), resamples=100
    )
    console = Console(width=150)
    with console.capture() as captured:
        for table in paired_tables(comparison, KEYS):
            console.print(table)
    assert all(
        text in captured.get()
        for text in ("first-fire F1", "windows:", "change by tool", "change by domain", "16 dialogues")
    )


def test_other_dialogues_are_refused_by_name() -> None:
    runs = KNOWN["never"], KNOWN["always"]
    with pytest.raises(ValueError, match=f"^b: dialogue '{DIALOGUES[3].id}' was not played there, but in a"):
        compare_runs(NAMES, (DIALOGUES, (*DIALOGUES[:3], *DIALOGUES[4:])), runs)
    with pytest.raises(ValueError, match=f"^a: dialogue '{DIALOGUES[3].id}' was not played there, but in b"):
        compare_runs(NAMES, ((*DIALOGUES[:3], *DIALOGUES[4:]), DIALOGUES), runs)
    relabelled = (DIALOGUES[0].model_copy(update={"references": ()}), *DIALOGUES[1:])
    with pytest.raises(ValueError, match=f"^b: dialogue '{DIALOGUES[0].id}' is labelled or worded otherwise"):
        compare_runs(NAMES, (DIALOGUES, relabelled), runs)


def app() -> typer.Typer:
    commands = typer.Typer()
    commands.command()(compare)
    return commands


def test_the_command(tmp_path: Path) -> None:
    for name, after in (("one", "never"), ("two", "values_seen")):
        save_evaluations(
            tmp_path / name / "evaluations.json", DIALOGUES, {"before": KNOWN["never"], "after": KNOWN[after]}
        )
    fewer = evaluate_policies(DIALOGUES[:9])["always"]
    save_evaluations(tmp_path / "three" / "evaluations.json", DIALOGUES[:9], {"after": fewer})
    out = tmp_path / "out.json"
    done = CliRunner().invoke(
        app(), [str(tmp_path / "one"), str(tmp_path / "two"), "--resamples", "100", "--json", str(out)]
    )
    assert done.exit_code == 0, done.output
    comparison = PairedRuns.model_validate_json(out.read_text())
    assert (comparison.first, comparison.second) == ("one", "two") and comparison.metrics["recall"].clear
    for arguments, said in (
        (["one", "three"], "was not played there, but in one"),
        (["one", "four"], "no such run, nor a config"),
        (["one", "two", "--system", "best"], "no system 'best': one of before, after"),
    ):
        folders = [str(tmp_path / a) if a in ("one", "two", "three", "four") else a for a in arguments]
        failed = CliRunner().invoke(app(), folders)
        assert isinstance(failed.exception, ProactorError) and said in str(failed.exception)
