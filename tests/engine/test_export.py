"""Exports are what transformers and PEFT make of the same adapter; nothing is left of one cut off."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from proactor.engine import Engine, EngineError, LoRA, export_merged, export_peft, read_lora
from proactor.engine import checkpoint_writer as writer
from proactor.engine.checkpoint import CheckpointError
from tests.engine.engines import load, prompts, save_tokenizer
from tests.engine.peers import padded_logits
from tests.engine.test_checkpoint import full_disk
from tests.tiny import save_tiny, save_tiny_4bit

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2 tied": {"tie_word_embeddings": True},
    "qwen2 untied, sharded": {"tie_word_embeddings": False, "shard": "20KB"},
    "qwen3 tied, sharded": {"family": "qwen3", "tie_word_embeddings": True, "shard": "20KB"},
    "llama with biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
}
MIXED = LoRA(rank=4, alpha=8, rank_pattern={"q_proj": 2}, exclude_modules=["1.mlp.up_proj"])


def prepared(tmp_path: Path, name: str = "qwen2 tied", lora: LoRA = MIXED) -> tuple[Path, Path]:
    """(model, adapter) folders."""
    save_tiny(tmp_path / "model", **{**SMALL, **MODELS[name]})
    load(tmp_path / "model", lora=lora).save_adapter(tmp_path / "adapter")
    return tmp_path / "model", tmp_path / "adapter"


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        return torch.cat(padded_logits(model.eval(), prompts(3, shared=4)))


def transformer(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)


def stored(folder: Path) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return tensors


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_a_merged_model_is_that_of_peft(name: str, shard_bytes: int, tmp_path: Path) -> None:
    model, adapter = prepared(tmp_path, name)
    peer = PeftModel.from_pretrained(transformer(model), adapter)
    expected, bare = logits(peer), logits(transformer(model))
    assert float((expected - bare).abs().max()) > 0.05, "the adapter says nothing"
    calls: list[tuple[int, int]] = []
    export_merged(
        adapter,
        model,
        tmp_path / "out",
        dtype=torch.float32,
        shard_bytes=shard_bytes,
        progress=lambda *at: calls.append(at),
    )
    torch.testing.assert_close(logits(transformer(tmp_path / "out")), expected, rtol=0, atol=1e-5)
    ours = Engine.load(tmp_path / "out", kv_tokens=64)
    theirs = load(model, stir=False, lora=MIXED)
    theirs.load_adapter(adapter)
    for a, b in zip(ours.logprobs(prompts(3)), theirs.logprobs(prompts(3)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
    tensors = stored(tmp_path / "out")
    assert calls == [(i + 1, len(tensors)) for i in range(len(tensors))]
    assert ("lm_head.weight" in tensors) == ("tied" not in name or "untied" in name)
    files = {p.name for p in (tmp_path / "out").iterdir()}
    assert ("model.safetensors" in files) == (shard_bytes > 10**6)
    if shard_bytes < 10**6:
        index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
        assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors.values())
        assert index["weight_map"].keys() == tensors.keys() and len(set(index["weight_map"].values())) > 3


def test_in_bfloat16_each_weight_is_rounded_once(tmp_path: Path) -> None:
    model, adapter = prepared(tmp_path, "qwen2 untied, sharded")
    export_merged(adapter, model, tmp_path / "out")
    merged = PeftModel.from_pretrained(transformer(model), adapter).merge_and_unload().state_dict()
    tensors = stored(tmp_path / "out")
    assert tensors.keys() == merged.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == torch.bfloat16, name
        # float32 sums in another order may fall on the other side of a tie
        torch.testing.assert_close(tensor.float(), merged[name], rtol=2**-8, atol=1e-6, msg=name)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert {config.get("dtype"), config.get("torch_dtype")} - {None} == {"bfloat16"}
    assert transformer(tmp_path / "out", dtype="auto").dtype == torch.bfloat16
    wide = logits(PeftModel.from_pretrained(transformer(model), adapter))
    assert float((logits(transformer(tmp_path / "out")) - wide).abs().max()) < 0.05 * float(wide.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_4bit_base_is_dequantised(dtype: torch.dtype, tmp_path: Path) -> None:
    save_tiny_4bit(tmp_path / "model", dtype=dtype)
    engine = load(tmp_path / "model", lora=MIXED)
    engine.save_adapter(tmp_path / "adapter")
    export_merged(tmp_path / "adapter", tmp_path / "model", tmp_path / "out", dtype=torch.float32)
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    model, ids = transformer(tmp_path / "out"), prompts(3)
    rows = padded_logits(model.eval(), ids)
    for ours, theirs, sequence in zip(engine.logprobs(ids), rows, ids, strict=True):
        logp = theirs.detach().log_softmax(-1)[range(len(sequence) - 1), sequence[1:]]
        torch.testing.assert_close(ours, logp, rtol=0, atol=1e-5)


def test_what_serves_the_model_comes_along(tmp_path: Path) -> None:
    save_tiny(tmp_path / "model", vocab_size=264, eos_token_id=256, **SMALL)
    save_tokenizer(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}!{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "model")
    GenerationConfig(eos_token_id=[256, 7], temperature=0.3, do_sample=True).save_pretrained(
        tmp_path / "model"
    )
    load(tmp_path / "model").save_adapter(tmp_path / "adapter")
    export_merged(tmp_path / "adapter", tmp_path / "model", tmp_path / "merged")
    export_peft(tmp_path / "adapter", tmp_path / "model", tmp_path / "peft")
    for out in (tmp_path / "merged", tmp_path / "peft"):
        again = AutoTokenizer.from_pretrained(out)
        assert again.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False) == "a!"
        assert again.eos_token_id == 256
        assert GenerationConfig.from_pretrained(out).eos_token_id == [256, 7]
    assert Engine.load(tmp_path / "merged", kv_tokens=64).eos_ids == {256, 7}


@pytest.mark.parametrize("name", ["qwen2 tied", "qwen2 untied, sharded"])
def test_a_peft_folder_names_its_base(name: str, tmp_path: Path) -> None:
    model, adapter = prepared(tmp_path, name)
    shutil.copytree(model, tmp_path / "other")
    export_peft(adapter, tmp_path / "other", tmp_path / "out")
    expected = logits(PeftModel.from_pretrained(transformer(model), adapter))
    # transformers finds the base by the name in the folder
    torch.testing.assert_close(logits(transformer(tmp_path / "out")), expected, rtol=0, atol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "other")
    assert read_lora(tmp_path / "out") == MIXED


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter = prepared(tmp_path)
    before = {p.name for p in tmp_path.iterdir()}
    for export in (export_merged, export_peft):
        with full_disk(5_000), pytest.raises(CheckpointError, match="out: cannot be written") as caught:
            export(adapter, model, tmp_path / "out")
        assert "\n" not in str(caught.value) and {p.name for p in tmp_path.iterdir()} == before
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"out: needs 0\.0 GB, 0\.0 GB are free there"):
        export_merged(adapter, model, tmp_path / "out")
    assert {p.name for p in tmp_path.iterdir()} == before


def test_no_more_than_a_shard_is_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, adapter = prepared(tmp_path)
    held: list[int] = []

    def save(parts: dict[str, Tensor], *rest: Any, **options: Any) -> None:
        held.append(sum(t.nbytes for t in parts.values()))
        save_file(parts, *rest, **options)

    save_file = writer.save_file
    monkeypatch.setattr(writer, "save_file", save)
    export_merged(adapter, model, tmp_path / "out", shard_bytes=20_000)
    assert len(held) > 2 and max(held) <= 20_000


def test_what_is_refused(tmp_path: Path) -> None:
    model, adapter = prepared(tmp_path)
    save_tiny(tmp_path / "wider", hidden_size=64, intermediate_size=64, head_dim=8)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "notes.txt").write_text("mine")
    for export in (export_merged, export_peft):
        for place in (model, tmp_path / "used", tmp_path / "used" / "notes.txt"):
            with pytest.raises(EngineError, match="exists and is not empty"):
                export(adapter, model, place)
        with pytest.raises(EngineError, match=r"q_proj: A .* do not fit the model's linear"):
            export(adapter, tmp_path / "wider", tmp_path / "out")
        with pytest.raises(EngineError, match="no such folder"):
            export(adapter, tmp_path / "none", tmp_path / "out")
        with pytest.raises(EngineError, match=r"adapter_config\.json"):
            export(model, model, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "empty").mkdir()
    export_merged(adapter, model, tmp_path / "empty")
    assert (tmp_path / "empty" / "model.safetensors").exists()
