"""Random checkpoints: what transformers makes of them, and what is left when they cannot be written."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import AutoModelForCausalLM

from proactor.engine import Engine
from proactor.engine.checkpoint import is_linear
from proactor.engine.checkpoint_writer import save_quantized
from proactor.engine.config_keys import CheckpointError
from proactor.engine.known_models import known_keys, qwen2_keys
from proactor.engine.random_checkpoint import make_checkpoint
from proactor.engine.safetensors_stream import StreamedFile
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.op import ModelShape
from tests.engine.folders import assert_equals_model, load, plain_tensor
from tests.tiny import save_tiny_4bit

TINY = qwen2_keys(ModelShape("tiny", 64, 2, 4, 2, 16, 128, 101))


def headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                part = opened.get_slice(name)
                shape = () if ".quant_state." in name else tuple(part.get_shape())  # JSON of any length
                found[name] = part.get_dtype(), shape
    return found


@pytest.mark.parametrize("kind", ["bnb-nf4", "bf16"])
def test_transformers_computes_what_the_engine_does(kind: Any, tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", TINY, kind, shard_bytes=40_000)
    assert len(list(tmp_path.glob("model/*.safetensors"))) > 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", device_map="cpu", dtype=torch.bfloat16)
    assert_equals_model(load(tmp_path / "model"), model)
    plain = (model.dequantize() if kind == "bnb-nf4" else model).float().eval()
    ids = [5, 7, 11, 13, 17, 19]
    with torch.no_grad():
        logits = plain(torch.tensor([ids])).logits.log_softmax(-1)[0]
    wanted = logits[torch.arange(5), ids[1:]]
    engine = Engine.load(tmp_path / "model", dtype="float32")
    torch.testing.assert_close(engine.logprobs([ids])[0], wanted, rtol=0, atol=1e-4)
    assert wanted.std() > 0.1, "a model that says the same of all tokens would show nothing"


def test_names_dtypes_and_shapes_are_those_that_transformers_saves(tmp_path: Path) -> None:
    save_tiny_4bit(tmp_path / "theirs")
    make_checkpoint(tmp_path / "ours", TINY, "bnb-nf4")
    assert headers(tmp_path / "ours") == headers(tmp_path / "theirs")
    ours, theirs = (json.loads((tmp_path / n / "config.json").read_text()) for n in ("ours", "theirs"))
    kept = theirs["quantization_config"].items()
    same = {key: ours["quantization_config"].get(key) for key, _ in kept if not key.startswith("_")}
    same.pop("llm_int8_skip_modules")
    assert same == {key: value for key, value in kept if key in same}


def test_the_linears_are_the_plain_model_quantised_by_bitsandbytes(tmp_path: Path) -> None:
    for kind in ("bnb-nf4", "bf16"):
        make_checkpoint(tmp_path / kind, TINY, kind, seed=3)  # type: ignore[arg-type]
    packed, plain = load(tmp_path / "bnb-nf4"), load(tmp_path / "bf16")
    for name, tensor in plain.items():
        weight, found = plain_tensor(tensor), packed[name]
        if not is_linear(name):
            assert torch.equal(weight, plain_tensor(found)), name
            continue
        assert isinstance(found, NF4Tensor)
        codes, state = bnb.quantize_4bit(weight, compress_statistics=True, quant_type="nf4")
        assert torch.equal(found.packed, codes.view(-1)) and torch.equal(found.absmax, state.absmax), name
        assert abs(float(weight.std()) * weight.shape[1] ** 0.5 - 1) < 0.1, name


def test_a_seed_is_a_model(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        make_checkpoint(tmp_path / name, TINY, "bf16", seed=seed)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b != c
    make_checkpoint(tmp_path / "large", TINY, "bf16", seed=2**70)


def test_a_folder_without_a_tokenizer_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = tmp_path / "source"
    with pytest.raises(CheckpointError, match=r"source: no such folder$"):
        make_checkpoint(tmp_path / "model", TINY, "bf16", tokenizer_from=source)
    with pytest.raises(CheckpointError, match=r"source: no such folder, to copy a tokenizer from$"):
        save_quantized(tmp_path / "model", TINY, {}, source)
    source.mkdir()
    (source / "generation_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"source: holds no tokenizer$"):
        make_checkpoint(tmp_path / "model", TINY, "bf16", tokenizer_from=source)
    assert list(tmp_path.iterdir()) == [source]


def test_the_config_tells_what_is_written(tmp_path: Path) -> None:
    """Whatever the given one says of the type and of quantisation."""
    given = {**TINY, "torch_dtype": "float32", "quantization_config": {"quant_method": "awq"}}
    make_checkpoint(tmp_path / "model", given, "bf16")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["torch_dtype"] == "bfloat16" and "quantization_config" not in config


def test_the_shapes_of_qwen2_5_are_known() -> None:
    keys = known_keys("Qwen/Qwen2.5-14B-Instruct")
    assert (keys["hidden_size"], keys["num_hidden_layers"], keys["tie_word_embeddings"]) == (5120, 48, False)
    assert known_keys("qwen2.5-0.5b")["tie_word_embeddings"]


def test_a_full_disk_is_one_line_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 10, 10_000))
    with pytest.raises(CheckpointError, match=r"model: 0\.\d GB, and 0\.0 GB of the disk are free$"):
        make_checkpoint(tmp_path / "model", TINY, "bf16")
    assert not list(tmp_path.iterdir())


def test_a_disk_that_fills_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: StreamedFile, name: str, *rest: Iterable[Tensor]) -> None:
        if name == "model.norm.weight":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(StreamedFile, "write", full)
    with pytest.raises(CheckpointError, match=r"model: not written, nothing is left of it: .*No space left"):
        make_checkpoint(tmp_path / "model", TINY, "bf16")
    assert not list(tmp_path.iterdir())


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("kept")
    with pytest.raises(CheckpointError, match=r"model: exists; give a new folder"):
        make_checkpoint(tmp_path / "model", TINY, "bf16")
    assert (tmp_path / "model" / "mine").read_text() == "kept"


def test_an_interrupted_folder_is_named_by_the_loader(tmp_path: Path) -> None:
    left = tmp_path / ".model.writing-999999999-0123456789ab"
    left.mkdir()
    with pytest.raises(CheckpointError, match=r"model: not written to its end \(.*writing-999999999"):
        Engine.load(tmp_path / "model")
    with pytest.raises(CheckpointError, match=r"not written to its end"):
        Engine.load(left)
    make_checkpoint(tmp_path / "model", TINY, "bf16")  # whose writer is dead: removed
    assert not left.exists()
    Engine.load(tmp_path / "model")


def test_an_interrupted_file_cannot_be_opened(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    with pytest.raises(Killed), StreamedFile(tmp_path / "a.safetensors", ["a"]) as file:
        file.write("a", (2, 3), torch.float32, [torch.ones(2, 3)])
        raise Killed
    with pytest.raises(SafetensorError):
        safe_open(tmp_path / "a.safetensors", framework="pt")
