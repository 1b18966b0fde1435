"""Model folders, adapters and saved states with something wrong in them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

from proactor.engine import Engine, LoRA, Sampling, read_lora, save_quantized
from proactor.engine.adapter_io import Pairs, read_peft
from proactor.engine.chat import open_chat
from proactor.engine.checkpoint import load_weights
from proactor.engine.model_config import ModelConfig
from proactor.engine.state import load_state, read_state, write_state
from proactor.engine.text import drawable_ids
from proactor.engine.tokenizer import load_tokenizer
from tests.engine.engines import load, write_text_folder
from tests.fuzz.harness import SilentChange, fuzz
from tests.fuzz.mutations import link_all, spoil_file, spoil_tree
from tests.tiny import LLAMA3, YARN, save_tiny

FILES = ("config.json", "config.json", "generation_config.json", "model.safetensors")
TOKENIZER = ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_text_folder(tmp_path_factory.mktemp("fuzz") / "plain")
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<end>{% endfor %}"
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.fixture(scope="module")
def folders(plain: Path) -> list[Path]:
    """Plain, in 4 bits, in shards, and with each kind of rotary embedding."""
    packed = plain.with_name("packed")
    save_quantized(
        packed, json.loads((plain / "config.json").read_text()), load_file(plain / "model.safetensors")
    )
    shards, yarn, llama = (plain.with_name(name) for name in ("shards", "yarn", "llama"))
    save_tiny(shards, "qwen3", shard="20KB")
    save_tiny(yarn, "qwen2", rope_parameters=YARN)
    save_tiny(llama, "llama", rope_parameters=LLAMA3)
    return [plain, packed, shards, yarn, llama]


def test_models(folders: list[Path]) -> None:
    def case(draw: Random, folder: Path) -> object:
        link_all(draw.choice(folders), folder)
        names = sorted(f.name for f in folder.iterdir())
        index = [name for name in names if name.endswith((".index.json", "0001.safetensors"))]
        spoil_file(draw, folder / draw.choice([*(name for name in FILES if name in names), *index]))
        config = ModelConfig.from_folder(folder)
        config.rope.inv_freq(config.head_dim)
        return load_weights(folder, config)

    fuzz("models", case, 400)


def test_tokenizers(plain: Path) -> None:
    def case(draw: Random, folder: Path) -> object:
        link_all(plain, folder)
        spoil_file(draw, folder / draw.choice(TOKENIZER))
        tokenizer = load_tokenizer(folder)
        if tokenizer is None:
            return None
        chat = open_chat(tokenizer, str(folder))
        ids = chat.encode([{"role": "user", "content": "hé? 😀"}], add_generation_prompt=True)
        return chat.decode(ids), drawable_ids(tokenizer, 264, {256})

    fuzz("tokenizers", case, 150)


def test_engines(plain: Path) -> None:
    """All of `Engine.load`, and a sample of what it loaded."""

    def case(draw: Random, folder: Path) -> object:
        link_all(plain, folder)
        spoil_file(draw, folder / draw.choice((*FILES, *TOKENIZER)))
        engine = Engine.load(folder, kv_tokens=64, page_size=4, max_batch=2)
        return engine.sample([[1, 2]], Sampling(max_tokens=2, n=2))

    fuzz("engines", case, 60)


@cache
def _shapes(plain: Path) -> ModelConfig:
    return ModelConfig.from_folder(plain)


def test_adapters(plain: Path, tmp_path: Path) -> None:
    load(plain).save_adapter(tmp_path)
    saved, *facts = read_peft(tmp_path)

    def case(draw: Random, folder: Path) -> object:
        link_all(tmp_path, folder)
        spoil_file(draw, folder / draw.choice(("adapter_config.json", "adapter_model.safetensors")))
        pairs, *found = read_peft(folder, _shapes(plain))
        if found != facts or not _same(_flat(pairs), _flat(saved)):
            raise SilentChange(f"{found} for {facts}")
        return read_lora(folder)

    fuzz("adapters", case, 400)


def _flat(pairs: Pairs) -> dict[str, torch.Tensor]:
    return {f"{name} {half}": tensor for name, pair in pairs.items() for half, tensor in zip("AB", pair)}


def _same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(
        tensor.dtype == other[name].dtype and torch.equal(tensor, other[name]) for name, tensor in one.items()
    )


def test_states(plain: Path, tmp_path: Path) -> None:
    engine = load(plain, lora=LoRA(rank=2))
    engine.save(tmp_path / "state.safetensors", {"position": 17})
    saved, values = read_state(tmp_path / "state.safetensors")

    def case(draw: Random, folder: Path) -> object:
        file = folder / "state.safetensors"
        file.hardlink_to(tmp_path / "state.safetensors")
        if draw.random() < 0.6:
            spoil_file(draw, file)
            said: list[str] = []
            tensors, record = read_state(file, said.append)
            if not said and (record != values or not _same(tensors, saved)):
                raise SilentChange(f"{record} for {values}")
        else:  # with a checksum that is right
            state, caller = load_state(file)
            tensors = {k: v for k, v in state.items() if isinstance(v, torch.Tensor)}
            numbers = {k: v for k, v in state.items() if not isinstance(v, torch.Tensor)}
            record = spoil_tree(draw, {"engine": numbers, "caller": caller})
            write_state(file, tensors, record if isinstance(record, dict) else {"engine": record})
        return engine.resume(file)

    fuzz("states", case, 200)
