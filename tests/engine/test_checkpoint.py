"""Folders written by transformers are read to the bit and quantised while streaming; a save never loses what
was there; how a model is found.
"""

from __future__ import annotations

import json
import resource
import signal
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import huggingface_hub.constants
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from proactor.engine.checkpoint import CheckpointError, is_linear, resolve_model, weight_shapes
from proactor.engine.checkpoint_writer import save_bnb4bit
from proactor.engine.model_config import ModelConfig
from proactor.engine.shards import Shards
from proactor.kernels.nf4 import NF4Tensor
from tests.engine.folders import (
    assert_equals_model,
    load,
    plain_tensor,
)
from tests.tiny import save_tiny

# ---- plain folders ----


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen2", {"tie_word_embeddings": True}),
        ("qwen2", {"num_attention_heads": 8, "num_key_value_heads": 1, "head_dim": 8}),
        ("qwen3", {"tie_word_embeddings": True}),
        ("qwen3", {"attention_bias": True}),
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("mistral", {"head_dim": 32}),
    ],
)
@pytest.mark.parametrize("shard", [None, "20KB"])
def test_loads_every_tensor_transformers_writes(
    tmp_path: Path, family: str, changes: dict[str, Any], shard: str | None
) -> None:
    model = save_tiny(tmp_path, family, shard=shard, **changes)
    assert (tmp_path / "model.safetensors.index.json").exists() is (shard is not None)
    weights = load(tmp_path)
    assert_equals_model(weights, model)
    assert list(weights) == list(weight_shapes(ModelConfig.from_folder(tmp_path)))


def test_converts_to_the_dtype_asked_for(plain: tuple[Path, Any]) -> None:
    folder, model = plain
    weights = load(folder, dtype=torch.float32)
    assert {w.dtype for w in weights.values()} == {torch.float32}
    assert torch.equal(plain_tensor(weights["model.norm.weight"]), model.model.norm.weight.float())


def test_weights_do_not_depend_on_the_file_afterwards(broken: Path, plain: tuple[Path, Any]) -> None:
    weights = load(broken)
    size = (broken / "model.safetensors").stat().st_size
    with (broken / "model.safetensors").open("r+b") as file:
        file.write(b"\0" * size)
    assert_equals_model(weights, plain[1])


def test_quantises_while_streaming_like_bitsandbytes(plain: tuple[Path, Any]) -> None:
    folder, model = plain
    weights = load(folder, quantization="nf4")
    for name, parameter in model.named_parameters():
        weight = weights[name]
        if not is_linear(name):
            assert isinstance(weight, Tensor) and torch.equal(weight, parameter)
            continue
        packed, state = bnb.quantize_4bit(parameter.data, compress_statistics=True, quant_type="nf4")
        assert isinstance(weight, NF4Tensor) and weight.nested
        assert torch.equal(weight.packed, packed.view(-1)) and torch.equal(
            weight.dequantize(), bnb.dequantize_4bit(packed, state)
        )
    assert sum(isinstance(w, NF4Tensor) for w in weights.values()) == 14


def test_transformers_quantises_the_same_folder_to_the_same_bits(plain: tuple[Path, Any]) -> None:
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    model = AutoModelForCausalLM.from_pretrained(
        plain[0], quantization_config=config, device_map="cpu", dtype=torch.bfloat16
    )
    assert_equals_model(load(plain[0], quantization="nf4"), model)


def test_never_holds_two_linears_in_full_precision(
    plain: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: list[weakref.ref[Tensor]] = []
    read = Shards.read

    def watched(self: Shards, name: str) -> Tensor:
        assert not any(ref() is not None for ref in alive), (
            f"a full-precision linear is still held when {name} is read"
        )
        tensor = read(self, name)
        if is_linear(name):
            alive.append(weakref.ref(tensor))
        return tensor

    monkeypatch.setattr(Shards, "read", watched)
    load(plain[0], quantization="nf4")
    assert len(alive) == 14


def test_reports_progress(plain: tuple[Path, Any]) -> None:
    calls: list[tuple[int, int]] = []
    weights = load(plain[0], progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, len(weights)) for i in range(len(weights))]


# ---- saving never loses what was there ----


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Every file is cut at `limit` bytes with an error, as on a full disk."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("limit", [100, 20_000])  # in config.json; in the tensors
def test_a_full_disk_leaves_the_earlier_save(plain: tuple[Path, Any], tmp_path: Path, limit: int) -> None:
    config, weights = json.loads((plain[0] / "config.json").read_text()), load(plain[0])
    save_bnb4bit(tmp_path / "out", config, weights, shard_bytes=30_000)
    changed = {name: w + 1 if isinstance(w, Tensor) else w for name, w in weights.items()}
    with (
        full_disk(limit),
        pytest.raises(CheckpointError, match="cannot be written, an earlier save is untouched") as caught,
    ):
        save_bnb4bit(tmp_path / "out", config, changed)
    assert str(tmp_path / "out") in str(caught.value) and "\n" not in str(caught.value)
    assert_equals_model(load(tmp_path / "out"), plain[1])
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    save_bnb4bit(tmp_path / "out", config, changed)  # fewer shards than before: none of the old ones may stay
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"config.json", "model.safetensors"}


# ---- finding a model ----


def test_a_folder_is_used_as_it_is(tmp_path: Path) -> None:
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


def test_a_folder_whose_replacement_was_cut_off_is_put_back(tmp_path: Path) -> None:
    (tmp_path / ".model.replaced").mkdir()
    assert resolve_model(tmp_path / "model") == tmp_path / "model"


def test_a_hub_id_is_found_in_the_offline_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = tmp_path / "models--someone--tiny"
    commit = "a" * 40
    (repo / "snapshots" / commit).mkdir(parents=True)
    (repo / "snapshots" / commit / "config.json").write_text("{}")
    (repo / "refs").mkdir()
    for ref in ("main", "v2"):
        (repo / "refs" / ref).write_text(commit)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve_model("someone/tiny") == repo / "snapshots" / commit
    assert resolve_model("someone/tiny", "v2") == repo / "snapshots" / commit
    with pytest.raises(
        CheckpointError, match="someone/tiny at revision 'v3': no such folder, and not available from the Hub"
    ):
        resolve_model("someone/tiny", "v3")
    with pytest.raises(CheckpointError, match="someone/other: no such folder"):
        resolve_model("someone/other")
    for name in ("~no-such-user/model", "a\0b", "a\ud800", "x" * 5000):
        with pytest.raises((CheckpointError, OSError)) as caught:
            resolve_model(name)
        assert isinstance(caught.value, CheckpointError) or caught.value.filename


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere", "a/b/c", "bad name!"])
def test_what_is_neither_folder_nor_hub_id(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="no such folder") as caught:
        resolve_model(name)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert ("the Hub" in str(caught.value)) is (name == "bad name!"), (
        "what can only be a path is not looked for on the Hub"
    )


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("")
    with pytest.raises(CheckpointError, match="is a file"):
        resolve_model(tmp_path / "model.gguf")
