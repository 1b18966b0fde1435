"""4-bit folders: those of transformers and bitsandbytes are read to the bit, and they read ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from proactor.engine.checkpoint_writer import save_bnb4bit, save_quantized
from proactor.kernels.nf4 import NF4Tensor
from tests.engine.folders import (
    FOUR_BIT,
    assert_equals_model,
    load,
    plain_tensor,
)
from tests.tiny import save_tiny, save_tiny_4bit


@pytest.fixture(scope="module", params=list(FOUR_BIT))
def four_bit(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp("4bit") / "model"
    model = save_tiny_4bit(folder, "qwen2", **dict(FOUR_BIT[request.param]))
    return request.param, folder, model


def test_4bit_folders_of_transformers_load_bit_exactly(four_bit: tuple[str, Path, Any]) -> None:
    kind, folder, model = four_bit
    weights = load(folder)
    assert_equals_model(weights, model)
    quantized = {name for name, w in weights.items() if isinstance(w, NF4Tensor)}
    if kind == "skip modules":
        assert len(quantized) == 11 and "model.layers.1.self_attn.o_proj.weight" not in quantized
    elif kind == "head too":
        assert len(quantized) == 13 and isinstance(weights["lm_head.weight"], Tensor)
    else:
        assert len(quantized) == 14
    nested = [w.nested for w in weights.values() if isinstance(w, NF4Tensor)]
    assert all(nested) if kind != "single level" else not any(nested)
    assert all(w.dtype == torch.bfloat16 for w in weights.values())


def test_4bit_bytes_are_kept_whatever_quantisation_is_asked_for(four_bit: tuple[str, Path, Any]) -> None:
    _, folder, model = four_bit
    asked = load(folder, quantization="nf4", dtype=torch.float32)
    for name, weight in load(folder).items():
        other = asked[name]
        assert isinstance(weight, NF4Tensor) is isinstance(other, NF4Tensor)
        if isinstance(weight, NF4Tensor) and isinstance(other, NF4Tensor):
            assert torch.equal(weight.packed, other.packed)
    dequantised = load(folder, quantization="none")
    assert_equals_model(dequantised, model)
    assert all(isinstance(w, Tensor) for w in dequantised.values())


def test_4bit_widened_to_fp32_is_what_bitsandbytes_gives(four_bit: tuple[str, Path, Any]) -> None:
    """Rounded to the stored type (bfloat16) first, as bitsandbytes' layers do for any input type."""
    _, folder, model = four_bit
    weights = load(folder, quantization="none", dtype=torch.float32)
    parameter = model.model.layers[1].mlp.down_proj.weight
    expected = bnb.dequantize_4bit(parameter.data, parameter.quant_state)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(plain_tensor(weights["model.layers.1.mlp.down_proj.weight"]), expected.float())


def test_a_tied_model_is_written_with_its_head(tmp_path: Path) -> None:
    """Its tensors share memory, which a file cannot."""
    model = save_tiny(tmp_path / "plain", tie_word_embeddings=True)
    config = json.loads((tmp_path / "plain" / "config.json").read_text())
    save_quantized(tmp_path / "out", config, model.state_dict())
    weights = load(tmp_path / "out")
    assert torch.equal(plain_tensor(weights["model.embed_tokens.weight"]), model.model.embed_tokens.weight)


@pytest.mark.parametrize("shard_bytes", [10**9, 30_000])
def test_our_4bit_folders_load_in_transformers(
    four_bit: tuple[str, Path, Any], tmp_path: Path, shard_bytes: int
) -> None:
    _, folder, _ = four_bit
    weights = load(folder)
    config = json.loads((folder / "config.json").read_text())
    save_bnb4bit(tmp_path / "out", config, weights, folder, shard_bytes)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() is (shard_bytes < 10**9)
    assert (tmp_path / "out" / "generation_config.json").exists()
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")
    assert_equals_model(weights, model)
    again = load(tmp_path / "out")
    for name, weight in weights.items():
        other = again[name]
        if isinstance(weight, NF4Tensor):
            assert isinstance(other, NF4Tensor)
            assert torch.equal(weight.packed, other.packed) and torch.equal(weight.absmax, other.absmax)
            assert weight.nested_offset == other.nested_offset and weight.dtype == other.dtype
        else:
            assert isinstance(other, Tensor) and torch.equal(weight, other)
    ids = torch.arange(8)[None]
    with torch.no_grad():
        logits = model(ids).logits
        plain_logits = AutoModelForCausalLM.from_pretrained(tmp_path / "out", device_map="cpu")(ids).logits
    assert bool(torch.isfinite(logits).all()) and torch.equal(logits, plain_logits)


def test_a_plain_model_quantised_here_computes_the_same_in_transformers(tmp_path: Path) -> None:
    """Logits of our 4-bit folder in transformers are those of the dequantised weights in a plain model."""
    model = save_tiny(tmp_path / "plain", "llama", tie_word_embeddings=True)
    weights = load(tmp_path / "plain", quantization="nf4")
    save_bnb4bit(tmp_path / "nf4", model.config.to_dict(), weights)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "nf4", device_map="cpu", dtype=torch.float32)
    model.load_state_dict(
        {n: w.dequantize() if isinstance(w, NF4Tensor) else w for n, w in weights.items()}, strict=False
    )
    ids = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(0))
    theirs.train()  # in eval mode bitsandbytes repacks on the CPU and computes in bf16
    with torch.no_grad():
        assert torch.allclose(theirs(ids).logits, model(ids).logits, atol=1e-5)


def test_saving_without_quantised_tensors_is_a_plain_folder(plain: tuple[Path, Any], tmp_path: Path) -> None:
    save_bnb4bit(tmp_path / "out", {**json.loads((plain[0] / "config.json").read_text())}, load(plain[0]))
    assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert_equals_model(load(tmp_path / "out"), plain[1])


def test_tokenizer_files_travel(plain: tuple[Path, Any], tmp_path: Path) -> None:
    source = tmp_path / "tokenizer"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "merges.txt", "chat_template.jinja", "model.bin"):
        (source / name).write_text(name)
    save_bnb4bit(tmp_path / "out", json.loads((plain[0] / "config.json").read_text()), load(plain[0]), source)
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "merges.txt",
        "chat_template.jinja",
    }
