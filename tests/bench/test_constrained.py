"""The benchmark of constraints: every schema is kept to, and what is not is told apart."""

from __future__ import annotations

import argparse

import pytest

from bench import constrained
from bench.constrained_schemas import SCHEMAS
from proactor.engine import Engine

pytest.importorskip("llguidance")
pytest.importorskip("jsonschema")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    folder = constrained.write_model(tmp_path_factory.mktemp("constrained") / "model")
    return Engine.load(folder, max_batch=64, kv_tokens=32 * 1024)


def test_a_text_of_every_schema_is_valid(engine: Engine) -> None:
    found = constrained.validity(engine, len(SCHEMAS))
    assert found["outputs"] == found["valid"] == found["schemas"] == 50 and not found["wrong"]


def test_what_is_invalid_is_counted(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constrained, "SCHEMAS", {"flag": {"type": "boolean"}})
    monkeypatch.setattr(constrained.json, "loads", lambda text: text)
    found = constrained.validity(engine, 3)
    assert (found["outputs"], found["valid"], found["invalid"]) == (3, 0, 3)
    assert "is not of type 'boolean'" in found["wrong"]["flag"]


def test_costs(engine: Engine) -> None:
    found = constrained.cost(engine, 2, argparse.Namespace(repeats=1, tokens=3))
    assert found["batch"] == 2 and min(found[f"{way}_ms"] for way in ("free", "mask", "constraint")) > 0
    constrained.show({"model": "m", "vocabulary": 1, "threads": 1, "cost": [found]})
