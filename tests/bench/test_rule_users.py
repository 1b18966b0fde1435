"""The script that prints the rates of the rule users: on tasks of our own each line is there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.rule_users import main
from tests.proactor.environments import own_tasks, shop


def test_the_rates_of_our_own_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "functions.json").write_text(json.dumps(own_tasks.FUNCTIONS))
    (tmp_path / "intentions.json").write_text(json.dumps(own_tasks.INTENTIONS))
    (tmp_path / "tau.json").write_text(json.dumps(shop.TASKS))
    for name, table in shop.TABLES.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    assert main(["--data", str(tmp_path), "--database", str(tmp_path)]) == 0
    lines = {line[2:26].strip(): line[26:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["its inquiry"][:3] == ["8", "of", "8"]
    assert lines["reward 1"][:3] == ["4", "of", "4"]
    assert lines["names its orders"][:3] == ["3", "of", "4"]  # one says which item, not which order
    assert lines["solved"][2] == "6" and int(lines["solved"][0]) >= 5
