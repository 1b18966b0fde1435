"""``proactor export``: of a run and of an adapter, in both formats, with a check; and what it refuses."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from proactor.engine import Engine, LoRA, read_lora
from proactor.server.opening import Opening
from tests.proactor.commands.calls import call, refusal
from tests.proactor.runs import adapter_run, config_file

TEXT = "a line that both models read\n"


@pytest.fixture(scope="module")
def run(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as `train` leaves it, as far as an export reads it."""
    return adapter_run(tmp_path_factory.mktemp("runs") / "support", model)


def scores(model: Path, adapter: Path | None = None) -> torch.Tensor:
    lora = None if adapter is None else read_lora(adapter)
    engine = Engine.load(model, lora=lora, kv_tokens=64)
    if adapter is not None:
        engine.load_adapter(adapter)
    return torch.cat(engine.logprobs([engine.encode("some text to score"), [3, 4, 5, 6]]))


def test_a_run_in_both_formats(run: Path, model: Path, tmp_path: Path) -> None:
    expected = scores(model, run / "best")
    call("export", run, "--out", tmp_path / "peft")
    torch.testing.assert_close(scores(model, tmp_path / "peft"), expected, rtol=0, atol=1e-5)
    assert (tmp_path / "peft" / "tokenizer.json").exists()
    call("export", run, "--format", "merged-bf16", "--out", tmp_path / "merged")
    merged = scores(tmp_path / "merged")
    assert 0 < float((merged - expected).abs().max()) < 0.1 < float((scores(model) - expected).abs().max())


def test_an_adapter_is_merged_into_the_model_it_names_or_is_given(
    run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(model, tmp_path / "other")
    merged = ("export", run / "best", "--format", "merged-bf16")
    call(*merged, "--out", tmp_path / "named")
    model.rename(model.with_name("away"))
    try:
        call(*merged, "--out", tmp_path / "given", "--base", tmp_path / "other")
    finally:
        model.with_name("away").rename(model)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("named", "given")]
    assert weights[0] == weights[1]
    config = tmp_path / "nameless" / "adapter_config.json"
    shutil.copytree(run / "best", config.parent)
    config.write_text(config.read_text().replace(f'"{model}"', "null"))
    said = refusal(capsys, "export", config.parent, "--out", tmp_path / "out")
    assert "the adapter names no model; give --base MODEL" in said


@pytest.mark.parametrize("form", ["peft", "merged-bf16"])
def test_the_check_tells_how_far_the_4bit_base_is(
    form: str, run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts.txt").write_text(TEXT * 2)
    check = ("--check", model, "--texts", tmp_path / "texts.txt")
    call("export", run, "--format", form, "--out", tmp_path / "out", *check)
    said = capsys.readouterr().out
    four_bits = Engine.load(model, quantization="nf4", kv_tokens=64, lora=read_lora(run / "best"))
    four_bits.load_adapter(run / "best")
    served = tmp_path / "out" if form == "merged-bf16" else model
    lora = None if form == "merged-bf16" else read_lora(run / "best")
    serving = Engine.load(served, kv_tokens=64, lora=lora)
    if lora is not None:
        serving.load_adapter(run / "best")
    ids = serving.encode(TEXT.strip())
    gap = serving.logprobs([ids])[0].double() - four_bits.logprobs([ids])[0].double()
    changed = 2 * int((serving.greedy([ids])[0] != four_bits.greedy([ids])[0]).sum())
    assert float(gap.abs().mean()) > 1e-3
    assert f"{2 * len(gap)} tokens: {float(gap.abs().mean()):.4f} nats apart in the mean" in said
    assert f"at most {float(gap.abs().max()):.3f}" in said
    assert f"greedy decisions that changed: {changed} of {2 * len(gap)}" in said


def test_a_run_on_few_linears_is_trained_served_and_exported(tiny_model: Path, tmp_path: Path) -> None:
    few = {
        "rank": 4,
        "targets": ["k_proj", "mlp.down_proj"],
        "layers_to_transform": [1],
        "rank_pattern": {"down_proj": 2},
    }
    changes = {"lora": few, "reward": "tests.proactor.runs:length_reward", "sft": None}
    call("train", config_file(tmp_path, tiny_model, **changes), "grpo.steps=1", "grpo.eval_every=1")
    run = tmp_path / "runs" / "tiny"
    lora = read_lora(run / "last")
    assert lora == LoRA(**few) and lora.targets == ("k", "down")
    opened = Opening.of(str(run), ["last"], ["engine.deterministic=false"]).load()
    assert opened.memory()["adapter"] == 8 * sum(p.numel() for p in opened.parameters())
    assert len(opened.parameters()) == 4 and all(bool(p.any()) for p in opened.parameters())
    ids = [[3, 4, 5, 6, 7], list(range(20, 60))]
    served = torch.cat(opened.logprobs(ids))
    opened.release()
    call("export", run, "--adapter", "last", "--out", tmp_path / "out")
    beside = Opening.of(str(tiny_model), [f"few={tmp_path / 'out'}"]).load()
    torch.testing.assert_close(torch.cat(beside.logprobs(ids)), served, rtol=0, atol=1e-5)
    assert float((torch.cat(beside.logprobs(ids, adapter=False)) - served).abs().max()) > 1e-4
    beside.release()


def test_refusals(run: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "out")
    for arguments, words in (
        ((run, *out, "--check", model), "--check BASE and --texts FILE: one goes with the other"),
        ((run, *out, "--adapter", "none"), "nothing to export of the bare model"),
        ((run, *out, "--adapter", "last"), "no adapter there"),
        ((model, *out), "neither a run's folder nor one with an adapter"),
        ((model / "config.json", *out), "neither a run's folder nor one with an adapter"),
        ((tmp_path / "gone", *out), "gone: no such folder"),
        ((run, "--out", model), "exists and is not empty"),
        ((run, *out, "--base", tmp_path / "gone"), "no such folder"),
        ((run, *out, "--check", model, "--texts", tmp_path / "gone.txt"), "gone.txt: no such file"),
    ):
        assert words in refusal(capsys, "export", *arguments)
        assert not (tmp_path / "out").exists()
