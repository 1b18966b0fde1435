"""Tokenizers, templates and configs of model folders that are damaged or absurd: one line with the file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proactor.engine import Engine, EngineError
from proactor.engine.adapter_io import read_lora, read_peft
from proactor.engine.config_keys import CheckpointError
from proactor.engine.model_config import ModelConfig
from proactor.engine.tokenizer import load_tokenizer
from tests.engine.engines import load
from tests.tiny import YARN

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"


@pytest.fixture
def model(text_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(text_folder, tmp_path / "model"))


def changed(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "{", '{"version": "1.0", "model"', "\ufeff{}", "null", "[" * 9999]
)
def test_a_damaged_tokenizer(model: Path, text: str) -> None:
    (model / "tokenizer.json").write_text(text)
    with pytest.raises(EngineError, match=r"model/tokenizer\.json: ") as caught:
        Engine.load(model)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "changes",
    [
        {"eos_token": 5},
        {"eos_token": []},
        {"added_tokens_decoder": {"x": 1}},
        {"added_tokens_decoder": 3},
        {"extra_special_tokens": 7},
        {"model_max_length": "long"},
        {"tokenizer_class": []},
        {"chat_template": 5},
        {"chat_template": {"a": 1}},
        {"chat_template": "{{ raise_exception('no\nroles') }}"},
        {"chat_template": "{{ 1 / 0 }}"},
        {"chat_template": "{% for %}"},
        {"chat_template": LOOP},
        {"chat_template": "{{ messages[9].x.y }}"},
        {"chat_template": "{{ strftime_now('\ud800') }}"},
    ],
    ids=str,
)
def test_wrong_settings_of_a_tokenizer_are_one_line_or_none(model: Path, changes: dict[str, Any]) -> None:
    changed(model / "tokenizer_config.json", **changes)
    try:
        Engine.load(model).encode("hello")
    except EngineError as error:
        assert str(model) in str(error) and str(error).isprintable()
    else:
        assert "chat_template" not in changes  # what transformers lets pass


@pytest.mark.parametrize("name", ["tokenizer.json", "chat_template.jinja", "special_tokens_map.json"])
def test_a_pipe_among_the_files(model: Path, name: str) -> None:
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(CheckpointError, match=f"{name}: not a regular file"):
        load_tokenizer(model)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir], ids=["pipe", "folder"])
def test_no_file_in_a_files_place(model: Path, name: str, put: Callable[[Path], None]) -> None:
    (model / name).unlink()
    put(model / name)
    with pytest.raises(CheckpointError, match=f"{name}: (not a regular file|Is a directory)"):
        Engine.load(model)


def test_a_tokenizer_that_cannot_encode(model: Path) -> None:
    """A vocabulary of words without an unknown token: its library raises a bare Exception."""
    words = {"a": 0, "<end>": 1}
    file = model / "tokenizer.json"
    kind = {"type": "WordLevel", "vocab": words, "unk_token": "<unk>"}
    changed(file, model=kind, pre_tokenizer={"type": "Whitespace"}, decoder=None, added_tokens=[])
    with pytest.raises(EngineError, match="the tokenizer cannot encode"):
        Engine.load(model).encode("b")


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 10**400},
        {"hidden_size": 2**40},
        {"vocab_size": 10**400},
        {"max_position_embeddings": 2**40},
        {"rms_norm_eps": 10**400},
        {"rms_norm_eps": 1e-300},
        {"rope_parameters": {"rope_theta": 10**400}},
        {"rope_parameters": YARN | {"factor": 1e29}},
        {"rope_parameters": YARN | {"rope_theta": 1}},
        {"rope_parameters": YARN | {"beta_fast": "x"}},
        {"rope_parameters": YARN | {"beta_slow": [1]}},
        {"original_max_position_embeddings": "x", "rope_parameters": YARN},
        {"rope_scaling": {"type": "linear", "factor": 2}, "rope_parameters": {"rope_theta": 10**400}},
        {"model_type": []},
        {"model_type": {"a": 1}},
        {"torch_dtype": []},
        {"dtype": "float8_e4m3fn"},
        {"eos_token_id": -1},
        {"eos_token_id": [1, 10**400]},
        {"bos_token_id": 2**40},
        {"architectures": 5},
    ],
    ids=lambda changes: str(changes)[:60],
)
def test_numbers_and_types_out_of_range(model: Path, changes: dict[str, Any]) -> None:
    changed(model / "config.json", **changes)
    if changes == {"torch_dtype": []}:  # nothing is said
        return
    with pytest.raises(CheckpointError, match=r"config\.json") as caught:
        ModelConfig.from_folder(model)
    assert next(iter(changes)).partition("_")[0] in str(caught.value)


@pytest.mark.parametrize("text", ["[" * 9999, '{"a":' * 9999, '{"a": ' + "9" * 5000 + "}", "\xff"], ids=len)
def test_json_that_is_none(model: Path, text: str) -> None:
    (model / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json: not valid JSON"):
        ModelConfig.from_folder(model)


@pytest.mark.parametrize(
    "changes",
    [{"r": 10**400}, {"r": []}, {"lora_alpha": 10**400}, {"lora_alpha": []}, {"peft_type": []}, {"bias": {}}],
    ids=lambda changes: str(changes)[:40],
)
def test_absurd_adapters(text_folder: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    load(text_folder).save_adapter(tmp_path)
    changed(tmp_path / "adapter_config.json", **changes)
    for read in (read_peft, read_lora):
        with pytest.raises(CheckpointError, match=r"adapter_config\.json: ") as caught:
            read(tmp_path)
        assert next(iter(changes)) in str(caught.value)
