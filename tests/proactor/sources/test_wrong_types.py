"""A record with a part that is missing or of another type is read or refused, and nothing else escapes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from proactor.files import SourceError
from proactor.sources import load, star_raw
from tests.proactor.sources import (
    test_abcd,
    test_multiwoz,
    test_sgd,
    test_smcalflow,
    test_star,
    test_taskmaster4,
)

OTHERS = (None, -7, "x", '{"addons": 3, "attributes": ["x"], "menu_items": 3}', ["x"], {"x": None})


def changes(value: Any) -> Iterator[Any]:
    """Copies of a JSON value, each with one part of it left out or replaced by one of `OTHERS`."""
    yield from (other for other in OTHERS if other != value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: changed} for changed in changes(inner))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield value[:i] + value[i + 1 :]
            yield from ([*value[:i], changed, *value[i + 1 :]] for changed in changes(inner))


def write(file: Path, value: Any) -> Path:
    file.write_text(json.dumps(value) + "\n")
    return file


def sgd(folder: Path) -> Path:
    (folder / "schema.json").write_text(json.dumps(test_sgd.SCHEMA))
    return write(folder / "train.jsonl", test_sgd.SGD)


def sgd_release(folder: Path) -> Path:
    sgd(folder).unlink()
    return write(folder / "dialogues_001.json", [test_sgd.raw_sgd(test_sgd.SGD)])


def abcd(folder: Path) -> Path:
    (folder / "ontology.json").write_text(json.dumps(test_abcd.ONTOLOGY))
    return write(folder / "abcd.jsonl", test_abcd.compact())


def abcd_release(folder: Path) -> Path:
    abcd(folder).unlink()
    return write(folder / "abcd_v1.1.json", {"train": [test_abcd.raw()]})


def multiwoz_2_2(folder: Path) -> Path:
    dialogues, acts = test_multiwoz.release22()
    (folder / "dialog_acts.json").write_text(json.dumps(acts))
    return write(folder / "dialogues_001.json", dialogues)


def multiwoz_2_2_acts(folder: Path) -> Path:
    multiwoz_2_2(folder)
    return folder / "dialog_acts.json"


def star_release(folder: Path) -> Path:
    return test_star.write(folder, *test_star.EVENTS) / "dialogues" / "1.json"


def star(folder: Path) -> Path:
    file = star_release(folder)
    record = json.loads(file.read_text()) | {"dialogue_id": "star/1"}
    file.unlink()
    (folder / "apis.json").write_text(json.dumps({"ride": test_star.RIDE}))
    return write(folder / "star.jsonl", star_raw.compact(record, {"ride": test_star.RIDE}, Counter()))


def taskmaster4(folder: Path) -> Path:
    return write(folder / "dev.jsonl", test_taskmaster4.order(test_taskmaster4.START, test_taskmaster4.CHECK))


def smcalflow(folder: Path) -> Path:
    test_smcalflow.read(folder, test_smcalflow.PLAN)
    return folder / "dev.jsonl"


def smcalflow_release(folder: Path) -> Path:
    said, program, answer = test_smcalflow.PLAN
    user, agent = ({"original_text": text} for text in (said, answer))
    turn = {"user_utterance": user, "lispress": program, "agent_utterance": agent}
    return write(folder / "valid.dataflow_dialogues.jsonl", {"dialogue_id": "1", "turns": [turn]})


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("sgd", sgd),
        ("sgd", sgd_release),
        ("abcd", abcd),
        ("abcd", abcd_release),
        ("multiwoz", lambda folder: write(folder / "val.jsonl", test_multiwoz.compact())),
        ("multiwoz", lambda folder: write(folder / "data.json", test_multiwoz.release21())),
        ("multiwoz", multiwoz_2_2),
        ("multiwoz", multiwoz_2_2_acts),
        ("star", star),
        ("star", star_release),
        ("taskmaster4", taskmaster4),
        ("smcalflow", smcalflow),
        ("smcalflow", smcalflow_release),
    ],
)
def test_a_changed_record_is_read_or_refused(tmp_path: Path, name: str, make: Callable[[Path], Path]) -> None:
    file, refused = make(tmp_path), 0
    assert load(name, tmp_path).dialogues
    for changed in changes(json.loads(file.read_text())):
        write(file, changed)
        try:
            load(name, tmp_path)
        except SourceError as error:
            assert "\n" not in str(error)
            refused += 1
    assert refused > 30
