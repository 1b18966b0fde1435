"""ABCD's release: the same conversation as the compact file has it, the cap of ABCD+, and its parts."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from proactor.files import SourceError
from proactor.sources import load

ONTOLOGY = {
    "actions": {
        "interaction": {"pull-up-account": ["customer_name", "phone"], "notify-team": ["company_team"]},
        "kb_query": {"ask": []},
    },
    "values": {
        "enumerable": {"customer_name": ["Joyce Wu"], "company_team": ["manager"]},
        "non_enumerable": {},
    },
}
SCENARIO = {"personal": {"customer_name": "joyce wu"}, "order": {}, "flow": "account", "subflow": "x"}
SCRIPT: list[tuple[str, str, list[Any] | None]] = [
    ("agent", "hi", None),
    ("customer", "Joyce Wu here, (690) 372 1211", None),
    ("action", "Account has been pulled up.", ["pull-up-account", ["joyce wu", "(690) 372-1211"]]),
    ("agent", "a manager will help", None),
    ("customer", "ok", None),
    ("action", "Searching", ["ask", []]),
    ("action", "Notified", ["notify-team", ["manager"]]),
    ("customer", "bye", None),
]


def raw(convo: int = 1, script: list[tuple[str, str, list[Any] | None]] = SCRIPT) -> dict[str, Any]:
    delexed = [
        {
            "speaker": who,
            "text": text.lower(),
            "turn_count": i,
            "candidates": [],
            "targets": ["x", "take_action", *given, -1] if given else ["x", None, None, [], -1],
        }
        for i, (who, text, given) in enumerate(script, start=1)
    ]
    return {
        "convo_id": convo,
        "scenario": SCENARIO,
        "original": [[w, t] for w, t, _ in script],
        "delexed": delexed,
    }


def compact() -> dict[str, Any]:
    spoken = [(who, text) for who, text, given in SCRIPT if given is None]
    return {
        "dialogue_id": "abcd/1",
        "flow": "account",
        "scenario": SCENARIO,
        "turns": [
            {"speaker": "USER" if who == "customer" else "AGENT", "text": text} for who, text in spoken
        ],
        "actions": [
            {
                "method": "pull-up-account",
                "values": ["joyce wu", "(690) 372-1211"],
                "value_turns": [1, 1],
                "last_visible_turn": 1,
                "window": {"earliest": 1, "latest": 1},
            },
            {"method": "ask", "values": [], "value_turns": [], "last_visible_turn": 3, "window": None},
            {
                "method": "notify-team",
                "values": ["manager"],
                "value_turns": [2],
                "last_visible_turn": 3,
                "window": {"earliest": 2, "latest": 3},
            },
        ],
    }


def folder(path: Path, content: Any, name: str = "abcd_v1.1.json.gz") -> Path:
    path.mkdir(exist_ok=True)
    (path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    data = json.dumps(content).encode()
    (path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


def test_release_gives_the_same(tmp_path: Path) -> None:
    expected = load("abcd", folder(tmp_path / "compact", compact(), "abcd_dev.jsonl")).dialogues
    parts = {"train": [raw()], "dev": [raw(2)], "test": []}
    corpus = load("abcd", folder(tmp_path / "raw", parts))
    assert corpus.dialogues[:1] == expected and len(corpus) == 2
    assert [r.ready for r in expected[0].references] == [(2, 2), None, (4, 4)]
    assert [d.id for d in load("abcd", tmp_path / "raw", part="dev").dialogues] == ["abcd/2"]
    sample = folder(tmp_path / "sample", [raw()], "raw_sample.json") / "raw_sample.json"
    assert load("abcd", sample).dialogues == expected


def test_the_full_file_comes_before_the_compact_one(tmp_path: Path) -> None:
    folder(tmp_path / "both", compact(), "abcd_dev.jsonl")
    assert len(load("abcd", folder(tmp_path / "both", {"train": [raw(1), raw(5)]}, "abcd_v1.1.json"))) == 2


def test_cap(tmp_path: Path) -> None:
    corpus = load("abcd", folder(tmp_path, {"train": [raw()]}), max_turns=2)
    (dialogue,) = corpus.dialogues
    assert len(dialogue.turns) == 2 and [r.name for r in dialogue.references] == ["pull-up-account"]
    assert corpus.counters["dialogues_cut"] == 1 and corpus.counters["actions_cut"] == 2
    whole = load("abcd", tmp_path, max_turns=5)
    assert len(whole.dialogues[0].turns) == 5 and whole.counters["dialogues_cut"] == 0


def test_what_cannot_be_placed_is_counted(tmp_path: Path) -> None:
    script = [
        ("action", "Searching", ["ask", []]),
        ("customer", " ", None),
        *SCRIPT,
        ("action", "?", [None, []]),
    ]
    corpus = load("abcd", folder(tmp_path, {"train": [raw(1, script)]}))
    assert len(corpus.dialogues[0].references) == 3
    assert [corpus.counters[k] for k in ("action_before_user", "empty_turn", "action_without_button")] == [
        1,
        1,
        1,
    ]


@pytest.mark.parametrize(
    ("content", "options", "what"),
    [
        ({"train": []}, {"part": "dev"}, "1: no part 'dev'"),
        ({"train": {}}, {}, "train: not a list"),
        ({"train": [{"scenario": {}}]}, {}, "train 1: no convo_id"),
        ({"train": [raw(1), raw(1)]}, {}, "train 2: dialogue 'abcd/1' appears twice"),
        ({"train": [raw() | {"delexed": []}]}, {}, "train 1: `original` and `delexed` are not of one length"),
        (3, {}, "1: no part 'all'"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: Any, options: dict[str, str], what: str) -> None:
    with pytest.raises(SourceError, match=f"abcd_v1.1.json.gz:{what}"):
        load("abcd", folder(tmp_path, content), **options)


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"values": 3}', '{"values": {"enumerable": {}}, "actions": ["x"]}']
)
def test_a_damaged_ontology_is_named(tmp_path: Path, content: str) -> None:
    place = folder(tmp_path, {"train": [raw()]})
    (tmp_path / "ontology.json").write_text(content)
    with pytest.raises(SourceError, match=r"ontology\.json: "):
        load("abcd", place)
