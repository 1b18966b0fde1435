"""The parts of a corpus that a run trains, selects and reports on."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.catalogs import write_catalog
from proactor.config_base import ConfigError
from proactor.dialogue.windows import as_points, width
from proactor.sources import load
from proactor.training.corpora import load_corpus
from tests.proactor.runs import WIDE, config


def test_points_label_training_alone(tmp_path: Path) -> None:
    windows, points = (
        config(tmp_path, tmp_path, f"data.labels={labels}", data=WIDE) for labels in ("windows", "points")
    )
    plain, labelled = load_corpus(windows, "train"), load_corpus(points, "train")
    assert any(width(r) for d in plain.dialogues for r in d.references)
    assert labelled.dialogues == tuple(map(as_points, plain.dialogues)) != plain.dialogues
    assert not any(width(r) for d in labelled.dialogues for r in d.references)
    known = sum(r.ready is not None for d in plain.dialogues for r in d.references)
    c = labelled.counters
    assert (c["wider"], c["width_0"], c["withdrawn"]) == (0, known, 0) and c["points_logged"] + c[
        "points_end"
    ] == known
    assert c["points_logged"] > c["points_end"] > 0
    for part in ("dev", "test"):
        assert load_corpus(points, part) == load_corpus(windows, part)


def test_unseen_domains_and_tools_are_in_the_test_part_alone(tmp_path: Path) -> None:
    everything = load("synthetic", size=80, tools=2).dialogues
    domain, tool = everything[0].domain, everything[1].references[0].name
    data = WIDE | {"unseen": {"domains": [domain], "tools": [tool]}, "test": {"split": None}, "train": {}}
    settings = config(tmp_path, tmp_path, data=data)
    parts = {name: load_corpus(settings, name) for name in ("train", "dev", "test")}
    for name, part in parts.items():
        for dialogue in part.dialogues:
            called = {r.name for r in dialogue.references}
            assert (dialogue.domain == domain or tool in called) == (name == "test")
    assert parts["train"].counters["unseen_domain"] and parts["test"].counters["seen"]
    assert parts["test"].counters["dialogues"] + parts["test"].counters["seen"] == len(everything)
    assert len(parts["dev"].dialogues) == 5, "the limit counts what is left"


def test_unseen_names_that_do_not_exist_and_parts_that_are_empty_are_told(tmp_path: Path) -> None:
    def refusal(part: str, **unseen: list[str]) -> str:
        with pytest.raises(ConfigError) as caught:
            load_corpus(config(tmp_path, tmp_path, data=WIDE | {"unseen": unseen}), part)
        return str(caught.value)

    domains = sorted({d.domain for d in load("synthetic", size=80, tools=2).dialogues})
    for part in ("train", "test"):
        assert (
            f"data: unseen.domains: no domain is '{domains[0]}x' (did you mean '{domains[0]}'?)"
            in refusal(part, domains=[f"{domains[0]}x"])
        )
        assert "data: unseen.tools: no tool is 'zzz'; there are " in refusal(part, tools=["zzz"])
    assert (
        "data.train: synthetic has no dialogues for split=train, limit=20 that data.unseen leaves"
        in refusal("train", domains=domains)
    )
    one = {"size": 12, "tools": 2}
    rare = next(
        d
        for d in load("synthetic", split="train", **one).dialogues
        if d.domain not in {t.domain for t in load("synthetic", split="test", **one).dialogues}
    )
    with pytest.raises(ConfigError, match=r"data\.test: .*that data\.unseen leaves: split=null takes"):
        load_corpus(
            config(tmp_path, tmp_path, data={"options": one, "unseen": {"domains": [rare.domain]}}), "test"
        )


def test_shares_of_a_part_are_disjoint_and_make_it_whole(tmp_path: Path) -> None:
    data = WIDE | {"train": {}}
    whole = load_corpus(config(tmp_path, tmp_path, data=data), "train")
    low, high = (
        load_corpus(config(tmp_path, tmp_path, data=data | {"train": {"share": share}}), "train")
        for share in ([0, 0.6], [0.6, 1])
    )
    names = [{d.id for d in part.dialogues} for part in (low, high, whole)]
    assert not names[0] & names[1] and names[0] | names[1] == names[2]
    assert len(names[0]) > len(names[1]) > 0
    assert low.counters["other_share"] == len(names[1])
    few = load_corpus(
        config(tmp_path, tmp_path, data=data | {"train": {"share": [0.6, 1], "limit": 5}}), "train"
    )
    assert len(few) == 5 and {d.id for d in few.dialogues} <= names[1]
    with pytest.raises(ConfigError, match=r"data\.train\.share: .*not a share"):
        config(tmp_path, tmp_path, data=data | {"train": {"share": [0.6, 0.4]}})


def test_transcripts_that_were_not_annotated_are_refused_for_training(tmp_path: Path) -> None:
    dialogues = load("synthetic", size=40, tools=2).dialogues
    catalog = load("synthetic", size=40, tools=2).catalog
    log = [
        d.model_copy(
            update={
                "withdrawn": (),
                "references": tuple(r.model_copy(update={"ready": None}) for r in d.references),
            }
        )
        for d in dialogues
    ]
    write_catalog(catalog, tmp_path / "catalog.json")
    (tmp_path / "windows.jsonl").write_text("".join(d.model_dump_json() + "\n" for d in log))
    settings = config(tmp_path, tmp_path, data={"source": "jsonl", "path": str(tmp_path)})
    with pytest.raises(ConfigError, match=r"^data.train: none of its \d+ actions has a known .*annotate"):
        load_corpus(settings, "train")
    assert load_corpus(settings, "test").dialogues
    (tmp_path / "windows.jsonl").write_text(
        "".join(d.model_dump_json() + "\n" for d in (*log[1:], dialogues[0]))
    )
    settings = config(
        tmp_path, tmp_path, data={"source": "jsonl", "path": str(tmp_path), "train": {"split": None}}
    )
    assert load_corpus(settings, "train").dialogues
