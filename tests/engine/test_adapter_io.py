"""Adapters that PEFT wrote are read, ours are read by PEFT with the same logits, and what cannot be
represented is refused by name.
"""

from __future__ import annotations

import json
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from proactor.engine.adapter_io import has_adapter, read_lora, read_peft, write_peft
from proactor.engine.config_keys import CheckpointError
from proactor.engine.lora_config import LoRA
from proactor.engine.model_config import ModelConfig
from tests.tiny import tiny_config, tiny_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.randint(0, 101, (2, 9), generator=torch.Generator().manual_seed(0))
CONFIG = ModelConfig.from_dict({**tiny_config().to_dict(), "architectures": None})
KEY = "base_model.model.model.layers.1.self_attn.q_proj.lora_A.weight"


def peft_model(**options: Any) -> Any:
    values: dict[str, Any] = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ALL,
        "task_type": "CAUSAL_LM",
        "init_lora_weights": False,
    }
    return get_peft_model(tiny_model(), LoraConfig(**{**values, **options})).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("peft") / "adapter"
    torch.manual_seed(1)
    model = peft_model()
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def broken(saved: tuple[Path, Any], tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved[0], tmp_path / "broken"))


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(IDS).logits
    return result


def test_reads_what_peft_writes(saved: tuple[Path, Any]) -> None:
    folder, model = saved
    pairs, lora = read_peft(folder, CONFIG)
    assert lora == LoRA(rank=4, alpha=6.0)
    assert len(pairs) == 14 and next(iter(pairs)) == "model.layers.0.self_attn.q_proj"
    for name, (a, b) in pairs.items():
        module = model.base_model.model.get_submodule(name)
        assert torch.equal(a, module.lora_A["default"].weight) and torch.equal(
            b, module.lora_B["default"].weight
        )


def test_peft_reads_what_we_write(saved: tuple[Path, Any], tmp_path: Path) -> None:
    pairs, lora = read_peft(saved[0])
    write_peft(tmp_path / "ours", pairs, lora, base_model="someone/tiny")
    again = read_peft(tmp_path / "ours", CONFIG)
    assert again[1] == lora and list(again[0]) == list(pairs)
    loaded = PeftModel.from_pretrained(tiny_model(), tmp_path / "ours").eval()
    assert loaded.peft_config["default"].base_model_name_or_path == "someone/tiny"
    assert torch.equal(logits(loaded), logits(saved[1]))
    assert not torch.allclose(logits(loaded), logits(tiny_model()), atol=1e-3)


def test_an_adapter_that_was_changed_is_damaged(saved: tuple[Path, Any], tmp_path: Path) -> None:
    """PEFT writes no checksum: what it wrote is taken as it is."""
    pairs, lora = read_peft(saved[0])
    for name in ("ours", "again"):
        write_peft(tmp_path / name, pairs, lora)
    config, file = (tmp_path / "ours" / name for name in ("adapter_config.json", "adapter_model.safetensors"))
    data = file.read_bytes()
    assert data == (tmp_path / "again" / file.name).read_bytes()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert_refused(tmp_path / "ours", "damaged, it or adapter_config.json is not", file.name)
    file.write_bytes(data)
    for changed in ({"lora_alpha": lora.alpha + 1}, {"use_rslora": True}):
        config.write_text(json.dumps(json.loads(config.read_text()) | changed))
        assert_refused(tmp_path / "ours", "damaged, it or adapter_config.json is not", file.name)
    written = json.loads((tmp_path / "again" / config.name).read_text())
    config.write_text(json.dumps(written | {"base_model_name_or_path": "another/place"}))
    assert read_peft(tmp_path / "ours")[1] == lora


def test_views_of_one_buffer_can_be_written(tmp_path: Path) -> None:
    flat = torch.randn(4 * 64 + 64 * 4, requires_grad=True)
    pair = (flat[:256].view(4, 64), flat[256:].view(4, 64).T)  # shared memory, one half not contiguous
    write_peft(tmp_path, {"model.layers.0.self_attn.q_proj": pair}, LoRA(rank=4, targets=("q",)))
    (a, b), *_ = read_peft(tmp_path)[0].values()
    assert torch.equal(a, pair[0]) and torch.equal(b, pair[1])


def test_a_full_disk_leaves_the_earlier_adapter(saved: tuple[Path, Any], tmp_path: Path) -> None:
    pairs, lora = read_peft(saved[0])
    write_peft(tmp_path / "out", pairs, lora)
    (tmp_path / "out" / "notes.txt").write_text("mine")
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot be written, an earlier save is untouched"):
            write_peft(tmp_path / "out", {name: (a + 1, b) for name, (a, b) in pairs.items()}, lora)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    again = read_peft(tmp_path / "out")[0]
    assert all(torch.equal(again[name][0], a) for name, (a, _) in pairs.items())
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    write_peft(tmp_path / "out", pairs, lora)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


def test_a_folder_whose_replacement_was_cut_off_is_put_back(broken: Path) -> None:
    broken.rename(broken.with_name(f".{broken.name}.replaced"))
    assert read_peft(broken)[1].rank == 4


def test_wrong_rank_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"q_proj: A \[4, 64\] and B \[64, 4\] are not of rank 8"):
        write_peft(
            tmp_path / "out",
            {"model.layers.0.self_attn.q_proj": (torch.ones(4, 64), torch.ones(64, 4))},
            LoRA(rank=8, targets=("q",)),
        )
    assert not (tmp_path / "out").exists()


# ---- bad input ----


def assert_refused(folder: Path, message: str, file: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read_peft(folder, CONFIG)
    assert str(folder / file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"use_dora": True}, "use_dora: True is not supported"),
        ({"bias": "all"}, "bias: 'all' is not supported"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save: .*lm_head"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights: 'pissa' changes the base weights"),
        ({"lora_bias": True}, "lora_bias: True"),
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
    ],
)
def test_settings_that_mean_something_else(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    """Written by PEFT itself with these settings."""
    peft_model(**options).save_pretrained(tmp_path)
    assert_refused(tmp_path, message, "adapter_config.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type: 'IA3' is not supported, only LORA"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out"),
        ({"a_setting_of_tomorrow": {"x": 1}}, "a_setting_of_tomorrow"),
        ({"r": 0}, "r: should be a positive integer"),
        ({"r": True}, "r: should be a positive integer"),
        ({"lora_alpha": "8"}, "lora_alpha: should be a number"),
        ({"lora_alpha": float("nan")}, "lora_alpha: should be a number"),
    ],
)
def test_malformed_config(broken: Path, changes: dict[str, Any], message: str) -> None:
    path = broken / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    assert_refused(broken, message, "adapter_config.json")


def test_config_that_contradicts_the_tensors(broken: Path) -> None:
    path = broken / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "r": 8}))
    assert_refused(
        broken, r"q_proj: A \[4, 64\] and B \[64, 4\] are not of rank 8", "adapter_model.safetensors"
    )


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        (KEY, None, "layers.1.self_attn.q_proj: lora_A is missing"),
        (KEY, torch.ones(4, 65), "do not fit the model's linear"),
        (KEY, torch.ones(4), "are not of rank 4"),
        (KEY, torch.full((4, 64), float("nan")), "lora_A holds values that are not finite"),
        (KEY, torch.ones(4, 64, dtype=torch.int32), "lora_A is int32, only float32, float16"),
        (KEY, torch.ones(4, 64).to(torch.float8_e4m3fn), "lora_A is float8_e4m3fn, only float32"),
        (KEY, torch.ones(4, 64).to(torch.float8_e5m2), "lora_A is float8_e5m2, only"),
        (KEY, torch.ones(4, 64, dtype=torch.complex64), "lora_A is complex64, only"),
        (KEY, torch.ones(4, 64, dtype=torch.bool), "lora_A is bool, only"),
        (
            "base_model.model.lm_head.lora_A.weight",
            torch.ones(4, 64),
            "lm_head.lora_A.weight: not the low-rank half",
        ),
        (
            "base_model.model.model.embed_tokens.lora_embedding_A",
            torch.ones(4, 64),
            "embed_tokens.lora_embedding_A: not the low-rank",
        ),
        (
            KEY.replace("lora_A", "lora_magnitude_vector"),
            torch.ones(4),
            "lora_magnitude_vector.weight: not the low-rank half",
        ),
    ],
)
def test_malformed_tensors(broken: Path, name: str, tensor: Tensor | None, message: str) -> None:
    tensors = load_file(broken / "adapter_model.safetensors")
    tensors.pop(name, None)
    save_file(tensors | ({} if tensor is None else {name: tensor}), broken / "adapter_model.safetensors")
    assert_refused(broken, message, "adapter_model.safetensors")


def test_layers_the_model_does_not_have(broken: Path) -> None:
    tensors = load_file(broken / "adapter_model.safetensors")
    for half in ("A", "B"):
        tensors[f"base_model.model.model.layers.2.self_attn.q_proj.lora_{half}.weight"] = tensors[
            KEY.replace("lora_A", f"lora_{half}")
        ].clone()
    save_file(tensors, broken / "adapter_model.safetensors")
    assert_refused(
        broken, "layers.2.self_attn.q_proj: the model has only 2 layers", "adapter_model.safetensors"
    )


def test_missing_truncated_and_empty_files(broken: Path) -> None:
    path = broken / "adapter_model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-7])
    assert_refused(broken, "truncated or corrupted", path.name)
    save_file({}, path)
    assert_refused(broken, "holds no adapter tensors", path.name)
    path.rename(broken / "adapter_model.bin")
    assert_refused(broken, "no such file", path.name)
    (broken / "adapter_config.json").write_text("[")
    assert_refused(broken, "not valid JSON", "adapter_config.json")
    (broken / "adapter_config.json").unlink()
    assert_refused(broken, "No such file", "adapter_config.json")


@pytest.mark.parametrize("rslora", [False, True])
def test_the_settings_of_a_folder_give_a_buffer_that_takes_it(tmp_path: Path, rslora: bool) -> None:
    peft_model(r=4, lora_alpha=6, use_rslora=rslora).save_pretrained(tmp_path)
    assert has_adapter(tmp_path) and not has_adapter(tmp_path / "none")
    lora = read_lora(tmp_path)
    assert lora == read_peft(tmp_path)[1]
    assert lora.rank == 4 and lora.scale == pytest.approx(6 / (2 if rslora else 4))
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 0}))
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: lora_alpha: 0 is not above 0"):
        read_lora(tmp_path)


def test_tensors_that_the_config_does_not_name(broken: Path) -> None:
    """PEFT would leave them out."""
    config = json.loads((broken / "adapter_config.json").read_text())
    (broken / "adapter_config.json").write_text(
        json.dumps({**config, "target_modules": ["v_proj", "mlp.up_proj"]})
    )
    assert_refused(
        broken, "layers.0.self_attn.q_proj: not among the target_modules", "adapter_model.safetensors"
    )
    for named in (ALL, [f"self_attn.{n}" for n in ALL[:4]] + ALL[4:], "all-linear"):
        (broken / "adapter_config.json").write_text(json.dumps({**config, "target_modules": named}))
        assert len(read_peft(broken)[0]) == 14


def test_a_half_that_is_there_twice(broken: Path) -> None:
    file = broken / "adapter_model.safetensors"
    tensors = load_file(file)
    name = next(name for name in tensors if "lora_A.weight" in name)
    save_file({**tensors, name.replace(".weight", ".default.weight"): tensors[name] + 1}, file)
    assert_refused(broken, "lora_A is there twice", file.name)


@pytest.mark.parametrize("folder", ["/", "", "a\0b", "a\ud800"])
def test_places_that_hold_no_adapter(folder: str) -> None:
    with pytest.raises((CheckpointError, OSError)) as caught:
        read_peft(folder)
    assert isinstance(caught.value, CheckpointError) or caught.value.filename == folder
