"""The readers on the real files: counts, and their windows against the ones that come with the data."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proactor import windows
from proactor.sources import load


def compact(file: Path, limit: int) -> dict[str, dict[str, Any]]:
    with gzip.open(file, "rt") as stream:
        records = [json.loads(line) for _, line in zip(range(limit), stream, strict=False)]
    return {record["dialogue_id"]: record for record in records}


@pytest.fixture(scope="module")
def sgd(data_dir: Path) -> Path:
    folder = data_dir / "sgd"
    if not (folder / "dev.jsonl.gz").is_file():
        pytest.skip(f"no SGD in {folder}")
    return folder


def test_sgd_against_the_annotations_of_the_data(sgd: Path) -> None:
    corpus = load("sgd", sgd / "dev.jsonl.gz", limit=400)
    assert corpus.counters["dialogues"] == 400 and corpus.counters["null"] == 0
    records = compact(sgd / "dev.jsonl.gz", 10_000)
    agree: Counter[str] = Counter()
    for dialogue in corpus.dialogues:
        actions = records[dialogue.id]["actions"]
        assert [r.observed_trigger for r in dialogue.references] == [a["window"]["latest"] + 1 for a in actions]
        previous: dict[str, int] = {}
        for reference, action in zip(dialogue.references, actions, strict=True):
            assert reference.ready and reference.coverage and reference.values_seen
            evidence = action["evidence"]
            first = reference.name not in previous
            previous[reference.name] = reference.ready[1]
            assert reference.coverage[0] <= evidence["earliest_all_params"] + 1 or not first
            expected = evidence["earliest_all_params"]
            if action["transactional"]:
                expected = max(expected, evidence["affirm_turn"])
                assert corpus.catalog[reference.name].confirm
            if first:
                agree["windows"] += reference.ready[0] == expected + 1
                agree["references"] += 1
                begin = reference.coverage[0] == evidence["intent_turn"] + 1
                agree["intents"] += begin
    assert agree["references"] > 900 and agree["intents"] == agree["references"]
    assert agree["windows"] >= 0.99 * agree["references"]


def test_sgd_release_file_equals_the_compact_one(sgd: Path, tmp_path: Path) -> None:
    raw = load("sgd", sgd / "raw_example_train_dialogues_001.json.gz")
    records = compact(sgd / "train.jsonl.gz", 200)
    same = [json.dumps(records[d.id]) + "\n" for d in raw.dialogues]
    (tmp_path / "train.jsonl").write_text("".join(same))
    (tmp_path / "schema.json").write_text((sgd / "schema_train.json").read_text())
    assert len(raw) == 128 and load("sgd", tmp_path).dialogues == raw.dialogues


def test_star_against_the_data(data_dir: Path) -> None:
    folder = data_dir / "star"
    if not folder.is_dir():
        pytest.skip(f"no STAR in {data_dir}")
    corpus = load("star", folder, limit=300)
    records = compact(folder / "star_dev.jsonl.gz", 10_000)
    for dialogue in corpus.dialogues:
        actions = records[dialogue.id]["actions"]
        latest = {a["last_visible_turn"] + 1 for a in actions}
        assert {r.observed_trigger for r in dialogue.references} == latest
        for reference in dialogue.references:
            assert reference.ready is None or reference.ready[1] == reference.observed_trigger
            if reference.name.endswith(".book"):
                assert windows.width(reference) in (0, None)
    counters = corpus.counters
    assert counters["null"] == sum(n for name, n in counters.items() if name.startswith("null_"))
    assert 0.4 < counters["null"] / counters["references"] < 0.55


def test_abcd_counts(data_dir: Path) -> None:
    folder = data_dir / "abcd"
    if not folder.is_dir():
        pytest.skip(f"no ABCD in {data_dir}")
    corpus = load("abcd", folder)
    assert (corpus.counters["dialogues"], corpus.counters["references"], corpus.counters["null"]) == (30, 100, 56)
    for dialogue in corpus.dialogues:
        users = set(dialogue.decision_turns)
        assert all(set(r.ready) <= users for r in dialogue.references if r.ready)
