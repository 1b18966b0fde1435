"""Phases of a decode and of a training step beside their floors, on a small model."""

from __future__ import annotations

from pathlib import Path

import pytest

from proactor.engine import EngineError, load_to_profile, profile_decode, profile_kernels, profile_step
from proactor.engine.config import EngineConfig
from proactor.engine.floors import decode_work, linear_weights, train_work
from proactor.engine.known_models import qwen25
from tests.engine.engines import load

OPTIONS = EngineConfig(kv_tokens=2048, max_batch=8, page_size=4)


def test_weights_of_a_model_that_is_known() -> None:
    assert linear_weights(qwen25("14B")) == 48 * 275_251_200


def test_work_counts_each_weight_once(folder: Path) -> None:
    engine = load(folder)
    c, held = engine.config, engine.decoder.nbytes()
    one, four = (decode_work(engine.decoder, batch, 100)["sample: model"] for batch in (1, 4))
    keys = 2 * c.num_layers * c.num_kv_heads * c.head_dim * 100 * 4
    assert one.bytes == held["dense"] + held["adapter"] / 2 + keys and four.bytes - one.bytes == 3 * keys
    assert four.flops == 4 * one.flops
    work = train_work(engine.decoder, 10, 3)
    assert work["train: model"].flops == 20 * linear_weights(c)
    assert work["train: head and loss"].flops == 6 * c.vocab_size * c.hidden_size
    assert work["train: backward"].flops == sum(
        work[name].flops for name in ("train: model", "train: head and loss")
    )


def test_a_decode_step(folder: Path) -> None:
    found = profile_decode(load_to_profile(folder, OPTIONS), batch=3, context=8, tokens=6)
    phases = {phase.name: phase for phase in found.phases}
    assert {"sample: model", "sample: head", "sample: draw", "sample: plan"} <= phases.keys()
    assert "sample: prompts" not in phases
    assert sum(phase.share for phase in found.phases) == pytest.approx(1)
    assert phases["sample: model"].bound and phases["sample: model"].floor > 0
    assert phases["sample: plan"].bound == "" and phases["sample: plan"].floor == 0


def test_a_training_step(folder: Path) -> None:
    engine = load_to_profile(folder, OPTIONS)
    found = profile_step(engine, prompts=2, samples=2, context=8, tokens=4)
    names = [phase.name for phase in found.phases]
    assert {"train: model", "train: backward", "train: optimizer", "sample: model"} <= set(names)
    assert all(phase.bound for phase in found.phases if phase.name in ("sample: prompts", "train: backward"))
    assert sum(phase.share for phase in found.phases) <= 1 and engine.policy_version == 2


def test_kernels_of_a_folder_and_of_a_name(folder: Path) -> None:
    ceilings, rows = profile_kernels(str(folder), only="rms_norm", seconds=0.0)
    found = list(rows)
    assert {row.name for row in found} == {"rms_norm", "add_rms_norm"}
    assert all(row.floor == ceilings.floor(row.bytes, row.flops)[0] and row.seconds > 0 for row in found)
    _, rows = profile_kernels("qwen2.5-14b", only="logprob_loss", seconds=0.0)
    assert all("operations" in row.left_out for row in rows), "a CPU would take minutes"
    with pytest.raises(EngineError, match="neither a folder nor a known name"):
        profile_kernels("qwen9")
