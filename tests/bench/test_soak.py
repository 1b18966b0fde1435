"""The soak: every kind of client in seconds; each check can fail."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import soak

SLOW = {"memory is flat", "sequences were preempted"}
"""Checks that a few seconds cannot meet."""


def test_every_kind_of_client_has_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(soak, "MODEL", {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1})
    soak.main(["--seconds", "1.5", "--results", str(tmp_path)])
    (file,) = tmp_path.glob("*/soak.json")
    record = json.loads(file.read_text())
    assert {name for name, passed in record["checks"].items() if not passed} <= SLOW, record["problems"]
    assert record["clients"] > 3 and record["outcomes"].keys() == soak.KINDS.keys()
    assert f"{record['clients']} clients" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"pages_used": 1}, "nothing is held"),
        ({"pages_parked": 1}, "nothing is held"),
        ({"waiting": 1}, "nothing is held"),
        ({"rows_computed": 131}, "rows are those of sampling and training"),
        ({"tokens_sampled": 49}, "tokens delivered were drawn"),
        ({"empty_steps": 1}, "versions are updates"),
        ({"preemptions": 0}, "sequences were preempted"),
    ],
)
def test_each_check_can_fail(change: dict[str, int], check: str) -> None:
    zero = ("pages_used", "pages_parked", "pages_reserved", "waiting", "running", "decoding")
    counters = dict.fromkeys((*zero, "empty_steps", "skipped_steps"), 0)
    counters |= {"rows_computed": 130, "tokens_computed": 100, "tokens_sampled": 50, "preemptions": 2}
    engine: Any = type("Engine", (), {"policy_version": 3})()
    played = soak.Soak(engine, 0)
    played.clients, played.delivered, played.updates, played.trained = 1, 50, 3, 30
    played.outcomes["sample"]["stop"] = 1
    assert all(soak.checks(played, counters, {"growth": 0.0}).values())
    found = soak.checks(played, counters | change, {"growth": 0.0})
    assert [name for name, passed in found.items() if not passed] == [check]
    assert not soak.checks(played, counters, {"growth": 0.1})["memory is flat"]
    played.clients = 2
    assert not soak.checks(played, counters, {"growth": 0.0})["each client has one outcome"]


def test_growth_counts_after_the_first_third() -> None:
    rising = soak.growth([(i, 100.0 if i < 30 else 200.0 + i) for i in range(90)])
    assert rising["mb_a_thousand_clients"] == pytest.approx(1000.0) and rising["growth"] > 0.1
    assert soak.growth([(i, 100.0 + 50.0 * (i >= 30)) for i in range(90)])["growth"] == 0.0
