"""SGD: windows from states, assents and calls, in the compact form and as released."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from proactor.sources import load

SCHEMA = [
    {
        "service_name": "Tables_1",
        "description": "tables",
        "slots": [
            {"name": "place", "description": "", "is_categorical": False, "possible_values": []},
            {"name": "seats", "description": "", "is_categorical": True, "possible_values": ["1", "2"]},
            {
                "name": "outside",
                "description": "",
                "is_categorical": True,
                "possible_values": ["True", "False"],
            },
        ],
        "intents": [
            {
                "name": "Reserve",
                "description": "",
                "is_transactional": True,
                "required_slots": ["place"],
                "optional_slots": {"seats": "2"},
            },
            {
                "name": "Find",
                "description": "",
                "is_transactional": False,
                "required_slots": ["place"],
                "optional_slots": {"outside": "dontcare"},
            },
        ],
    }
]


def user(text: str, acts: list[str], intent: str, **slots: str) -> dict[str, Any]:
    return {
        "speaker": "USER",
        "text": text,
        "frames": [
            {
                "service": "Tables_1",
                "acts": [[a, "", []] for a in acts],
                "intent": intent,
                "slots": {k: [v] for k, v in slots.items()},
            }
        ],
    }


def system(text: str, acts: list[str], call: tuple[str, dict[str, str]] | None = None) -> dict[str, Any]:
    frame: dict[str, Any] = {"service": "Tables_1", "acts": [[a, "", []] for a in acts]}
    if call:
        frame["call"] = {"method": call[0], "parameters": call[1]}
    return {"speaker": "SYSTEM", "text": text, "frames": [frame]}


RESERVE = ("Reserve", {"place": "Luigi's", "seats": "2"})
SGD = {
    "dialogue_id": "sgd/train/1",
    "services": ["Tables_1"],
    "turns": [
        user("find a place like luigi's", [], "Find", place="luigi's"),
        system("there is Luigi's", [], ("Find", {"place": "luigi's"})),
        user("a table please", [], "Reserve", place="luigi's"),
        system("for how many?", ["REQUEST"]),
        user("two, I mean 2", [], "Reserve", place="luigi's", seats="2"),
        system("2 at luigi's?", ["CONFIRM"]),
        user("is it good?", ["NEGATE"], "Reserve", place="luigi's", seats="2"),
        system("yes. 2 at luigi's?", ["CONFIRM"]),
        user("ok", ["AFFIRM"], "Reserve", place="luigi's", seats="2"),
        system("it failed. try again?", [], RESERVE),
        user("sure", ["AFFIRM"], "Reserve", place="luigi's", seats="2"),
        system("booked", [], RESERVE),
    ],
}


def write_sgd(folder: Path, *records: Any) -> Path:
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    with gzip.open(folder / "train.jsonl.gz", "wt") as file:
        file.writelines((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
    return folder


def raw_sgd(record: dict[str, Any]) -> dict[str, Any]:
    """The same dialogue in the release's own form."""
    turns = []
    for turn in record["turns"]:
        frames = []
        for frame in turn["frames"]:
            acts = [{"act": a, "slot": s, "values": v, "canonical_values": v} for a, s, v in frame["acts"]]
            other: dict[str, Any] = {"service": frame["service"], "actions": acts, "slots": []}
            if "slots" in frame:
                other["state"] = {
                    "active_intent": frame["intent"],
                    "requested_slots": [],
                    "slot_values": frame["slots"],
                }
            if "call" in frame:
                other |= {"service_call": frame["call"], "service_results": []}
            frames.append(other)
        turns.append({"speaker": turn["speaker"], "utterance": turn["text"], "frames": frames})
    return {
        "dialogue_id": record["dialogue_id"].rsplit("/", 1)[1],
        "services": record["services"],
        "turns": turns,
    }


def test_sgd_windows(tmp_path: Path) -> None:
    corpus = load("sgd", write_sgd(tmp_path, SGD))
    find, first, retry = corpus.dialogues[0].references
    assert (find.name, find.coverage, find.ready, find.values_seen) == ("Tables_1.Find", (1, 1), (1, 1), 1)
    # ready only after the AFFIRM to the last CONFIRM, although all values were there four turns before
    assert (first.coverage, first.ready, first.values_seen, first.observed_trigger) == ((3, 9), (9, 9), 5, 9)
    assert first.value_turns == {"place": 1, "seats": 5}
    assert (retry.coverage, retry.ready) == ((11, 11), (11, 11))
    assert corpus.counters["opened_by_assent"] == 1 and corpus.counters["repeat_call"] == 1
    tool = corpus.catalog["Tables_1.Reserve"]
    assert tool.confirm and tool.effect == "write" and tool.required == ("place",)
    assert [p.type for p in tool.parameters] == ["string", "integer"]
    assert not corpus.catalog["Tables_1.Find"].confirm and corpus.catalog["Tables_1.Find"].effect == "read"
    assert corpus.catalog["Tables_1.Find"].parameters[1].type == "boolean"


def test_sgd_wide_window_and_spelling(tmp_path: Path) -> None:
    turns = [
        user("find Luigi's", [], "Find", place="Luigi's"),
        system("one moment", []),
        user("outside", [], "Find", place="Luigi's", outside="True"),
        system("still looking", []),
        user("ok", [], "Find", place="Luigi's", outside="True"),
        system("found", [], ("Find", {"place": "Luigi's Ristorante", "outside": "True"})),
    ]
    turns[4]["frames"][0]["slots"]["place"].append("Luigi's Ristorante")
    for turn in turns[2::2]:
        turn["frames"][0]["slots"]["place"] = ["Luigi's", "Luigi's Ristorante"]
    folder = write_sgd(tmp_path, SGD | {"turns": turns})
    (reference,) = load("sgd", folder).dialogues[0].references
    assert reference.coverage == (1, 5) and reference.ready == (3, 5)
    assert reference.params == {"place": "Luigi's", "outside": "True"}
    assert reference.accepts("place", "luigi's ristorante") and reference.value_turns == {
        "place": 1,
        "outside": 3,
    }
    (canonical,) = load("sgd", folder, values="canonical").dialogues[0].references
    assert canonical.params["place"] == "Luigi's Ristorante" and canonical.accepts("place", "Luigi's")


@pytest.mark.parametrize(
    ("acts", "ready"),
    [
        ((["CONFIRM"], ["AFFIRM"]), (5, 5)),
        ((["REQUEST"], ["AFFIRM"]), None),  # agrees to something else
        ((["CONFIRM"], ["THANK_YOU"]), None),
        (([], []), None),
    ],
)
def test_sgd_without_assent_the_window_is_unknown(
    tmp_path: Path, acts: tuple[list[str], list[str]], ready: tuple[int, int] | None
) -> None:
    slots = {"place": "Luigi's", "seats": "2"}
    turns = [
        user("a table for 2 at Luigi's", [], "Reserve", **slots),
        system("hm", []),
        user("please", ["AFFIRM"] if acts[0] == ["CONFIRM"] else [], "Reserve", **slots),
        system("well", acts[0]),
        user("hm", acts[1], "Reserve", **slots),
        system("failed", [], RESERVE),
        user("pity", [], "Reserve", **slots),
        system("done", [], RESERVE),
    ]
    corpus = load("sgd", write_sgd(tmp_path, SGD | {"turns": turns}))
    first, second = corpus.dialogues[0].references
    assert (first.ready, first.coverage) == (ready, (1, 5))
    assert (second.ready, second.coverage, second.null_reason) == (None, (7, 7), "no_assent")
    assert corpus.counters["null_no_assent"] == (1 if ready else 2)


@pytest.mark.parametrize(("intent", "slots"), [("Find", {}), ("NONE", {"place": "the museum"})])
def test_sgd_call_that_the_state_does_not_explain_is_unknown(
    tmp_path: Path, intent: str, slots: dict[str, str]
) -> None:
    turns = [user("hello", [], intent, **slots), system("found", [], ("Find", {"place": "the museum"}))]
    corpus = load("sgd", write_sgd(tmp_path, SGD | {"turns": turns}))
    (reference,) = corpus.dialogues[0].references
    assert (reference.ready, reference.coverage, reference.null_reason) == (None, None, "untraced")
    assert corpus.counters["null_untraced"] == 1


def test_sgd_value_arrives_when_the_state_has_it_as_the_call_does(tmp_path: Path) -> None:
    turns = [
        user("find that Luigi's", [], "Find", place="Luigi's"),
        system("Luigi's Ristorante?", []),
        user("yes", [], "Find", place="Luigi's"),
        system("found", [], ("Find", {"place": "Luigi's Ristorante"})),
    ]
    turns[2]["frames"][0]["slots"]["place"] = ["Luigi's", "Luigi's Ristorante", "the Italian"]
    (reference,) = load("sgd", write_sgd(tmp_path, SGD | {"turns": turns})).dialogues[0].references
    assert (
        reference.coverage == (1, 3) and reference.ready == (3, 3) and reference.value_turns == {"place": 1}
    )
    assert reference.params == {"place": "Luigi's"} and reference.accepts("place", "the italian")


def test_sgd_required_only_opens_earlier(tmp_path: Path) -> None:
    turns = [
        user("find Luigi's", [], "Find", place="Luigi's"),
        system("one moment", []),
        user("outside", [], "Find", place="Luigi's", outside="True"),
        system("found", [], ("Find", {"place": "Luigi's", "outside": "True"})),
    ]
    folder = write_sgd(tmp_path, SGD | {"turns": turns})
    assert load("sgd", folder).dialogues[0].references[0].ready == (3, 3)
    assert load("sgd", folder, params="required").dialogues[0].references[0].ready == (1, 3)


def test_sgd_release_format_gives_the_same(tmp_path: Path) -> None:
    (tmp_path / "compact").mkdir()
    (tmp_path / "raw" / "train").mkdir(parents=True)
    compact = load("sgd", write_sgd(tmp_path / "compact", SGD))
    (tmp_path / "raw" / "train" / "schema.json").write_text(json.dumps(SCHEMA))
    (tmp_path / "raw" / "train" / "dialogues_001.json").write_text(json.dumps([raw_sgd(SGD)]))
    raw = load("sgd", tmp_path / "raw")
    assert (
        raw.dialogues == compact.dialogues
        and raw.catalog == compact.catalog
        and raw.counters == compact.counters
    )
    assert load("sgd", tmp_path / "raw" / "train").dialogues == compact.dialogues
