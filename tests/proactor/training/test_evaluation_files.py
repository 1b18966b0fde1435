"""Names of the files that commands add to a run's folder."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from proactor.config_base import ConfigError
from proactor.config_file import load_config
from proactor.training.evaluation_files import RunFiles
from proactor.training.runs import Run
from tests.proactor.runs import config, config_file


def files(folder: Path, model: Path, *overrides: str) -> RunFiles:
    """Of the run of a config that may have been written before, with overrides."""
    file = folder / "tiny.yaml"
    if not file.exists():
        config_file(folder, model)
    return RunFiles.of(load_config(file, overrides), file, overrides)


@pytest.mark.parametrize(
    "parts, adapter, changes, name",
    [
        (("dev", "test"), "best", [], "tradeoff.json"),
        (("dev", "test"), "last", [], "tradeoff-dev-test-last.json"),
        (("train", "test"), "best", [], "tradeoff-train-test-best.json"),
        (("dev", "test"), "best", ["data.dev.limit=400"], "tradeoff-dev-limit-400-test-best.json"),
        (("dev", "test"), "best", ["data.test.limit=null"], "tradeoff-dev-test-no-limit-best.json"),
    ],
)
def test_thresholds_of_something_else_do_not_replace_the_run_s_own(
    tmp_path: Path, tiny_model: Path, parts: tuple[str, str], adapter: str, changes: list[str], name: str
) -> None:
    file = files(tmp_path, tiny_model, *changes).calibration(parts, adapter, "tradeoff")
    assert file == tmp_path / "runs" / "tiny" / name


def test_thresholds_of_a_run_whose_parts_are_drawn_from_other_splits_are_its_own(
    tmp_path: Path, tiny_model: Path
) -> None:
    parts = ["data.dev.split=train", "data.test.split=null"]
    own = config(tmp_path, tiny_model, *parts)
    Run(own.folder).begin(own, resume=False, fresh=False)
    for changes, name in (
        (parts, "tradeoff.json"),
        (parts[:1], "tradeoff-dev-train-test-best.json"),
        ([*parts, "data.dev.limit=4"], "tradeoff-dev-train-limit-4-test-all-best.json"),
    ):
        found = files(tmp_path, tiny_model, *changes).calibration(("dev", "test"), "best", "tradeoff")
        assert found.name == name


OWN = "evaluate-test-best.json"


@pytest.mark.parametrize("begun", [False, True])
@pytest.mark.parametrize(
    ("of_run", "changes", "own"),
    [
        ([], ["reward=rac"], False),
        ([], ["reward_options={weights: [1, 2, 3]}"], False),
        (["reward=rac"], [], True),
        (["eval.reward=rac"], ["reward=max_rac"], True),
        (["eval.reward=rac"], ["reward_options={a: 1}"], True),
        (["eval.reward=rac"], ["eval.reward=null"], False),
    ],
)
def test_an_evaluation_by_another_reward_does_not_replace_the_run_s_own(
    tmp_path: Path, tiny_model: Path, begun: bool, of_run: list[str], changes: list[str], own: bool
) -> None:
    """The top-level reward scores evaluations where `eval.reward` is null, and only there."""
    settings = config(tmp_path, tiny_model, *of_run)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(settings.model_dump(mode="json")))
    if begun:
        Run(settings.folder).begin(settings, resume=False, fresh=False)
    assert (files(tmp_path, tiny_model, *changes).evaluation("test", "best").name == OWN) == own


def test_paths_that_only_an_override_makes_valid_are_no_hindrance(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config, and the run's own, may name folders of another machine."""
    monkeypatch.delenv("PROACTOR_DATA", raising=False)
    (tmp_path / "here").mkdir()
    there = config(tmp_path, tiny_model)
    there = there.model_copy(update={"data": there.data.model_copy(update={"path": "/there/corpus"})})
    data = there.data.model_dump(mode="json") | {"path": "${PROACTOR_DATA}/corpus"}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(there.model_dump(mode="json") | {"data": data}))
    here = f"data.path={tmp_path / 'here'}"
    for begun in (False, True):
        if begun:
            Run(there.folder).begin(there, resume=False, fresh=False)
        name = files(tmp_path, tiny_model, here).evaluation("test", "best").name
        assert re.fullmatch(r"evaluate-test-[0-9a-f]{8}-best\.json", name), "other data, perhaps"
    monkeypatch.setenv("PROACTOR_DATA", str(tmp_path))
    (tmp_path / "corpus").mkdir()
    (there.folder / "config.yaml").unlink()
    assert files(tmp_path, tiny_model).evaluation("test", "best").name == OWN


def test_a_config_that_is_one_only_with_overrides_is_the_run_s_own(tmp_path: Path, tiny_model: Path) -> None:
    file = tmp_path / "tiny.yaml"
    file.write_text("sft: {}")
    with pytest.raises(ConfigError, match="model"):
        load_config(file)
    assert files(tmp_path, tiny_model, f"model={tiny_model}").evaluation("test", "best").name == OWN
