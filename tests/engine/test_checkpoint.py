"""Folders written by transformers and bitsandbytes are read to the bit, ours are read by them, and a bad folder is one clear line."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from proactor.engine.checkpoint import (
    CheckpointError,
    is_linear,
    load_weights,
    resolve_model,
    save_bnb4bit,
    weight_shapes,
)
from proactor.engine.model_config import ModelConfig
from proactor.engine.shards import Shards
from proactor.kernels.nf4 import NF4Tensor
from tests.tiny import save_tiny, save_tiny_4bit

SKIPPED = ["lm_head", "model.layers.0.mlp.up_proj", "o_proj"]
FOUR_BIT: dict[str, dict[str, Any]] = {
    "nested": {},
    "single level": {"double": False},
    "skip modules": {"llm_int8_skip_modules": SKIPPED},
    "head too": {"llm_int8_skip_modules": ["model.layers.0.mlp.up_proj"]},
    "bf16 storage": {"bnb_4bit_quant_storage": torch.bfloat16},
}


def load(folder: Path, **options: Any) -> dict[str, Tensor | NF4Tensor]:
    return load_weights(folder, ModelConfig.from_folder(folder), **options)


def parameter_of(parameter: Any) -> Tensor:
    """What a transformers parameter stands for: dequantised by bitsandbytes where it is packed."""
    state = getattr(parameter, "quant_state", None)
    result: Tensor = parameter.data if state is None else bnb.dequantize_4bit(parameter.data, state)
    return result


def plain_tensor(weight: Tensor | NF4Tensor) -> Tensor:
    assert isinstance(weight, Tensor)
    return weight


def assert_equals_model(weights: dict[str, Tensor | NF4Tensor], model: Any) -> None:
    parameters = dict(model.named_parameters())
    assert set(weights) == set(parameters)
    for name, weight in weights.items():
        ours = weight.dequantize() if isinstance(weight, NF4Tensor) else weight
        assert torch.equal(ours, parameter_of(parameters[name])), name


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    """Change the tensors of a single-file folder in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reconfigure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("plain") / "model"
    return folder, save_tiny(folder, "qwen2", torch.bfloat16)


@pytest.fixture(scope="module", params=list(FOUR_BIT))
def four_bit(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    folder = tmp_path_factory.mktemp("4bit") / "model"
    model = save_tiny_4bit(folder, "qwen2", **dict(FOUR_BIT[request.param]))
    return request.param, folder, model


@pytest.fixture
def broken(plain: tuple[Path, Any], tmp_path: Path) -> Path:
    """A copy of the plain folder, to be broken."""
    return Path(shutil.copytree(plain[0], tmp_path / "broken"))


@pytest.fixture
def broken_4bit(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> Path:
    folder = tmp_path_factory.getbasetemp() / "nested-4bit"
    if not folder.exists():
        save_tiny_4bit(folder, "qwen2")
    return Path(shutil.copytree(folder, tmp_path / "broken"))


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


def test_never_holds_two_linears_in_full_precision(plain: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[weakref.ref[Tensor]] = []
    read = Shards.read

    def watched(self: Shards, name: str) -> Tensor:
        assert not any(ref() is not None for ref in alive), f"a full-precision linear is still held when {name} is read"
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


# ---- 4-bit folders, both ways ----


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
    """Rounded to the stored type (bfloat16) first, as bitsandbytes' own layers do whatever the type of their input."""
    _, folder, model = four_bit
    weights = load(folder, quantization="none", dtype=torch.float32)
    parameter = model.model.layers[1].mlp.down_proj.weight
    expected = bnb.dequantize_4bit(parameter.data, parameter.quant_state)
    assert expected.dtype == torch.bfloat16
    assert torch.equal(plain_tensor(weights["model.layers.1.mlp.down_proj.weight"]), expected.float())


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


# ---- bad input ----


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
    assert_refused(tmp_path / "sharded", "missing, though model.safetensors.index.json places it here", shard.name)


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
    (broken / "model.safetensors.index.json").write_text(index)
    assert_refused(broken, message, "model.safetensors.index.json")


@pytest.mark.parametrize("quantization", ["auto", "nf4"])
def test_shape_that_contradicts_the_config(broken: Path, quantization: str) -> None:
    reconfigure(broken, intermediate_size=129)
    message = (
        r"model\.layers\.0\.mlp\.gate_proj\.weight: shape \[128, 64\] contradicts config\.json, which needs \[129, 64\]"
    )
    assert_refused(broken, message, quantization=quantization)


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.self_attn.sinks", "model.layers.2.mlp.up_proj.weight", "model.layers.0.self_attn.o_proj.bias"],
)
def test_unexpected_tensor(broken: Path, name: str) -> None:
    rewrite(broken, lambda tensors: tensors.update({name: torch.ones(4)}))
    assert_refused(broken, f"{name}: unexpected")


def test_rotary_tables_of_old_checkpoints_are_ignored(broken: Path, plain: tuple[Path, Any]) -> None:
    rewrite(broken, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}))
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
        (QUANTIZED + ".quant_map", torch.linspace(-1, 1, 16), "sixteen NF4 levels"),
        (STATE, torch.tensor(list(b"{nonsense"), dtype=torch.uint8), "does not hold JSON"),
    ]
    for name, tensor, message in cases:
        (broken_4bit / "model.safetensors").write_bytes(original)
        tensors = load_file(broken_4bit / "model.safetensors")
        save_file({**tensors, name: tensor}, broken_4bit / "model.safetensors")
        assert_refused(broken_4bit, f"{QUANTIZED}.*{message}")


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
