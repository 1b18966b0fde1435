"""4-bit linears on a CPU in an engine: which form runs, what it computes, what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from proactor.engine import GRPO, Engine, EngineConfig, EngineError, Group, GRPOLoss, LoRA, Sample, plan_here
from proactor.engine import memory as budgets
from proactor.engine.config_keys import CheckpointError
from proactor.engine.footprint import Footprint
from proactor.engine.known_models import qwen2_keys
from proactor.engine.model_config import ModelConfig
from proactor.engine.random_checkpoint import make_checkpoint
from proactor.engine.shards import Shards
from proactor.kernels import nf4_cpu
from proactor.kernels.nf4_library import library_fuses
from proactor.kernels.op import ModelShape

TINY = qwen2_keys(ModelShape("tiny", 128, 2, 4, 2, 32, 192, 101), max_position_embeddings=128)
fused = pytest.mark.skipif(not library_fuses(), reason="bitsandbytes has no fused product here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "model"
    make_checkpoint(folder, TINY, "bnb-nf4")
    return folder


@pytest.fixture(autouse=True)
def known_crossover(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nf4_cpu, "crossover", lambda columns: 16)


def groups() -> list[Group]:
    prompt = list(range(5, 35))
    answers = [[40 + i, 50, 60 + i, 70] for i in range(4)]
    return [Group(prompt, [Sample(prompt, ids, advantage=i - 1.5) for i, ids in enumerate(answers)])]


def measured(folder: Path, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities of short and long sequences, and the adapter's gradient."""
    engine = Engine.load(folder, lora=LoRA(rank=4), **options)
    assert engine.trainer is not None
    generator = torch.Generator().manual_seed(0)
    engine.trainer.lora.flat.data.copy_(
        torch.randn(engine.trainer.lora.flat.shape, generator=generator) * 0.05
    )
    scores = [engine.logprobs([list(range(5, 5 + count))])[0] for count in (6, 60)]
    engine.forward_backward(groups(), GRPOLoss(GRPO()))
    engine.reduce_gradients()
    return torch.cat(scores), torch.cat([leaf.grad.flatten() for leaf in engine.trainer.lora.leaves])  # type: ignore[union-attr]


def test_few_and_many_rows_compute_the_dense_model(folder: Path) -> None:
    scores, gradient = measured(folder, dtype="bfloat16", resident="nf4")
    wanted, slope = measured(folder, dtype="float32", resident="dense")
    close = measured(folder, dtype="bfloat16", resident="dense")
    gap, usual = ((found - wanted).abs().max() for found in (scores, close[0]))
    turn, ordinary = ((found - slope).norm() / slope.norm() for found in (gradient, close[1]))
    print(f"log-probabilities {gap:.1e} (dense bfloat16 {usual:.1e}), gradient {turn:.1e} ({ordinary:.1e})")
    assert gap < 0.1 and turn < 0.1 and turn < 3 * ordinary


def test_float32_rows_meet_the_exact_weight(folder: Path) -> None:
    found, wanted = (measured(folder, dtype="float32", resident=kind) for kind in ("nf4", "dense"))
    torch.testing.assert_close(found[0], wanted[0], rtol=0, atol=1e-5)
    assert float((found[1] - wanted[1]).norm() / wanted[1].norm()) < 1e-5


@fused
def test_the_form_is_named_and_the_codes_are_held_once(folder: Path) -> None:
    engine = Engine.load(folder, dtype="bfloat16", resident="nf4")
    assert engine.linear_forms == ("nf4 on the CPU, fused up to 16 rows, dequantised in parts above",)
    linears = sum(_size(base) for base in _bases(engine))
    held = engine.memory()
    assert held["dense"] == 0 and held["nf4"] < 0.6 * linears + 4096 * len(_bases(engine))
    exact = Engine.load(folder, deterministic=True, resident="nf4")
    assert exact.linear_forms == ("nf4, dequantised to float32 at each use",)
    dense = Engine.load(folder, dtype="bfloat16")
    assert [form.startswith("dense bfloat16") for form in dense.linear_forms] == [True]


def _bases(engine: Engine) -> list[Any]:
    return [base for layer in engine.decoder.layers for base in layer.linears.values()]


def _size(base: Any) -> int:
    rows, columns = base.weight().shape
    return int(rows * columns)


def test_what_does_not_fit_dense_stays_in_4_bits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = Engine.load(folder, dtype="bfloat16").memory()["dense"]
    whole = Footprint.of(ModelConfig.from_folder(folder), None, False, torch.bfloat16).held
    monkeypatch.setattr(budgets, "host_memory", lambda: int(1.2 * whole))
    engine = Engine.load(folder, dtype="bfloat16")
    assert engine.memory()["nf4"] > 0 and engine.memory()["dense"] == 0
    options = EngineConfig(dtype="bfloat16", device="cpu")
    with_adapter = Footprint.of(ModelConfig.from_folder(folder), LoRA(), False, torch.bfloat16)
    monkeypatch.setattr(budgets, "host_memory", lambda: with_adapter.held)
    assert plan_here(folder, options=options).footprint.weights < with_adapter.weights
    with pytest.raises(EngineError, match=r"model on cpu: needs .* available: take a smaller model"):
        monkeypatch.setattr(budgets, "host_memory", lambda: 1000)
        Engine.load(folder, dtype="bfloat16")
    with pytest.raises(EngineError, match=r"model on cpu: needs .* available: take a smaller model"):
        plan_here(folder, options=options)
    with pytest.raises(EngineError, match=r"available: leave resident out, or take"):
        Engine.load(folder, dtype="bfloat16", resident="dense")
    monkeypatch.setattr(budgets, "host_memory", lambda: None)
    assert Engine.load(folder, dtype="bfloat16").memory()["dense"] == dense


def test_pages_of_the_file_are_given_back(tmp_path: Path) -> None:
    try:
        smaps = Path("/proc/self/smaps").read_text()
    except OSError:
        pytest.skip("no /proc/self/smaps")
    assert smaps
    make_checkpoint(tmp_path / "model", {**TINY, "vocab_size": 20_000}, "bf16")
    with Shards(tmp_path / "model") as shards:
        table = shards.read("model.embed_tokens.weight")
        total = table.float().sum()
        assert resident(table.data_ptr()) > 0.9 * table.nbytes
        shards.release(table)
        assert resident(table.data_ptr()) < 0.1 * table.nbytes
        assert table.float().sum() == total, "they are read from the file again"


def resident(address: int) -> int:
    """Bytes of the mapping around an address that are in this process's memory."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            start, end = (int(part, 16) for part in first.split("-"))
            inside = start <= address < end
        elif inside and first == "Rss:":
            return int(line.split()[1]) * 1024
    raise AssertionError("not mapped")


def test_a_file_without_its_header_is_refused(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "model"
    copy.mkdir()
    for file in folder.iterdir():
        data = file.read_bytes()
        (copy / file.name).write_bytes(bytes(8) + data[8:] if file.suffix == ".safetensors" else data)
    with pytest.raises(CheckpointError, match=r"model\.safetensors: truncated or corrupted"):
        Engine.load(copy)
