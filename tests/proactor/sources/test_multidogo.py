"""MultiDoGO on tables written here: one-sided and two-sided chats, joined sentences, gaps."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.files import SourceError
from proactor.sources import load

SIDE = "conversationId\tturnNumber\tutteranceId\tutterance\tslot-labels\tintent"
BOTH = "conversationId\tturnNumber\tutteranceId\tutterance\tauthorRole"


def write(file: Path, *lines: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


def test_customer_side(tmp_path: Path) -> None:
    lines = [
        "a\t0.0\ta0\thi\tO\tgreet",
        'a\t3.0\ta3\tmy "card" is lost\tO O O O\tlost',
        "b\t1.0\tb1\thello\tO\tgreet",
        "b\t2.0\tb2\t \tO\tgreet",
    ]
    folder = write(tmp_path / "my_finance" / "dev.tsv", SIDE, *lines).parent
    corpus = load("multidogo", folder)
    first, second = corpus.dialogues
    assert [(t.speaker, t.text) for t in first.turns] == [("user", "hi"), ("user", 'my "card" is lost')]
    assert (first.id, first.domain, first.references, first.tools) == ("multidogo/a", "finance", (), ())
    assert first.decision_turns == (1, 2) and len(second.turns) == 1 and len(corpus.catalog) == 0
    # turns 1 and 2 of the first chat and turn 0 of the second are not there; the empty one is dropped
    assert {k: corpus.counters[k] for k in ("customer_only", "turns_missing", "empty_utterance")} == {
        "customer_only": 2,
        "turns_missing": 3,
        "empty_utterance": 1,
    }


def test_sentences_are_joined(tmp_path: Path) -> None:
    head = SIDE.replace("turnNumber", "turnNumber\tsentenceNumber")
    file = write(
        tmp_path / "finance" / "train.tsv",
        head,
        "a\t0\t0\tx\thi.\tO\tg",
        "a\t0\t1\tx\thow are you?\tO\tg",
        "a\t1\t0\tx\tbye\tO\tg",
    )
    corpus = load("multidogo", file)
    assert [t.text for t in corpus.dialogues[0].turns] == ["hi. how are you?", "bye"]
    assert corpus.counters["sentences_joined"] == 1


def test_two_sides(tmp_path: Path) -> None:
    file = write(
        tmp_path / "media.tsv", BOTH, "a\t0\tx\thi\tCustomer", "a\t1\tx\thello\tagent", "a\t1\tx\tyes?\tagent"
    )
    corpus = load("multidogo", file)
    assert [t.speaker for t in corpus.dialogues[0].turns] == ["user", "agent", "agent"]
    assert corpus.dialogues[0].domain == "media" and corpus.counters["customer_only"] == 0


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        (["conversationId\tutterance"], "1: no column 'turnNumber'"),
        ([SIDE, "a\t0\tx\thi"], "2: 4 columns, the first line has 6"),
        (
            [SIDE, "a\t0\tx\thi\tO\tg", "b\t0\tx\thi\tO\tg", "a\t1\tx\thi\tO\tg"],
            "4: dialogue 'multidogo/a' appears twice",
        ),
        ([SIDE, "a\tone\tx\thi\tO\tg"], "2: turnNumber 'one' is not a number"),
        ([SIDE, "a\tinf\tx\thi\tO\tg"], "2: turnNumber 'inf' is not a number"),
        ([SIDE, "a\t0\tx\t \tO\tg"], "2: .*no turns"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, lines: list[str], what: str) -> None:
    with pytest.raises(SourceError, match=f"dev.tsv:{what}"):
        load("multidogo", write(tmp_path / "dev.tsv", *lines))
