"""What every reader does: bad lines and files are named, limits sample, and a bug stays a bug."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Dialogue
from proactor.files import SourceError
from proactor.sources import load, split_of
from proactor.sources.base import Malformed, convert
from tests.proactor.sources.test_sgd import SCHEMA, SGD, write_sgd


@pytest.mark.parametrize(
    ("lines", "number", "what"),
    [
        ([SGD, ""], 2, "empty line"),
        ([SGD, "{}"], 2, "no dialogue_id"),
        (['{"dialogue_id": "x", "turns": ['], 1, "not JSON"),
        ([SGD, SGD], 2, "appears twice"),
        ([{"dialogue_id": "x"}], 1, "'turns' is missing"),
        ([SGD | {"turns": []}], 1, "no turns"),
        ([SGD | {"turns": [{"speaker": "USER", "text": " ", "frames": []}]}], 1, "empty turn"),
        ([SGD | {"turns": 3}], 1, "turns: Input should be a valid list"),
        ([SGD | {"services": ["Cars_1"]}], 1, "'Cars_1' is missing"),
        ([SGD | {"turns": SGD["turns"][1:]}], 1, "before the user spoke"),  # type: ignore[index]
        (["[1]"], 1, "no dialogue_id"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[Any], number: int, what: str) -> None:
    with pytest.raises(SourceError) as caught:
        load("sgd", write_sgd(tmp_path, *lines))
    assert str(caught.value).startswith(f"{tmp_path / 'train.jsonl.gz'}:{number}: ") and what in str(
        caught.value
    )
    assert "\n" not in str(caught.value)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file, nor a folder with"):
        load("sgd", tmp_path)
    folder = write_sgd(tmp_path, SGD)
    (folder / "schema.json").write_text("[\n{,}]")
    with pytest.raises(SourceError, match=r"schema\.json:2: not JSON"):
        load("sgd", folder)
    write_sgd(tmp_path, *(SGD | {"dialogue_id": f"sgd/train/{i}"} for i in range(50)))
    whole = (tmp_path / "train.jsonl.gz").read_bytes()
    (tmp_path / "train.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"train\.jsonl\.gz:\d+: cannot be read"):
        load("sgd", folder)
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "raw" / "dialogues_001.json").write_text('[\n\n{"dialogue_id": 7}]')
    with pytest.raises(SourceError, match=r"dialogues_001\.json:dialogue 1: no dialogue_id"):
        load("sgd", tmp_path / "raw")


def test_limit_samples_before_it_parses(tmp_path: Path) -> None:
    broken = '{"dialogue_id": "sgd/train/%s", nothing of this is JSON'
    good = [SGD | {"dialogue_id": f"sgd/train/{i}"} for i in range(40)]
    folder = write_sgd(tmp_path, *good)
    few, more = load("sgd", folder, limit=5, seed=1), load("sgd", folder, limit=15, seed=1)
    chosen = {d.id for d in few.dialogues}
    assert len(chosen) == 5 and chosen < {d.id for d in more.dialogues}
    assert chosen != {d.id for d in load("sgd", folder, limit=5, seed=2).dialogues}
    write_sgd(tmp_path, *(r if r["dialogue_id"] in chosen else broken % i for i, r in enumerate(good)))
    assert {d.id for d in load("sgd", folder, limit=5, seed=1).dialogues} == chosen
    write_sgd(tmp_path, *good)
    for split in ("train", "dev", "test"):
        assert {split_of(d.id) for d in load("sgd", folder, split=split).dialogues} <= {split}  # type: ignore[arg-type]


@pytest.mark.parametrize("bug", [TypeError, AttributeError, IndexError, ValueError])
def test_an_exception_of_a_reader_is_a_bug(bug: type[Exception]) -> None:
    def build(record: dict[str, Any], counters: Counter[str]) -> Dialogue:
        raise bug("planted")

    with pytest.raises(bug, match="planted"):
        convert("file:1", {}, build, Counter())


def test_a_refusal_is_prefixed_once() -> None:
    for error, line in [
        (Malformed("no turn 7"), "file:1: no turn 7"),
        (SourceError("other:2: not JSON"), "other:2: not JSON"),
        (KeyError("turns"), "file:1: key 'turns' is missing"),
    ]:

        def build(record: dict[str, Any], counters: Counter[str], error: Exception = error) -> Dialogue:
            raise error

        with pytest.raises(SourceError) as caught:
            convert("file:1", {}, build, Counter())
        assert str(caught.value) == line
