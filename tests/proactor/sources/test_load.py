"""Readers on small corpora written here: what they make of a call, and what they say about bad lines."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Dialogue, Reference
from proactor.files import SourceError
from proactor.sources import load, split_of
from proactor.sources.base import Malformed, convert
from proactor.sources.star import plain_value

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


APIS = {
    "ride": {
        "input": [
            {"Name": "From", "Type": "ShortString", "ReadableName": "From"},
            {"Name": "Day", "Type": "Categorical", "Categories": ["Friday"], "ReadableName": "Day"},
            {
                "Name": "RequestType",
                "Type": "RequestType",
                "Categories": ["Check", "Book"],
                "ReadableName": "",
            },
        ],
        "required": ["From", "Day", "RequestType"],
    },
    "weather": {"input": [{"Name": "Day", "Type": "ShortString"}], "required": ["Day"]},
}


def query(method: str, last: int, window: tuple[int, int] | None, **fields: Any) -> dict[str, Any]:
    return {
        "method": method,
        "request": None,
        "parameters": {"Day": '"Friday"'},
        "value_turns": {"Day": 2},
        "unmatched": [],
        "untraced_required": [],
        "last_visible_turn": last,
        "depends_on_result_at_turn": None,
        "window": window and {"earliest": window[0], "latest": window[1]},
    } | fields


def star(
    tmp_path: Path, *actions: dict[str, Any], **opts: Any
) -> tuple[tuple[Reference, ...], dict[str, int]]:
    texts = ["hi", "where from?", "main street on friday", "ok", "fine", "it is possible", "do it", "done"]
    turns = [{"speaker": "AGENT" if i % 2 else "USER", "text": t} for i, t in enumerate(texts)]
    record = {
        "dialogue_id": "star/1",
        "domains": ["ride", None],
        "tasks": ["ride"],
        "turns": turns,
        "actions": actions,
    }
    (tmp_path / "apis.json").write_text(json.dumps(APIS))
    (tmp_path / "star.jsonl").write_text(json.dumps(record) + "\n")
    corpus = load("star", tmp_path, **opts)
    assert corpus.catalog["ride.book"].confirm and corpus.catalog["ride.check"].effect == "read"
    return corpus.dialogues[0].references, corpus.counters


def test_star_windows(tmp_path: Path) -> None:
    check, book, untraced, unmatched, repeat = star(
        tmp_path,
        query("ride", 4, (1, 4), request="Check", parameters={"Day": '"Friday"', "RequestType": '"Check"'}),
        query("ride", 6, (4, 6), request="Book"),
        query("weather", 2, (2, 2), untraced_required=["Day"]),
        query("weather", 4, None, unmatched=["Day"]),
        query("weather", 6, (2, 6), depends_on_result_at_turn=2),
    )[0]
    assert (check.name, check.params, check.coverage, check.ready) == (
        "ride.check",
        {"Day": "Friday"},
        (3, 5),
        (3, 5),
    )
    assert (book.name, book.ready, book.coverage, book.values_seen) == ("ride.book", (7, 7), (3, 7), 3)
    assert (untraced.ready, untraced.null_reason, untraced.observed_trigger) == (None, "untraced", 3)
    assert (unmatched.ready, unmatched.null_reason) == (None, "unmatched")
    assert (repeat.ready, repeat.coverage) == ((7, 7), (7, 7))
    (offered,) = star(tmp_path, query("weather", 4, (3, 4)))[0]
    assert offered.ready == (5, 5)  # opened by the agent's turn 4: decided after the user's next


def test_star_counts_what_it_drops(tmp_path: Path) -> None:
    twice = query("weather", 2, (2, 2), parameters={"Day": '"Friday"', "Place": "null"})
    references, counters = star(tmp_path, twice, twice)
    assert len(references) == 1 and counters["duplicate_call"] == 1 and counters["empty_value"] == 1
    untraced = query("ride", 6, (4, 6), request="Book", untraced_required=["From"])
    assert star(tmp_path, untraced)[0][0].ready is None
    assert star(tmp_path, untraced, trust_bookings=True)[0][0].ready == (7, 7)


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ('"5 pm"', "5 pm"),
        ('" Broadway and Main"', "Broadway and Main"),
        ("3", "3"),
        ("True", "True"),
        ("null", None),
        ("", None),
        ("api.is_at_most(900)", "at most 900"),
        ('api.is_one_of(["2 pm"])', "2 pm"),
        ('api.is_one_of(["A","B"])', "A or B"),
        ('api.is_not("Thai")', "not Thai"),
        ("api.is_one_of(null)", None),
        ('["8 pm"]', "8 pm"),
        ("bare words", "bare words"),
    ],
)
def test_star_values(raw: str, plain: str | None) -> None:
    assert plain_value(raw) == plain


ONTOLOGY = {
    "actions": {
        "interaction": {
            "pull-up-account": ["customer_name", "account_id"],
            "offer-refund": ["amount"],
            "send-link": [],
        },
        "faq_policy": {"search-faq": []},
    },
    "values": {"enumerable": {"customer_name": ["Joyce Wu"]}, "non_enumerable": {}},
}


def test_abcd(tmp_path: Path) -> None:
    texts = [("AGENT", "hi"), ("USER", "I am Joyce Wu"), ("USER", "X12"), ("AGENT", "wait"), ("USER", "ok")]
    record = {
        "dialogue_id": "abcd/1",
        "flow": "account",
        "scenario": {"personal": {"account_id": "x12"}, "order": {}},
        "turns": [{"speaker": s, "text": t} for s, t in texts],
        "actions": [
            {
                "method": "pull-up-account",
                "values": ["x12", "joyce wu"],
                "value_turns": [2, 1],
                "last_visible_turn": 3,
                "window": {"earliest": 2, "latest": 3},
            },
            {
                "method": "offer-refund",
                "values": ["40"],
                "value_turns": [None],
                "window": None,
                "last_visible_turn": 4,
            },
            {"method": "search-faq", "values": [], "value_turns": [], "window": None, "last_visible_turn": 4},
            {
                "method": "send-link",
                "values": [],
                "value_turns": [],
                "window": {"earliest": 3, "latest": 3},
                "last_visible_turn": 3,
            },
        ],
    }
    (tmp_path / "ontology.json").write_text(json.dumps(ONTOLOGY))
    (tmp_path / "abcd_dev.jsonl").write_text(json.dumps(record) + "\n")
    corpus = load("abcd", tmp_path)
    pull, refund, faq, link = corpus.dialogues[0].references
    assert pull.params == {"account_id": "x12", "customer_name": "joyce wu"}
    assert (pull.coverage, pull.ready, pull.values_seen) == (
        (2, 3),
        (3, 3),
        3,
    )  # turn 4 is the agent's: it can not decide there
    assert (refund.params, refund.ready, refund.null_reason) == ({"amount": "40"}, None, "unmatched")
    assert (faq.ready, faq.null_reason, link.null_reason) == (None, "no_values", "no_decision_turn")
    assert corpus.counters["null"] == 3 and corpus.counters["slot_by_shape"] == 1
    assert (
        corpus.catalog["offer-refund"].effect == "irreversible"
        and corpus.catalog["search-faq"].effect == "read"
    )


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
