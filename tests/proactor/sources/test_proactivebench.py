"""ProactiveBench on streams written here: prefixes become streams, and need becomes windows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from proactor.dialogue import Action, Status
from proactor.dialogue.matching import Timing, classify
from proactor.files import SourceError
from proactor.sources import Corpus, load, split_of
from proactor.sources.corpus import select_share
from proactor.sources.unseen import Unseen


def judgement(
    count: int, need: bool, task: str | None = None, valid: bool = False, first: str = "a"
) -> dict[str, Any]:
    obs = [{"time": str(i), "event": f"{first}{i}"} for i in range(count)]
    category = (
        ("Correct-Detection" if valid else "False-Alarm")
        if task
        else "Missed-Need"
        if need
        else "Correct-Rejection"
    )
    return {
        "obs": obs,
        "pred_task": task,
        "valid": valid,
        "help_needed": need,
        "annotation": [True],
        "category": category,
    }


RECORDS = [
    judgement(4, False),
    judgement(2, True, "find docs", True),
    judgement(2, True, "sing", False),
    judgement(3, True, "explain docs", True),
    judgement(1, False, "sleep", True),
    judgement(6, True),
    judgement(1, True, first="b"),
]


def write(folder: Path, *records: Any) -> Path:
    (folder / "train.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return folder


def streams(corpus: Corpus) -> set[str]:
    """The first events of a corpus' streams."""
    return {dialogue.turns[0].text.splitlines()[0] for dialogue in corpus.dialogues}


def test_streams(tmp_path: Path) -> None:
    corpus = load("proactivebench", write(tmp_path, *RECORDS))
    first, second = corpus.dialogues
    assert [t.text for t in first.turns] == [f"[{i}] a{i}" for i in range(6)]
    assert first.decision_turns == (1, 2, 3, 4, 5, 6) and len(second.turns) == 1
    # help was needed at 2, 3 and 6; nobody judged 5
    assert [(r.coverage, r.ready, r.params) for r in first.references] == [
        ((2, 3), (2, 3), {}),
        ((6, 6), (6, 6), {}),
    ]
    assert all(r.observed_trigger is None for r in first.references)
    assert corpus.counters["unjudged"] == 1 and corpus.counters["accepted_without_need"] == 1
    assert corpus.counters["category_False-Alarm"] == 1 and corpus.counters["streams"] == 2
    tool = corpus.catalog["propose"]
    assert tool.parameters == () and not tool.confirm and tool.effect == "read"


def test_waiting_is_right_where_no_help_is_needed(tmp_path: Path) -> None:
    dialogue = load("proactivebench", write(tmp_path, *RECORDS)).dialogues[0]
    fire = Action(name="propose", status=Status.READY)
    timings = [classify(dialogue, turn, [fire], fired={})[0].timing for turn in dialogue.decision_turns]
    assert timings == [
        Timing.FALSE,
        Timing.ON_TIME,
        Timing.ON_TIME,
        Timing.FALSE,
        Timing.FALSE,
        Timing.ON_TIME,
    ]


def test_accepted_tasks_as_parameters(tmp_path: Path) -> None:
    corpus = load("proactivebench", write(tmp_path, *RECORDS), task="accepted")
    first, last = corpus.dialogues[0].references
    assert first.params == {"task": "find docs"} and first.accepts("task", "Explain docs")
    assert not first.accepts("task", "sing")
    assert (last.ready, last.null_reason) == (None, "no_accepted_task")
    assert [p.name for p in corpus.catalog["propose"].parameters] == ["task"]


def test_judgements_one_by_one(tmp_path: Path) -> None:
    corpus = load("proactivebench", write(tmp_path, *RECORDS), unit="judgement")
    assert len(corpus) == len(RECORDS) and all(d.decision_turns == (1,) for d in corpus.dialogues)
    needs = [bool(d.references) for d in corpus.dialogues]
    assert needs == [r["help_needed"] for r in RECORDS]
    assert [d.domain for d in corpus.dialogues] == [r["category"] for r in RECORDS]
    assert corpus.dialogues[1].turns[0].text == "[0] a0\n[1] a1"


def test_a_stream_is_in_one_part(tmp_path: Path) -> None:
    write(
        tmp_path, *(judgement(n, True, first=letter) for letter in "abcdefghijklmnopqrst" for n in (1, 2, 3))
    )
    parts = {}
    for split in ("train", "dev", "test"):
        for dialogue in load("proactivebench", tmp_path, split=split, unit="judgement").dialogues:  # type: ignore[arg-type]
            stream = dialogue.id.rsplit("/", 1)[0]
            assert parts.setdefault(stream, split) == split == split_of(stream)
    assert len(parts) == 20 and len(load("proactivebench", tmp_path, limit=5)) == 5


@pytest.mark.parametrize("unit", ["trace", "judgement"])
def test_a_stream_is_in_one_part_beside_what_is_kept_from_training(tmp_path: Path, unit: str) -> None:
    records = [judgement(n, True, first=letter) for letter in "abcdefghijklmnopqrst" for n in (1, 2, 3)]
    alike = [judgement(3, False, first=letter) for letter in "abcdefghijklmnopqrst"]
    for record in alike:
        record["obs"][2]["event"] = "elsewhere"
    write(tmp_path, *records, *alike)
    unseen = Unseen(domains=("none",), seen=1000)
    train, whole = (load("proactivebench", tmp_path, split=part, unit=unit) for part in ("train", None))  # type: ignore[arg-type]
    test = unseen.apply(whole, "test", None, 0)
    trained, tested = streams(train), streams(test)
    assert trained and tested and not trained & tested
    low, high = (select_share(whole, share, None, 0) for share in ((0, 0.5), (0.5, 1)))
    assert len(low) + len(high) == len(whole)
    assert not streams(low) & streams(high)


def test_need_that_is_disputed_is_not_scored(tmp_path: Path) -> None:
    corpus = load("proactivebench", write(tmp_path, judgement(1, True), judgement(1, False, "x")))
    assert corpus.dialogues[0].references == () and corpus.counters["need_disputed"] == 1


def test_streams_that_begin_alike_are_two(tmp_path: Path) -> None:
    other = judgement(3, True)
    other["obs"][2]["event"] = "elsewhere"
    corpus = load("proactivebench", write(tmp_path, judgement(3, True), other))
    one, two = (d.id for d in corpus.dialogues)
    assert two == f"{one}-2"


@pytest.mark.parametrize(
    ("line", "what"),
    [
        ("{", "2: not JSON"),
        ("", "2: empty line"),
        ("[]", "2: "),
        ('{"obs": []}', "2: obs: "),
        (json.dumps(judgement(1, True) | {"help_needed": "perhaps"}), "2: help_needed: "),
        (json.dumps(judgement(1, True) | {"obs": [{"time": "1"}]}), r"2: obs\.0\.event: "),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, what: str) -> None:
    file = write(tmp_path, judgement(1, True)) / "train.jsonl"
    file.write_text(file.read_text() + line + "\n" + json.dumps(judgement(2, True)) + "\n")
    with pytest.raises(SourceError, match=rf"train\.jsonl:{what}") as caught:
        load("proactivebench", tmp_path)
    assert "\n" not in str(caught.value)
