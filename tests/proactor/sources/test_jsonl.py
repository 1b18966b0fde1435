"""Our own JSONL and plain transcripts: what is read, what is counted, and errors with file and line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proactor import files
from proactor.catalogs import write_catalog
from proactor.dialogue import Dialogue
from proactor.dialogue.catalog import Catalog, Parameter, Tool
from proactor.files import EncodingError, SourceError, read_bytes
from proactor.sources import Corpus, load, split_of

CATALOG = Catalog(
    tools=(
        Tool(name="book", confirm=True, parameters=(Parameter(name="day", type="date"),)),
        Tool(name="find"),
    )
)
OWN: dict[str, Any] = {
    "id": "a",
    "domain": "tables",
    "source": "synthetic",
    "tools": ["book"],
    "turns": [
        {"index": i, "speaker": "agent" if i % 2 == 0 else "user", "text": f"t{i}"} for i in range(1, 6)
    ],
    "references": [
        {"id": "r1", "name": "book", "params": {"day": "Monday"}, "coverage": [1, 5], "ready": [3, 5]}
    ],
}


def talk(
    *texts: str, id: Any = "t", first: str = "user", second: str = "agent", **more: Any
) -> dict[str, Any]:
    turns = [{"speaker": second if i % 2 else first, "text": text} for i, text in enumerate(texts)]
    return {"id": id, "turns": turns, **more}


def put(folder: Path, *records: Any, catalog: Catalog | None = CATALOG, name: str = "windows.jsonl") -> Path:
    text = "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records)
    (folder / name).write_text(text, encoding="utf-8")
    if catalog is not None:
        write_catalog(catalog, folder / "catalog.json")
    return folder


def change(**fields: Any) -> dict[str, Any]:
    """OWN with fields of its reference replaced."""
    return OWN | {"references": [OWN["references"][0] | fields]}


def test_what_was_dumped_comes_back(tmp_path: Path) -> None:
    corpus = load("synthetic", limit=30, seed=3)
    lines = [d.model_dump(mode="json") for d in corpus.dialogues]
    loaded = load("jsonl", put(tmp_path, *lines, catalog=corpus.catalog))
    assert loaded.dialogues == corpus.dialogues and loaded.catalog == corpus.catalog
    assert (
        loaded.counters["wider"] == corpus.counters["wider"] > 0 and loaded.counters["effects_proposed"] == 0
    )
    assert load("jsonl", tmp_path / "windows.jsonl").dialogues == corpus.dialogues
    with gzip.open(tmp_path / "x.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    assert load("jsonl", tmp_path / "x.jsonl.gz").dialogues == corpus.dialogues


@pytest.mark.parametrize("name", ["sgd", "star", "abcd"])
def test_real_corpora_come_back(data_dir: Path, tmp_path: Path, name: str) -> None:
    if not (data_dir / name).is_dir():
        pytest.skip(f"no {name} in {data_dir}")
    corpus = load(name, data_dir / name, limit=20)
    loaded = load(
        "jsonl", put(tmp_path, *(d.model_dump(mode="json") for d in corpus.dialogues), catalog=corpus.catalog)
    )
    assert loaded.dialogues == corpus.dialogues and loaded.counters["unknown_parameters"] == 0


def test_samples_and_splits_go_by_the_id_wherever_it_stands(tmp_path: Path) -> None:
    inner = {
        "turns": [{"speaker": "user", "text": "a", "id": "zz"}, {"speaker": "bot", "text": "b", "id": "yy"}]
    }
    records = [inner | {"id": i if i % 2 else f'"ü{i}"'} for i in range(40)]
    folder = put(tmp_path, *records)
    ids = [d.id for d in load("jsonl", folder).dialogues]
    assert ids == [str(r["id"]) for r in records]
    few = load("jsonl", folder, limit=7, seed=1)
    assert len(few) == 7 and {d.id for d in few.dialogues} < {
        d.id for d in load("jsonl", folder, limit=20, seed=1).dialogues
    }
    for split in ("train", "dev", "test"):
        assert [d.id for d in load("jsonl", folder, split=split).dialogues] == [
            i for i in ids if split_of(i) == split
        ]  # type: ignore[arg-type]


def test_a_line_that_is_not_asked_for_is_not_parsed(tmp_path: Path) -> None:
    records = [talk("a", "b", id=f"d{i}") for i in range(20)]
    chosen = {d.id for d in load("jsonl", put(tmp_path, *records), limit=3).dialogues}
    put(
        tmp_path, *(r if r["id"] in chosen else f'{{"id": "{r["id"]}", nothing here is JSON' for r in records)
    )
    assert {d.id for d in load("jsonl", tmp_path, limit=3).dialogues} == chosen
    with pytest.raises(SourceError, match="not JSON"):
        load("jsonl", tmp_path)


def test_transcripts_stay_as_they_are(tmp_path: Path) -> None:
    turns = [
        {"speaker": "Customer", "text": " hi\n", "time": 3},
        {"speaker": "HUMAN", "text": "are you there?"},
        {"speaker": "assistant", "text": "🙋🏽‍♀️ yes 👨‍👩‍👧"},
        {"speaker": "Bot", "text": "שלום، كيف حالك؟ \u202eabc\u202c"},
        {"speaker": "client", "text": "預訂"},
    ]
    corpus = load(
        "jsonl", put(tmp_path, {"id": "t", "turns": turns, "channel": "phone", "domain": "d"}, name="x.jsonl")
    )
    (dialogue,) = corpus.dialogues
    assert [t.speaker for t in dialogue.turns] == ["user", "user", "agent", "agent", "user"]
    assert [t.text for t in dialogue.turns] == ["hi", *(t["text"] for t in turns[1:])]
    assert (dialogue.domain, dialogue.source, dialogue.references, dialogue.tools) == ("d", "jsonl", (), ())
    assert corpus.counters["ignored_keys"] == 2 and corpus.catalog == CATALOG


def test_500_turns(tmp_path: Path) -> None:
    (dialogue,) = load("jsonl", put(tmp_path, talk(*(f"turn {i}" for i in range(500))))).dialogues
    assert len(dialogue.turns) == 500 and len(dialogue.decision_turns) == 250


def test_without_a_catalog(tmp_path: Path) -> None:
    corpus = load("jsonl", put(tmp_path, talk("a", "b"), catalog=None))
    assert len(corpus.catalog) == 0 and corpus.counters["no_catalog"] == 1 and len(corpus) == 1


def test_a_catalog_of_another_format(tmp_path: Path) -> None:
    tools = tmp_path / "tools.json"
    tools.write_text(
        json.dumps([{"name": "book", "parameters": {"properties": {"day": {"type": "string"}}}}])
    )
    corpus = load("jsonl", put(tmp_path, OWN, catalog=None), catalog=str(tools))
    assert corpus.catalog["book"].confirm and corpus.counters["effects_proposed"] == 1  # as proposed


def test_the_user_by_name(tmp_path: Path) -> None:
    folder = put(
        tmp_path, talk("a", "b", first="Anna", second="Bo"), talk("c", "d", id="u", first="user", second="Bo")
    )
    with pytest.raises(SourceError) as caught:
        load("jsonl", folder)
    assert f"{folder / 'windows.jsonl'}:1: " in str(
        caught.value
    ) and "turn 1: speaker 'Anna' is not known" in str(caught.value)
    corpus = load("jsonl", folder, user="anna")
    assert [[t.speaker for t in d.turns] for d in corpus.dialogues] == [["user", "agent"]] * 2


def test_one_speaker(tmp_path: Path) -> None:
    folder = put(
        tmp_path,
        talk("a", second="user", id="x"),
        talk("a", "b", first="bot", id="y"),
        talk("a", "b", id="z"),
    )
    corpus = load("jsonl", folder)
    assert [d.id for d in corpus.dialogues] == ["z"]
    assert (corpus.counters["no_user_turns"], corpus.counters["no_agent_turns"]) == (1, 1)
    kept = load("jsonl", folder, one_speaker="keep")
    assert [d.id for d in kept.dialogues] == ["x", "y", "z"] and kept.counters["no_user_turns"] == 1
    with pytest.raises(SourceError, match=r"windows\.jsonl:1: dialogue 'x' has no agent turns"):
        load("jsonl", folder, one_speaker="error")


@pytest.mark.parametrize("text", ["", " \n", "\u200b\ufeff", "\u202e"])
def test_empty_turns(tmp_path: Path, text: str) -> None:
    folder = put(tmp_path, talk("a", text, "b", "c"))
    with pytest.raises(SourceError, match=r"windows\.jsonl:1: .*turn 2 is empty"):
        load("jsonl", folder)
    corpus = load("jsonl", folder, empty="drop")
    (dialogue,) = corpus.dialogues
    assert [(t.index, t.speaker, t.text) for t in dialogue.turns] == [
        (1, "user", "a"),
        (2, "user", "b"),
        (3, "agent", "c"),
    ]
    assert corpus.counters["empty_turns"] == 1
    own = OWN | {"turns": [*OWN["turns"][:3], OWN["turns"][3] | {"text": text}, OWN["turns"][4]]}
    with pytest.raises(SourceError, match="turn 4 is empty and cannot be dropped: the windows count on it"):
        load("jsonl", put(tmp_path, own), empty="drop")
    assert len(load("jsonl", put(tmp_path, own | {"references": []}), empty="drop").dialogues[0].turns) == 4


def test_half_an_emoji(tmp_path: Path) -> None:
    corpus = load(
        "jsonl",
        put(
            tmp_path,
            '{"id": "t", "turns": [{"speaker": "user", "text": "a\\ud83d"}, '
            '{"speaker": "bot", "text": "b"}]}',
        ),
    )
    assert corpus.dialogues[0].turns[0].text == "a?" and corpus.counters["broken_characters"] == 1


def test_values_that_no_parameter_takes_are_counted(tmp_path: Path) -> None:
    assert (
        load("jsonl", put(tmp_path, change(params={"day": "x", "hue": "y"}))).counters["unknown_parameters"]
        == 1
    )


@pytest.mark.parametrize(
    ("record", "what"),
    [
        (change(ready=[5, 3]), "reference 'r1': ready (5, 3) is reversed or outside coverage (1, 5)"),
        (change(coverage=[5, 1], ready=None), "reference 'r1': coverage (5, 1) is reversed"),
        (change(coverage=[0, 5]), "coverage (0, 5) is reversed or starts before turn 1"),
        (change(coverage=[1, 9]), "reference 'r1' covers turn 9 of 5"),
        (change(coverage=None), "a ready window (3, 5) without coverage"),
        (change(ready=[3, 9]), "ready (3, 9) is reversed or outside coverage"),
        (change(ready=[3]), "references.0.ready"),
        (change(name="fly") | {"tools": []}, "tool 'fly' is not in"),
        (change(name="find"), "reference 'r1' uses 'find', not offered"),
        (OWN | {"tools": ["book", "fly"]}, "tool 'fly' is not in"),
        (OWN | {"refrences": []}, "refrences: Extra inputs"),
        (OWN | {"references": OWN["references"] * 2}, "reference 'r1' appears twice"),
        (OWN | {"turns": OWN["turns"][1:]}, "turn indices are not 1..4"),
        (
            OWN | {"turns": [OWN["turns"][0] | {"speaker": "bot"}]},
            "turns.0.speaker: Input should be 'user' or 'agent'",
        ),
        (OWN | {"turns": []}, "has no turns"),
        (talk(), "has no turns"),
        (talk("a", "b", references=[{"id": "r", "name": "fly"}]), "tool 'fly' is not in"),
        (talk("a", "b", references=[{"id": "r", "name": "book", "coverage": [1, 3]}]), "covers turn 3 of 2"),
        ({"id": "t"}, "key 'turns' is missing"),
        ({"id": "t", "turns": "hi"}, "`turns` is not a list of objects"),
        ({"id": "t", "turns": ["hi"]}, "`turns` is not a list of objects"),
        ({"id": "t", "turns": [{"speaker": "user"}]}, "turn 1: no text (found None)"),
        ({"id": "t", "turns": [{"speaker": "user", "text": 3}]}, "turn 1: no text (found 3)"),
        ({"id": "t", "turns": [{"text": "a"}]}, "turn 1: no speaker (found None)"),
        (talk("a", "b", first="narrator"), "turn 1: speaker 'narrator' is not known as user (caller, client"),
        (talk("a", "b", id=""), "no id"),
        (talk("a", "b", id=None), "no id"),
        (talk("a", "b", id=True), "no id"),
        (talk("a", "b", id="ok"), "appears twice (first in"),
        ("", "empty line"),
        ('{"turns": [', "not JSON"),
        ("[1]", "not an object"),
        (r'{"id": "\x", "turns": []}', "not JSON"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, record: Any, what: str) -> None:
    file = put(tmp_path, talk("a", "b", id="ok"), record) / "windows.jsonl"
    with pytest.raises(SourceError) as caught:
        load("jsonl", tmp_path)
    said = str(caught.value)
    assert said.startswith(f"{file}:2: ") and what in said and "\n" not in said


def test_references_without_a_catalog(tmp_path: Path) -> None:
    with pytest.raises(
        SourceError, match=r"windows\.jsonl:1: .*names tools \('book'\), but there is no .*catalog\.json"
    ):
        load("jsonl", put(tmp_path, OWN, catalog=None))
    (tmp_path / "catalog.json").write_text('{"tools": [{"name": "book"},\n{"name": "book"}]}')
    with pytest.raises(SourceError, match=r"catalog\.json:2: tool 'book' is defined twice"):
        load("jsonl", tmp_path)


@pytest.mark.parametrize("opts", [{"users": "x"}, {"empty": "maybe"}, {"one_speaker": "split"}])
def test_options_are_refused_by_name(tmp_path: Path, opts: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=f"option {next(iter(opts))}"):
        load("jsonl", put(tmp_path, OWN), **opts)


def test_no_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file, nor a folder with windows"):
        load("jsonl", tmp_path)


def test_a_folder_is_read_whole_or_what_is_not_is_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path, talk("hi", "yes", id=name), name=f"{name}.jsonl")
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress((tmp_path / "b.jsonl").read_bytes()))
    (tmp_path / "b.jsonl").unlink()
    for name, ends in (("d", "csv"), ("e", "tsv")):
        sign = "," if ends == "csv" else "\t"
        rows = (("id", "role", "text"), (name, "user", "hi"), (name, "agent", "yes"))
        (tmp_path / f"{name}.{ends}").write_text("".join(sign.join(row) + "\n" for row in rows))
    (tmp_path / "report.json").write_text("{}")
    corpus = load("jsonl", tmp_path)
    assert [d.id for d in corpus.dialogues] == ["a", "b", "c"] and corpus.counters["files_ignored"] == 2
    put(tmp_path, talk("hi", "yes", id="w"))
    corpus = load("jsonl", tmp_path)
    assert [d.id for d in corpus.dialogues] == ["w"] and corpus.counters["files_ignored"] == 5
    for file in tmp_path.glob("*.jsonl*"):
        file.unlink()
    corpus = load("jsonl", tmp_path)
    assert [d.id for d in corpus.dialogues] == ["d", "e"] and corpus.counters["files_ignored"] == 0


@pytest.mark.parametrize("name", ["windows.jsonl", "windows.jsonl.gz"])
def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A small gzip file may unpack to any length."""
    monkeypatch.setattr(files, "LONGEST_LINE", 1000)
    data = json.dumps(talk("hi", "yes?")).encode() + b"\n" + b" " * 10**6
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    with pytest.raises(SourceError, match=f"{name}:2: a line of more than 1000 bytes"):
        load("jsonl", tmp_path / name)


def test_a_file_that_unpacks_without_end(tmp_path: Path) -> None:
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(b" " * 10**6))
    with pytest.raises(SourceError, match=r"a\.json\.gz: cannot be read \(more than 1000 bytes, unpacked\)"):
        read_bytes(tmp_path / "a.json.gz", 1000)


@pytest.mark.parametrize(("coding", "byte"), [("utf-16", "ff"), ("utf-32", "ff"), ("latin-1", "e9")])
@pytest.mark.parametrize(("name", "line"), [("windows.jsonl", 1), ("chats.csv", 2)])
def test_another_encoding(tmp_path: Path, coding: str, byte: str, name: str, line: int) -> None:
    text = json.dumps({**talk("hi", "yes?"), "domain": "café"}, ensure_ascii=False)
    if name == "chats.csv":
        text = "id,speaker,text\na,user,café\n"
    (tmp_path / name).write_bytes(text.encode(coding))
    with pytest.raises(EncodingError) as caught:
        load("jsonl", tmp_path / name)
    where = f"{tmp_path / name}:{line if coding == 'latin-1' else 1}"  # a mark is no UTF-8 either
    assert str(caught.value) == (
        f"{where}: not UTF-8 (byte 0x{byte}); write it in UTF-8, or let `proactor import` read it, which "
        "finds its encoding"
    )


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-2, 9)
    | st.sampled_from(["user", "bot", "book", "a", ""])
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["speaker", "text", "index", "id", "name", "coverage", "ready", "params"]),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)
turn = st.fixed_dictionaries(
    {"speaker": st.sampled_from(["user", "agent", "bot", 3]), "text": st.text(max_size=4) | st.just("hello")},
    optional={"index": st.integers(0, 3), "more": st.none()},
)


@given(
    st.fixed_dictionaries(
        {
            "id": st.text(min_size=1, max_size=3) | json_values,
            "turns": st.lists(turn, max_size=4) | json_values,
        },
        optional={
            "references": json_values,
            "tools": json_values,
            "withdrawn": json_values,
            "domain": json_values,
            "x": json_values,
        },
    ),
    st.sampled_from(["error", "drop"]),
)
@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_line_is_a_dialogue_a_counted_drop_or_one_line(
    tmp_path: Path, record: dict[str, Any], empty: str
) -> None:
    folder = put(tmp_path, record)
    try:
        corpus: Corpus = load("jsonl", folder, empty=empty)
    except SourceError as error:
        assert str(error).startswith(f"{folder / 'windows.jsonl'}:1: ") and len(str(error).splitlines()) == 1
        return
    dropped = corpus.counters.get("no_user_turns", 0) + corpus.counters.get("no_agent_turns", 0)
    assert len(corpus) + dropped == 1
    for dialogue in corpus.dialogues:
        kept = len(record["turns"]) - corpus.counters.get("empty_turns", 0)
        assert len(dialogue.turns) == kept and Dialogue.model_validate(dialogue.model_dump()) == dialogue
