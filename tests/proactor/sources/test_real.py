"""The readers on the real files: counts, and their windows against the ones that come with the data."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import windows
from proactor.sources import Corpus, load


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
        assert [r.observed_trigger for r in dialogue.references] == [
            a["window"]["latest"] + 1 for a in actions
        ]
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
    assert (corpus.counters["dialogues"], corpus.counters["references"], corpus.counters["null"]) == (
        30,
        100,
        56,
    )
    for dialogue in corpus.dialogues:
        users = set(dialogue.decision_turns)
        assert all(set(r.ready) <= users for r in dialogue.references if r.ready)


def present(data_dir: Path, name: str) -> Path:
    folder = data_dir / name
    if not folder.is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    return folder


def on_decisions(corpus: Corpus) -> bool:
    """All windows begin and end where the agent decides."""
    return all(
        set(r.ready) <= set(dialogue.decision_turns)
        for dialogue in corpus.dialogues
        for r in dialogue.references
        if r.ready
    )


def test_abcd_release_sample_equals_the_compact_one(data_dir: Path) -> None:
    folder = present(data_dir, "abcd")
    known = {d.id: d for d in load("abcd", folder).dialogues}
    raw = load("abcd", folder / "raw_abcd_sample.json")
    assert len(raw) == 3 and all(known[d.id] == d for d in raw.dialogues)


def test_star_release_file_equals_the_compact_one(data_dir: Path) -> None:
    folder = present(data_dir, "star")
    (raw,) = load("star", folder / "raw_example_1.json").dialogues
    (record,) = compact(folder / "star_dev.jsonl.gz", 1).values()
    assert raw.id == record["dialogue_id"] == "star/1"
    assert [t.text for t in raw.turns] == [t["text"] for t in record["turns"]]
    (reference,), (action,) = raw.references, record["actions"]
    assert reference.ready == (action["window"]["earliest"] + 1, action["window"]["latest"] + 1)
    assert reference.value_turns == {name: turn + 1 for name, turn in action["value_turns"].items()}


def test_multiwoz_against_the_data(data_dir: Path) -> None:
    folder = present(data_dir, "multiwoz21")
    corpus = load("multiwoz", folder)
    counters = corpus.counters
    assert (counters["dialogues"], counters["references"], counters["null"]) == (999, 1039, 0)
    assert on_decisions(corpus) and all(t.confirm for t in corpus.catalog.tools)
    records = compact(folder / "val.jsonl.gz", 1_000)
    moved = 0
    for dialogue in corpus.dialogues:
        for reference, action in zip(dialogue.references, records[dialogue.id]["actions"], strict=True):
            earliest, latest = action["window"]["earliest"] + 1, action["window"]["latest"] + 1
            assert reference.ready and reference.ready[0] >= min(earliest, reference.ready[1])
            moved += reference.ready[1] != latest
    assert moved == counters["booked_earlier"] == 6
    assert (counters["width_0"], counters["wider"]) == (986, 53)


def test_smcalflow_against_the_programs(data_dir: Path) -> None:
    folder = present(data_dir, "smcalflow")
    corpus = load("smcalflow", folder, limit=250)
    records = compact(folder / "dev.jsonl.gz", 10_000)
    assert (
        on_decisions(corpus)
        and corpus.counters["width_0"] == corpus.counters["references"] - corpus.counters["null"]
    )
    agreed = 0
    for dialogue in corpus.dialogues:
        programs = {t["i"] + 1: t["program"] for t in records[dialogue.id]["turns"] if "program" in t}
        for reference in (*dialogue.references, *dialogue.withdrawn):
            changes = corpus.catalog[reference.name].confirm
            if changes and reference.ready:
                agreed += 1
                turn = reference.ready[0]
                assert "ConfirmAndReturnAction" in programs[turn] or "Choose" in programs[turn]
                assert reference.coverage and reference.coverage[0] < turn
            elif not changes:
                assert reference.ready == reference.coverage
        said = sum("ConfirmAndReturnAction" in program for program in programs.values())
        assert said <= sum(corpus.catalog[r.name].confirm for r in dialogue.references)
    assert agreed > 100


def test_taskmaster4_against_the_annotations(data_dir: Path) -> None:
    folder = present(data_dir, "taskmaster4")
    corpus = load("taskmaster4", folder, limit=300)
    with gzip.open(folder / "dev.jsonl.gz", "rt") as stream:
        records = {f"taskmaster4/{r['conversation_id']}": r for r in map(json.loads, stream)}
    assert len(records) == 3_000 and on_decisions(corpus)
    for dialogue in corpus.dialogues:
        calls = [
            (note["value"], number)
            for number, utterance in enumerate(records[dialogue.id]["utterances"], start=1)
            for note in utterance["annotations"]
            if note["name"] == "api_call"
        ]
        assert [(r.name, r.observed_trigger) for r in dialogue.references] == calls
        for reference in dialogue.references:
            if reference.name == "finish_order" and reference.ready:
                before = dialogue.turns[reference.ready[0] - 2]
                assert (
                    before.speaker == "agent" and reference.coverage and reference.coverage[0] < before.index
                )
    assert corpus.counters["unreadable_request"] == 0


def test_multidogo_counts(data_dir: Path) -> None:
    corpus = load("multidogo", present(data_dir, "multidogo_finance"))
    counters = corpus.counters
    assert (counters["dialogues"], counters["customer_only"], counters["references"]) == (1_924, 1_924, 0)
    assert (counters["turns"], counters["empty_utterance"]) == (15_213 + 2_167 - 10, 10)
    assert {d.domain for d in corpus.dialogues} == {"finance"} and len(corpus.catalog) == 0


def test_proactivebench_against_the_judgements(data_dir: Path) -> None:
    folder = present(data_dir, "proactivebench")
    corpus = load("proactivebench", folder)
    with gzip.open(folder / "reward_train.jsonl.gz", "rt") as stream:
        lines = [json.loads(line) for line in stream]
    needed = {
        tuple(f"[{o['time']}] {o['event']}".strip() for o in line["obs"]): line["help_needed"]
        for line in lines
    }
    assert (len(lines), len(corpus), corpus.counters["turns"], len(needed)) == (1_629, 16, 313, 313)
    for dialogue in corpus.dialogues:
        for turn in dialogue.decision_turns:
            seen = tuple(t.text for t in dialogue.turns[:turn])
            assert bool(windows.ready_at(dialogue, turn)) == needed[seen]
    assert corpus.counters["unjudged"] == corpus.counters["need_disputed"] == 0
    assert (corpus.counters["references"], corpus.counters["width_0"]) == (59, 30)
