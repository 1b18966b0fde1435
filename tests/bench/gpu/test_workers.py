"""Processes of the GPU benchmark: one that dies, hangs or loses its card costs a row, and others follow."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from bench.gpu import workers
from bench.gpu.workers import Workers
from tests.bench.gpu.fake_worker import TASKS, serve


def run(name: str = "job", left: float = 600.0, limit: float = 30.0) -> tuple[list[Any], list[str]]:
    rows: list[Any] = []
    tasks: Any = [SimpleNamespace(name=task, limit=1.0 if task == "hang" else limit) for task in TASKS]
    job: Any = SimpleNamespace(name=name)
    setting: Any = SimpleNamespace(dry=False)
    with Workers(lambda: left) as running:
        return rows, running.run(job, setting, tasks, rows.extend)


@pytest.fixture(autouse=True)
def without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "serve", serve)


def test_what_breaks_a_process_costs_its_row_alone() -> None:
    rows, without = run()
    assert [row["name"] for row in rows] == list(TASKS)
    assert without == []
    fine, die, hang, lost, last = rows
    assert die["failed"] == "the process ended with 7: a last word"
    assert die["log"] == "first words\na last word"
    assert hang["failed"] == "stopped after 1 s"
    assert len({fine["pid"], lost["pid"], last["pid"]}) == 3


def test_a_job_that_never_begins_is_given_up() -> None:
    rows, without = run("never")
    (row,) = rows
    assert (row["name"], row["failed"]) == ("never", "the process ended with 3: no such device")
    assert without == []


def test_the_end_of_the_time_leaves_rows_out() -> None:
    rows, without = run(left=0.0)
    assert (rows, without) == ([], list(TASKS))


def test_processes_do_not_outlive_the_run() -> None:
    with Workers(lambda: 1.0) as running:
        spare = running._spare.process
        assert spare.is_alive()
    assert not spare.is_alive()
