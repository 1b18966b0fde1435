"""The budget of copies and waits, and that it catches what it is for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from proactor.engine.paged import StepRows
from proactor.engine.sampler import Sampler
from proactor.engine.tables import TableView
from tests.card.card import on_card
from tests.card.counts import PLAIN, RECORD, measure, steps
from tests.card.engines import needs_card, open_engine, write
from tests.card.process import own_process

pytestmark = needs_card


@own_process
def test_budget(tmp_path: Path) -> None:
    allowed = json.loads(RECORD.read_text(encoding="utf-8"))
    with on_card():
        found = measure(open_engine(write(tmp_path / "model")))
    other = {work: count for work, count in found.items() if count.totals != allowed.get(work)}
    assert not other and found.keys() == allowed.keys(), "\n".join(
        [f"not what {RECORD.name} allows (when fewer: python -m tests.card.counts --write)"]
        + [f"{work}: {count.totals} instead of {allowed.get(work)}\n{count}" for work, count in other.items()]
    )


@own_process
def test_one_more_upload_is_seen(tmp_path: Path) -> None:
    allowed = json.loads(RECORD.read_text(encoding="utf-8"))["decode"]

    def planted(plain: Any) -> Any:
        def method(*args: Any, **kwargs: Any) -> Any:
            torch.tensor([0.0], device="card")
            return plain(*args, **kwargs)

        return method

    with on_card():
        engine = open_engine(write(tmp_path / "model"))
        for owner, name in [(StepRows, "build"), (TableView, "attend"), (Sampler, "_draw")]:
            with mock.patch.object(owner, name, planted(getattr(owner, name))):
                found = steps(engine, PLAIN)[-1]
            assert found.totals == {**allowed, "uploads": allowed["uploads"] + 1}, f"{name}\n{found}"
