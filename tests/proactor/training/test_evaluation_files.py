"""Names of the files that commands add to a run's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.training.evaluation_files import calibration_file
from tests.proactor.runs import config


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
    own = config(tmp_path, tiny_model)
    file = calibration_file(config(tmp_path, tiny_model, *changes), own, parts, adapter, "tradeoff")
    assert file == own.folder / name


def test_thresholds_of_a_run_whose_parts_are_drawn_from_other_splits_are_its_own(
    tmp_path: Path, tiny_model: Path
) -> None:
    parts = ["data.dev.split=train", "data.test.split=null"]
    own = config(tmp_path, tiny_model, *parts)
    for changes, name in (
        (parts, "tradeoff.json"),
        (parts[:1], "tradeoff-dev-train-test-best.json"),
        ([*parts, "data.dev.limit=4"], "tradeoff-dev-train-limit-4-test-all-best.json"),
    ):
        settings = config(tmp_path, tiny_model, *changes)
        assert calibration_file(settings, own, ("dev", "test"), "best", "tradeoff").name == name
