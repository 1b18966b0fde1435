"""A bad folder is one clear line that names the file and what is wrong with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from proactor.engine.checkpoint import CheckpointError
from tests.engine.folders import (
    assert_equals_model,
    load,
    reconfigure,
    rewrite,
)
from tests.tiny import save_tiny, save_tiny_4bit


@pytest.fixture
def broken_4bit(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    folder = tmp_path_factory.getbasetemp() / "nested-4bit"
    if not folder.exists():
        save_tiny_4bit(folder, "qwen2")
    return Path(shutil.copytree(folder, tmp_path / "broken"))


def assert_refused(folder: Path, message: str, file: str = "model.safetensors", **options: Any) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        load(folder, **options)
    assert str(folder / file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("keep", [0, 5, 200, -1, -5000])
def test_truncated_file(broken: Path, keep: int) -> None:
    path = broken / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(broken, "truncated or corrupted safetensors")


@pytest.mark.parametrize(("start", "garbage"), [(0, b"\xff" * 16), (8, b"not json at all"), (0, b"\0" * 8)])
def test_corrupted_header(broken: Path, start: int, garbage: bytes) -> None:
    path = broken / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[start : start + len(garbage)] = garbage
    path.write_bytes(bytes(data))
    assert_refused(broken, "truncated or corrupted safetensors")


@pytest.mark.parametrize("quantization", ["auto", "nf4"])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.down_proj.weight", "model.norm.weight", "model.embed_tokens.weight"]
)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite(broken: Path, name: str, value: float, quantization: str) -> None:
    rewrite(broken, lambda tensors: tensors[name].view(-1)[3:4].fill_(value))
    assert_refused(broken, f"{name}: .*not finite", quantization=quantization)


def test_missing_tensor(broken: Path) -> None:
    rewrite(broken, lambda tensors: tensors.pop("model.layers.1.self_attn.k_proj.bias"))
    assert_refused(broken, r"model\.layers\.1\.self_attn\.k_proj\.bias: missing$")


def test_many_missing_tensors_are_counted(broken: Path) -> None:
    reconfigure(broken, num_hidden_layers=3)
    assert_refused(broken, r"model\.layers\.2\.self_attn\.q_proj\.weight: missing \(and 11 more\)")


def test_missing_head_of_an_untied_model(broken: Path) -> None:
    rewrite(broken, lambda tensors: tensors.pop("lm_head.weight"))
    assert_refused(broken, r"lm_head\.weight: missing")


def test_head_beside_a_tied_embedding(tmp_path: Path) -> None:
    model = save_tiny(tmp_path, tie_word_embeddings=True)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert_equals_model(load(tmp_path), model)
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"] + 1}))
    assert_refused(tmp_path, r"lm_head\.weight: differs from model\.embed_tokens\.weight")
    rewrite(tmp_path, lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn)}))
    assert_refused(tmp_path, r"lm_head\.weight: is F8_E4M3, only F32, F16, BF16 are supported")


def test_missing_file_and_missing_shard(broken: Path, tmp_path: Path) -> None:
    (broken / "model.safetensors").rename(broken / "pytorch_model.bin")
    assert_refused(broken, r"no such file.*found pytorch_model\.bin")
    save_tiny(tmp_path / "sharded", shard="20KB")
    shard = sorted((tmp_path / "sharded").glob("*.safetensors"))[2]
    content = shard.read_bytes()
    shard.unlink()
    assert_refused(tmp_path / "sharded", "this shard is named by .* but is missing", shard.name)
    shard.write_bytes(content[:-10])
    assert_refused(tmp_path / "sharded", "truncated or corrupted", shard.name)
    save_file({"other": torch.ones(2)}, shard)
    assert_refused(
        tmp_path / "sharded", "missing, though model.safetensors.index.json places it here", shard.name
    )


def test_a_single_file_counts_before_an_index(plain: tuple[Path, Any], broken: Path) -> None:
    """As in transformers: the index of an older, sharded save is not read."""
    index = {"weight_map": {"model.norm.weight": "gone-00001-of-00002.safetensors"}}
    (broken / "model.safetensors.index.json").write_text(json.dumps(index))
    theirs = AutoModelForCausalLM.from_pretrained(broken, dtype=torch.bfloat16)
    assert_equals_model(load(broken), theirs)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "weight_map: should map"),
        ('{"weight_map": {"a": 1}}', "weight_map: should map"),
        ('{"weight_map": {"a": "../model.safetensors"}}', "is not a file name"),
    ],
)
def test_malformed_index(broken: Path, index: str, message: str) -> None:
    (broken / "model.safetensors").unlink()
    (broken / "model.safetensors.index.json").write_text(index)
    assert_refused(broken, message, "model.safetensors.index.json")


@pytest.mark.parametrize("quantization", ["auto", "nf4"])
def test_shape_that_contradicts_the_config(broken: Path, quantization: str) -> None:
    reconfigure(broken, intermediate_size=129)
    name = r"model\.layers\.0\.mlp\.gate_proj\.weight"
    message = name + r": shape \[128, 64\] contradicts config\.json, which needs \[129, 64\]"
    assert_refused(broken, message, quantization=quantization)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.0.self_attn.sinks",
        "model.layers.2.mlp.up_proj.weight",
        "model.layers.0.self_attn.o_proj.bias",
    ],
)
def test_unexpected_tensor(broken: Path, name: str) -> None:
    rewrite(broken, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert_refused(broken, f"{name}: unexpected")


def test_rotary_tables_of_old_checkpoints_are_ignored(broken: Path, plain: tuple[Path, Any]) -> None:
    rewrite(
        broken,
        lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}),
    )
    assert_equals_model(load(broken), plain[1])


def test_dtypes_that_are_not_weights(broken: Path) -> None:
    name = "model.layers.0.mlp.up_proj.weight"
    rewrite(broken, lambda tensors: tensors.update({name: torch.zeros(128, 64, dtype=torch.float8_e4m3fn)}))
    assert_refused(broken, f"{name}: is F8_E4M3")
    rewrite(broken, lambda tensors: tensors.update({name: torch.zeros(128, 64, dtype=torch.uint8)}))
    assert_refused(broken, f"{name}: is U8, and has no quant_state")


def test_values_too_large_for_the_dtype(broken: Path) -> None:
    rewrite(broken, lambda tensors: tensors["model.norm.weight"].fill_(1e6))
    assert_refused(broken, r"model\.norm\.weight: does not fit torch\.float16", dtype=torch.float16)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "gptq", "bits": 4}, "quant_method 'gptq' is not supported"),
        ({"quant_method": "awq"}, "quant_method 'awq' is not supported"),
        ({"quant_method": "fp8"}, "quant_method 'fp8' is not supported"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "8-bit is not supported"),
        (
            {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
            "bnb_4bit_quant_type 'fp4'",
        ),
        ([1], "quantization_config: should be an object"),
    ],
)
def test_other_quantisations_are_refused_by_name(broken: Path, quantization: Any, message: str) -> None:
    reconfigure(broken, quantization_config=quantization)
    assert_refused(broken, message, "config.json")


def test_fp4_of_transformers_is_refused(tmp_path: Path) -> None:
    save_tiny_4bit(tmp_path / "fp4", bnb_4bit_quant_type="fp4")
    assert_refused(tmp_path / "fp4", "bnb_4bit_quant_type 'fp4' is not supported", "config.json")
    config = json.loads((tmp_path / "fp4" / "config.json").read_text())
    config["quantization_config"]["bnb_4bit_quant_type"] = "nf4"
    (tmp_path / "fp4" / "config.json").write_text(json.dumps(config))
    assert_refused(tmp_path / "fp4", "'fp4' is not supported")


QUANTIZED = "model.layers.1.mlp.up_proj.weight"
STATE = QUANTIZED + ".quant_state.bitsandbytes__nf4"


def edit_state(folder: Path, **changes: Any) -> None:
    def change(tensors: dict[str, Tensor]) -> None:
        state = {**json.loads(bytes(tensors[STATE].numpy())), **changes}
        tensors[STATE] = torch.tensor(
            list(json.dumps({k: v for k, v in state.items() if v is not ...}).encode()), dtype=torch.uint8
        )

    rewrite(folder, change)


@pytest.mark.parametrize(
    "part", [".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", ".quant_state.bitsandbytes__nf4"]
)
def test_missing_4bit_part(broken_4bit: Path, part: str) -> None:
    rewrite(broken_4bit, lambda tensors: tensors.pop(QUANTIZED + part))
    assert_refused(broken_4bit, f"{QUANTIZED}{part}: missing")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shape": [128, 63]}, r"shape \[128, 63\] contradicts config\.json, which needs \[128, 64\]"),
        ({"blocksize": 48}, "blocksize 48 is not one of"),
        ({"blocksize": 128}, "absmax is"),
        ({"quant_type": "fp4"}, "quant_type 'fp4'"),
        ({"dtype": "float64"}, "dtype 'float64'"),
        ({"nested_offset": None}, "nested_offset None"),
        ({"nested_blocksize": 0}, "nested_blocksize 0"),
    ],
)
def test_malformed_quant_state(broken_4bit: Path, changes: dict[str, Any], message: str) -> None:
    edit_state(broken_4bit, **changes)
    assert_refused(broken_4bit, f"{QUANTIZED}.*{message}")


def test_malformed_4bit_tensors(broken_4bit: Path) -> None:
    original = (broken_4bit / "model.safetensors").read_bytes()
    cases: list[tuple[str, Tensor, str]] = [
        (QUANTIZED, torch.zeros(100, 1, dtype=torch.uint8), "packed is"),
        (QUANTIZED + ".absmax", torch.zeros(5, dtype=torch.uint8), "absmax is"),
        (QUANTIZED + ".nested_absmax", torch.tensor([float("nan")]), "nested_absmax: .*not finite"),
        (QUANTIZED + ".nested_quant_map", torch.full((256,), float("inf")), "nested_quant_map: .*not finite"),
        (QUANTIZED + ".quant_map", torch.linspace(-1, 1, 16), "sixteen NF4 levels"),
        (QUANTIZED + ".quant_map", torch.ones(16).to(torch.float8_e4m3fn), "quant_map: is F8_E4M3, not F32"),
        (QUANTIZED + ".nested_absmax", torch.ones(1).to(torch.float8_e5m2), "nested_absmax: is F8_E5M2"),
        (QUANTIZED + ".nested_absmax", torch.ones(1, dtype=torch.int64), "nested_absmax: is I64, not F32"),
        (QUANTIZED + ".nested_quant_map", torch.ones(256).bfloat16(), "nested_quant_map: is BF16, not F32"),
        (STATE, torch.tensor(list(b"{nonsense"), dtype=torch.uint8), "does not hold JSON"),
    ]
    for name, tensor, message in cases:
        (broken_4bit / "model.safetensors").write_bytes(original)
        tensors = load_file(broken_4bit / "model.safetensors")
        save_file({**tensors, name: tensor}, broken_4bit / "model.safetensors")
        assert_refused(broken_4bit, f"{QUANTIZED}.*{message}")
