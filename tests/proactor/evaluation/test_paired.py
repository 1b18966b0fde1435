"""Two runs on the same dialogues: what changed, and what cannot be compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from rich.console import Console
from typer.testing import CliRunner

from proactor.commands.compare import compare
from proactor.engine import ProactorError
from proactor.evaluation.paired import Paired, paired, paired_tables
from proactor.evaluation.play import trivial
from proactor.evaluation.store import save_evaluations
from proactor.scoring.bootstrap import KEYS
from proactor.scoring.metrics import ALL
from proactor.sources import load

DIALOGUES = load("synthetic", limit=16, seed=5).dialogues
KNOWN = trivial(DIALOGUES)
NAMES = ("a", "b")


def test_every_metric_with_its_difference() -> None:
    found = paired(NAMES, (DIALOGUES, DIALOGUES[::-1]), (KNOWN["never"], KNOWN["values_seen"]), resamples=200)
    assert set(found.metrics) == set(ALL) and found.dialogues == 16
    change = found.metrics["first_fire_f1"]
    assert change.first == 0.0 and change.difference is not None and change.clear
    assert change.difference[0] == pytest.approx(KNOWN["values_seen"].metrics["first_fire_f1"])
    assert found.metrics["lead"].first is None and found.metrics["lead"].difference is None
    called = {r.name for d in DIALOGUES for r in (*d.references, *d.withdrawn)}
    assert set(found.tools) == called and set(found.domains) == {d.domain for d in DIALOGUES}
    some = DIALOGUES[0].references[0].name
    assert found.tools[some]["first_fire_f1"].second == pytest.approx(1.0, abs=0.5)
    assert Paired.model_validate_json(found.model_dump_json()) == found


def test_nothing_changed_is_no_clear_change() -> None:
    found = paired(NAMES, (DIALOGUES, DIALOGUES), (KNOWN["always"], KNOWN["always"]), resamples=100)
    assert not any(change.clear for change in found.metrics.values())
    assert not any(change.clear for of in found.tools.values() for change in of.values())


def test_the_tables_show_windows_and_parts() -> None:
    found = paired(NAMES, (DIALOGUES, DIALOGUES), (KNOWN["never"], KNOWN["values_seen"]), resamples=100)
    console = Console(width=150)
    with console.capture() as captured:
        for table in paired_tables(found, KEYS):
            console.print(table)
    assert all(
        text in captured.get()
        for text in ("first-fire F1", "windows:", "change by tool", "change by domain", "16 dialogues")
    )


def test_other_dialogues_are_refused_by_name() -> None:
    runs = KNOWN["never"], KNOWN["always"]
    with pytest.raises(ValueError, match=f"^b: dialogue '{DIALOGUES[3].id}' was not played there, but in a"):
        paired(NAMES, (DIALOGUES, (*DIALOGUES[:3], *DIALOGUES[4:])), runs)
    with pytest.raises(ValueError, match=f"^a: dialogue '{DIALOGUES[3].id}' was not played there, but in b"):
        paired(NAMES, ((*DIALOGUES[:3], *DIALOGUES[4:]), DIALOGUES), runs)
    relabelled = (DIALOGUES[0].model_copy(update={"references": ()}), *DIALOGUES[1:])
    with pytest.raises(ValueError, match=f"^b: dialogue '{DIALOGUES[0].id}' is labelled or worded otherwise"):
        paired(NAMES, (DIALOGUES, relabelled), runs)


def app() -> typer.Typer:
    found = typer.Typer()
    found.command()(compare)
    return found


def test_the_command(tmp_path: Path) -> None:
    for name, after in (("one", "never"), ("two", "values_seen")):
        save_evaluations(
            tmp_path / name / "evaluations.json", DIALOGUES, {"before": KNOWN["never"], "after": KNOWN[after]}
        )
    fewer = trivial(DIALOGUES[:9])["always"]
    save_evaluations(tmp_path / "three" / "evaluations.json", DIALOGUES[:9], {"after": fewer})
    out = tmp_path / "out.json"
    done = CliRunner().invoke(
        app(), [str(tmp_path / "one"), str(tmp_path / "two"), "--resamples", "100", "--json", str(out)]
    )
    assert done.exit_code == 0, done.output
    found = Paired.model_validate_json(out.read_text())
    assert (found.first, found.second) == ("one", "two") and found.metrics["recall"].clear
    for arguments, said in (
        (["one", "three"], "was not played there, but in one"),
        (["one", "four"], "no such file"),
        (["one", "two", "--system", "best"], "no system 'best': one of before, after"),
    ):
        folders = [str(tmp_path / a) if a in ("one", "two", "three", "four") else a for a in arguments]
        failed = CliRunner().invoke(app(), folders)
        assert isinstance(failed.exception, ProactorError) and said in str(failed.exception)
