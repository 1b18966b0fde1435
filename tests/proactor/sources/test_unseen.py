"""Splits by unseen domains and tools."""

from __future__ import annotations

from collections import Counter

import pytest
from pydantic import ValidationError

from proactor.dialogue import Dialogue, Reference
from proactor.dialogue.catalog import Catalog, Tool
from proactor.sources.corpus import Corpus, make_corpus, split_of
from proactor.sources.unseen import Unseen
from tests.proactor.dialogues import users

CATALOG = Catalog(tools=(Tool(name="book"), Tool(name="call"), Tool(name="list")))


def dialogue(id: str, domain: str, *tools: str, withdrawn: str = "") -> Dialogue:
    called = [Reference(id=f"r{i}", name=name, coverage=(1, 2), ready=(1, 2)) for i, name in enumerate(tools)]
    back = (Reference(id="w", name=withdrawn, coverage=(1, 2)),) if withdrawn else ()
    return users(3, *called, id=id, domain=domain, withdrawn=back)


FOUND: Corpus = make_corpus(
    CATALOG,
    (
        dialogue("plain", "Hotels", "book"),
        dialogue("both", "Hotels+Music", "book"),
        dialogue("music", "Music", "list"),
        dialogue("caller", "Hotels", "book", "call"),
        dialogue("began", "Hotels", withdrawn="call"),
        dialogue("quiet", ""),
    ),
    {"reader": 7},
)


def ids(corpus: Corpus) -> list[str]:
    return [d.id for d in corpus.dialogues]


@pytest.mark.parametrize(
    ("unseen", "training", "test", "counted"),
    [
        (
            Unseen(domains=("Music",)),
            ["plain", "caller", "began", "quiet"],
            ["both", "music"],
            {"unseen_domain": 2},
        ),
        (Unseen(tools=("call",)), ["plain", "both", "music", "quiet"], ["caller"], {"unseen_tool": 2}),
        (
            Unseen(domains=("Music",), tools=("call",)),
            ["plain", "quiet"],
            ["both", "music", "caller"],
            {"unseen_domain": 2, "unseen_tool": 2},
        ),
        (
            Unseen(domains=("Hotels+Music",)),
            ["plain", "music", "caller", "began", "quiet"],
            ["both"],
            {"unseen_domain": 1},
        ),
    ],
)
def test_test_holds_the_unseen_alone_and_training_none_of_it(
    unseen: Unseen, training: list[str], test: list[str], counted: dict[str, int]
) -> None:
    for part in ("train", "dev"):
        kept = unseen.apply(FOUND, part, None, 0)
        assert ids(kept) == training
        assert {
            k: v for k, v in kept.counters.items() if k in ("unseen_domain", "unseen_tool", "seen")
        } == counted
        assert kept.counters["dialogues"] == len(training) and kept.counters["reader"] == 7
    tested = unseen.apply(FOUND, "test", None, 0)
    assert ids(tested) == test and tested.counters["seen"] == len(FOUND) - len(test)
    assert not set(training) & set(test)


def test_a_limit_counts_what_is_left() -> None:
    unseen = Unseen(domains=("Music",))
    two, three = (ids(unseen.apply(FOUND, "train", limit, 5)) for limit in (2, 3))
    assert len(two) == 2 and set(two) < set(three)


def test_unknown_names_are_told_with_what_there_is() -> None:
    assert Unseen(domains=("Music",), tools=("list",)).describe_unknown(FOUND) == ""
    assert "unseen.domains: no domain is 'Musik' (did you mean 'Music'?)" in Unseen(
        domains=("Musik",)
    ).describe_unknown(FOUND)
    assert "unseen.tools: no tool is 'zzz'; there are book, call, list" in Unseen(
        tools=("call", "zzz")
    ).describe_unknown(FOUND)
    assert not Unseen() and Unseen(tools=("call",))


MANY: Corpus = make_corpus(
    CATALOG,
    [
        dialogue(f"{kind}-{i}", domain, tool)
        for i in range(60)
        for kind, domain, tool in (
            ("domain", "Music", "list"),
            ("tool", "Hotels", "call"),
            ("known", "Hotels", "book"),
        )
    ],
)


def test_seen_dialogues_of_the_test_split_stand_beside_at_most_each_of_either_kind() -> None:
    unseen = Unseen(domains=("Music",), tools=("call",), each=5, seen=3)
    tested = unseen.apply(MANY, "test", None, 0)
    assert Counter(unseen.kind(d) for d in tested.dialogues) == {
        "unseen_domain": 5,
        "unseen_tool": 5,
        "seen": 3,
    }
    beside = [d.id for d in tested.dialogues if unseen.kind(d) == "seen"]
    assert all(split_of(id) == "test" for id in beside)
    assert ids(tested) == [id for id in ids(MANY) if id in set(ids(tested))], "in the corpus' order"
    assert tested.counters["seen"] == 60 - 3
    more = unseen.model_copy(update={"each": 6, "seen": 4}).apply(MANY, "test", None, 0)
    assert set(ids(tested)) < set(ids(more))
    assert len(unseen.apply(MANY, "test", 4, 0)) == 4
    trained = unseen.apply(MANY, "train", None, 0)
    assert len(trained) == 60, "neither changes what is trained on"
    with pytest.raises(ValidationError, match="each and seen count test dialogues"):
        Unseen(seen=3)
