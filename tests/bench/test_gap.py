"""The gap between sampler and trainer, on a small model."""

from __future__ import annotations

import json
from pathlib import Path

from bench import gap
from tests.engine.chat_templates import save_chat_model


def test_deterministic_modes_have_none(tmp_path: Path) -> None:
    folder = save_chat_model(tmp_path / "small", context=128)
    assert (
        gap.main(
            [str(folder), "--samples", "2", "--tokens", "6", "--repeats", "1", "--results", str(tmp_path)]
        )
        == 0
    )
    [file] = tmp_path.glob("*/gap.json")
    record = json.loads(file.read_text())
    assert record["model"] == "small" and record["sequences"] == 8
    gaps = {name: mode["gap"]["max"] for name, mode in record["modes"].items()}
    assert gaps.pop("bfloat16") > 1e-4 > gaps.pop("float32") and set(gaps.values()) == {0.0}
