"""Folders of runs with something wrong in them, and what follows from reading their files."""

from __future__ import annotations

import shutil
from pathlib import Path
from random import Random

import pytest
import yaml

from proactor.annotation.record import DialogueRecord
from proactor.annotation.store import RecordStore
from proactor.calibration.store import save_probabilities
from proactor.calibration.tradeoff import TradeOff, collect_trade_offs, policies, save_trade_offs
from proactor.config_file import load_config
from proactor.engine import append, atomic_file
from proactor.evaluation.paired import compare_runs, paired_tables
from proactor.evaluation.store import find_system, load_comparable, load_evaluations, save_evaluations
from proactor.report.folders import rebuild_report, side_by_side
from proactor.ruler.cache import VerdictCache
from proactor.scoring.bootstrap import KEYS
from proactor.sources import load
from proactor.training.record import RunRecord
from proactor.training.runs import Run
from proactor.training.summary import pool_runs
from tests.fuzz.harness import fuzz
from tests.fuzz.mutations import dump, misplace, spoil_file, spoil_text, spoil_tree
from tests.proactor.report.agents import agent, evaluation
from tests.proactor.report.test_page import HISTORY
from tests.proactor.report.test_sections import point, probabilities

DIALOGUES = load("synthetic", limit=3, seed=4).dialogues
FILES = (
    *("config.yaml", "metrics.jsonl", "summary.json", "evaluations.json", "samples/grpo-000003.jsonl"),
    *("tradeoff.json", "probabilities.json"),
)

SKILLS = {"before": 0.1, "after": 0.95}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, repo_root: Path) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "run"
    config = load_config(repo_root / "configs" / "demo.yaml")
    record = Run(folder)
    record.begin(config, resume=False, fresh=False)
    for row in HISTORY:
        record.log(row)
    record.write_samples("grpo", 3, [{"dialogue": DIALOGUES[0].id, "turn": 1, "text": "[]", "reward": 1.0}])
    played = {name: evaluation(DIALOGUES, agent(DIALOGUES, 1, skill)) for name, skill in SKILLS.items()}
    save_evaluations(folder / "evaluations.json", DIALOGUES, played)
    chosen = {
        "phase": "grpo",
        "measure": "f1",
        "best_step": 3,
        "steps": 4,
        "start": 0.1,
        "best": 0.5,
        "end": 0.4,
    }
    record.write_summary({"seconds": 5, "chosen": chosen, "version": "1", "hash": "x"})
    curve = TradeOff(system="common threshold", points=(point(4.0, 30.0),), chosen=point(1.0, 12.25))
    systems = [curve, *policies(DIALOGUES)]
    save_trade_offs(folder / "tradeoff.json", collect_trade_offs("test", DIALOGUES, 1.0, systems))
    save_probabilities(folder / "probabilities.json", [probabilities(DIALOGUES[0], ["a", "b"])])
    return folder


def test_run_folders(run: Path) -> None:
    def case(draw: Random, folder: Path) -> object:
        place = folder / "run"
        shutil.copytree(run, place)
        file = place / draw.choice(FILES)
        if file.suffix == ".yaml" and draw.random() < 0.5:
            file.write_bytes(dump(draw, spoil_tree(draw, yaml.safe_load(file.read_text()))))  # JSON is YAML
        else:
            spoil_file(draw, file)
        (place / "samples" / draw.choice(("stray", "x-1.jsonl", "grpo-x.jsonl", "grpo-99.jsonl"))).touch()
        if draw.random() < 0.2:  # an older version's, if it is still JSON
            older(place / "evaluations.json", draw.choice((1, 2)))
        record = RunRecord.read(place)
        what = draw.randrange(5)
        if what == 0:
            return record.facts(), rebuild_report(place)
        if what == 1:
            return side_by_side(run, place, folder / "page.html")
        if what == 2:
            return pool_runs([run, place], resamples=100)
        if what == 3:
            return compared(run, place)
        one = Run(place)
        one.rewind(draw.choice((0, 10)), draw.choice((0, 3)))
        return one.rows(), load_evaluations(place / "evaluations.json")

    fuzz("runs", case, 100)


def older(file: Path, version: int) -> None:
    text = file.read_text(errors="replace") if file.is_file() else ""
    if text.startswith('{"version":3'):
        file.write_text(text.replace("3", str(version), 1))


def compared(one: Path, other: Path) -> list[object]:
    """As `proactor compare` does."""
    files = [one / "evaluations.json", other / "evaluations.json"]
    (dialogues, first), (others, second) = load_comparable(files)
    runs = find_system(first, "after", files[0]), find_system(second, "after", files[1])
    return [*paired_tables(compare_runs(("one", "other"), (dialogues, others), runs, resamples=100), KEYS)]


def test_verdict_caches(tmp_path: Path) -> None:
    def case(draw: Random, folder: Path) -> object:
        line = b'{"key": "a", "scores": {"1": {"value": 0.5, "parts": {}, "explanation": "x"}}}\n'
        (folder / "cache.jsonl").write_bytes(line * 3)
        spoil_file(draw, folder / "cache.jsonl")
        return VerdictCache(folder / "cache.jsonl")

    fuzz("verdict caches", case, 100)


def test_annotations(tmp_path: Path) -> None:
    store = RecordStore(tmp_path / "partial", "f")
    for dialogue in DIALOGUES:
        store.add(DialogueRecord(id=dialogue.id, digest="0", dialogue=dialogue))

    def case(draw: Random, folder: Path) -> object:
        file = folder / "partial"
        file.write_bytes(store.path.read_bytes())
        spoil_file(draw, file)
        return RecordStore(file, "f").records

    fuzz("annotations", case, 100)


def test_places_to_write_to(tmp_path: Path) -> None:
    def case(draw: Random, folder: Path) -> object:
        file = folder / "file"
        file.write_bytes(b"old")
        if draw.random() < 0.5:
            misplace(draw, file)
        name = spoil_text(draw, str(file)) if draw.random() < 0.5 else str(file)
        if not name.startswith(str(folder)):
            name = str(folder / name.replace("/", "-")) if draw.random() < 0.9 else ""
        if ".." in name:
            return None
        draw.choice((atomic_file, append))(name, b"new")
        return Path(name).read_bytes()

    fuzz("places", case, 100)
