"""Tables for a terminal: whole where there is room, readable at 80 columns."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from proactor.calibration.tradeoff import collect_trade_offs, policies, trade_off_table
from proactor.console import Terminal
from proactor.evaluation.breakdown import breakdown, breakdown_tables
from proactor.evaluation.paired import compare_runs, paired_tables
from proactor.evaluation.play import evaluate_policies
from proactor.scoring.bootstrap import KEYS
from proactor.sources import load
from proactor.tables import Column, FittedTable, metrics_table, plain_name

DIALOGUES = load("synthetic", limit=12, seed=4).dialogues
KNOWN = evaluate_policies(DIALOGUES)


def printed(table: FittedTable, width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def wide_table() -> FittedTable:
    columns = [
        Column("tool", name=True),
        Column("fires"),
        Column("minor part", 2),
        Column("first-fire F1"),
        Column("least of all", 3),
        Column("some", 1),
    ]
    table = FittedTable("by tool", columns, caption="a caption")
    for name in ("set_reminder", "a_tool_with_a_name_that_is_much_too_long_for_a_column"):
        table.add_row(name, "12", r"0.31 \[0.20, 0.40]", r"[bold]0.35 \[0.25, 0.50][/bold]", "7%", "0.111")
    return table


def test_a_table_with_room_shows_everything() -> None:
    text = printed(wide_table(), 160)
    assert "left out" not in text and "0.35 [0.25, 0.50]" in text and "least of all" in text
    assert "a_tool_with_a_name_that_is_much_too_long_for_a_column" in text


def test_columns_leave_in_their_order_and_are_named() -> None:
    order = ["least of all", "minor part", "some"]
    left = []
    for width in range(120, 55, -1):
        text = printed(wide_table(), width)
        assert "…" not in text and max(map(len, text.splitlines())) <= width
        assert all(figure in text for figure in ("a caption", "12", "0.35", "[0.25, 0.50]"))
        note = " ".join(text.split()).partition(f"left out at {width} columns: ")[2]
        named = set(filter(None, note.split(", ")))
        assert named == set(order[: len(named)])
        left.append(len(named))
    assert left == sorted(left) and set(left) == {0, 1, 2, 3}


@pytest.mark.parametrize("width", [80, 100, 160])
def test_no_table_of_the_commands_is_cut(width: int) -> None:
    systems = {name: evaluation.metrics for name, evaluation in KNOWN.items()}
    change = {key: {"estimate": -93.333, "low": -103.333, "high": -83.333} for key in KEYS}
    pair = {"before": systems["never"], "after": systems["always"]}
    compared = compare_runs(
        ("a-run", "another-run"), (DIALOGUES, DIALOGUES), (KNOWN["never"], KNOWN["always"]), resamples=100
    )
    tables = [
        *breakdown_tables(breakdown(DIALOGUES, KNOWN["always"], resamples=100)),
        *paired_tables(compared, KEYS),
        metrics_table("dialogues", pair | systems, KEYS, change),
        trade_off_table(collect_trade_offs("test", DIALOGUES, 1.0, policies(DIALOGUES))),
    ]
    for table in tables:
        text = printed(table, width)
        assert "…" not in text and max(map(len, text.splitlines())) <= width
    by_tool = printed(tables[0], width)
    for tool in {r.name for d in DIALOGUES for r in d.references}:
        assert f" {tool} " in by_tool, "a name stays in one piece"
    assert all(title in by_tool for title in ("refs", "fires", "first-fire"))


def test_a_metric_has_a_plain_name() -> None:
    assert all("_" not in plain_name(key) for key in (*KEYS, "held_out_loss", "some_new_key"))


def test_names_that_look_like_markup_stay_as_they_are() -> None:
    metrics = next(iter(KNOWN.values())).metrics
    text = printed(metrics_table("run [/x]", {"[a]": metrics, "after": metrics}, KEYS), 100)
    assert "run [/x]" in text and "[a]" in text


def test_progress_of_dialogues_of_any_name() -> None:
    out = io.StringIO()
    with Terminal(Console(file=out, force_terminal=True, width=100)) as ui:
        ui.phase("playing [/x]", 2)
        ui.step("chat [/y]")
        ui.substep("loading [/z]", 1, 2)
    assert all(name in out.getvalue() for name in ("playing [/x]", "chat [/y]", "loading [/z]"))
