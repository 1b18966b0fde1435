"""Prompts, settings and options that are refused: one clear line that names the key or prompt, and an engine
that works on as if nothing had been asked.

Training is in test_bad_training.py, folders that cannot be loaded in test_checkpoint.py and
test_adapter_io.py, saves and full disks in test_state.py and test_files.py.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from proactor.engine import Engine, EngineConfig, EngineError, ProactorError, Sampling
from proactor.engine.chat_template import ChatError
from proactor.engine.config_keys import CheckpointError
from proactor.engine.step import RequestTooLarge
from tests.engine.engines import load, sampler
from tests.engine.refusals import Case, check, check_as_new

EVEN = torch.arange(101) % 2 == 0


SAMPLING: dict[str, Case] = {
    "too long": (
        lambda e: e.sample([[1], [5] * 128]),
        r"^prompt 1: 128 tokens leave no room in a context of 128$",
    ),
    "much too long": (lambda e: e.sample([[5] * 500]), r"^prompt 0: 500 tokens leave no room"),
    "one text": (lambda e: e.sample("hello"), r"^sample: takes a list of prompts, not one text"),
    "one list of ids": (
        lambda e: e.sample([1, 2, 3]),
        r"^sample: .* not one list of token ids: write \[prompt",
    ),
    "one array of ids": (lambda e: e.sample(np.arange(3)), r"^sample: .* not one list of token ids"),
    "one conversation": (
        lambda e: e.sample([{"role": "user", "content": "x"}]),
        r"^sample: .* not one list of messages: write \[prompt\]$",
    ),
    "one mapping": (
        lambda e: e.sample({"input_ids": [1]}),
        r"^sample: takes a list of prompts, not one dict",
    ),
    "a generator": (lambda e: e.sample([1] for _ in range(2)), r"^sample: .* not a generator$"),
    "a set": (lambda e: e.sample({(1, 2)}), r"^sample: .* not a set$"),
    "nothing": (lambda e: e.sample(None), r"^sample: .* not a NoneType$"),
    "bytes": (lambda e: e.sample([[1], b"ab"]), r"^prompt 1: a prompt is text, .* not a bytes$"),
    "floats": (lambda e: e.sample([[1.7, 2.2]]), r"^prompt 0: a prompt is .* not a list with 1.7 \(float\)$"),
    "bools": (lambda e: e.sample([[1, True]]), r"^prompt 0: a prompt is .* with True \(bool\)$"),
    "nested": (lambda e: e.sample([[[1, 2]]]), r"^prompt 0: a prompt is .* with \[1, 2\] \(list\)$"),
    "batch encoding": (
        lambda e: e.sample([{"input_ids": [1, 2]}]),
        r"^prompt 0: a prompt is .* not a dict: give its 'input_ids'$",
    ),
    "float tensor": (lambda e: e.sample([torch.ones(2)]), r"^prompt 0: a prompt is .* with 1.0 \(float\)$"),
    "a dictionary as sampling": (
        lambda e: e.sample([[1]], {"n": 2}),
        r"^sample: sampling should be a Sampling",
    ),
    "text keys": (lambda e: e.sample([[1]], keys=["a"]), r"^prompt 0: key 'a' is not an integer"),
    "long keys": (lambda e: e.sample([[1]], keys=[1 << 64]), r"^prompt 0: key 18446744073709551616 is not"),
    "stop id outside": (
        lambda e: e.sample([[1]], Sampling(stop_ids=(101,))),
        r"^prompt 0: stop_ids outside 0 … 100$",
    ),
    "empty": (lambda e: e.sample([[1], []]), r"^prompt 1: empty; it needs at least one token$"),
    "id too large": (
        lambda e: e.sample([[1, 101]]),
        r"^prompt 0: id 101 at position 1 is outside 0 … 100$",
    ),
    "negative id": (lambda e: e.sample([[1, -1]]), r"^prompt 0: id -1 at position 1 is outside"),
    "one key": (lambda e: e.sample([[1]], keys=1), r"^sample: keys should be a list of .* not 1$"),
    "text without a tokenizer": (
        lambda e: e.sample(["hello"]),
        r"no tokenizer in the model folder, so prompts must be token ids$",
    ),
    "messages without a tokenizer": (
        lambda e: e.sample([[{"role": "user", "content": "x"}]]),
        r"no tokenizer in the model folder",
    ),
    "stop string without a tokenizer": (
        lambda e: e.sample([[1]], Sampling(stop=("x",))),
        r"^stop: stop strings need a tokenizer; use stop_ids$",
    ),
    "too few keys": (
        lambda e: e.sample([[1], [2]], keys=[1]),
        r"^sample: 2 prompts with 1 keys and 2 settings$",
    ),
    "too few settings": (
        lambda e: e.sample([[1], [2]], [Sampling()]),
        r"^sample: 2 prompts with 2 keys and 1 settings$",
    ),
    "negative key": (
        lambda e: e.sample([[1], [2]], keys=[0, -1]),
        r"^prompt 1: key -1 is not an integer of 0 … 4294967295$",
    ),
    "key of 33 bits": (
        lambda e: e.sample([[1]], keys=[1 << 32]),
        r"^prompt 0: key 4294967296 is not an integer of 0 … 4294967295$",
    ),
    "key that is no integer": (
        lambda e: e.sample([[1]], keys=[1.5]),
        r"^prompt 0: key 1.5 is not an integer",
    ),
    "key of 65 bits": (lambda e: e.stream([[1]], keys=[1 << 64]), r"^prompt 0: key 18446744073709551616 is"),
    "stream": (lambda e: e.stream([[]]), r"^prompt 0: empty"),
}


@pytest.fixture(scope="module", params=[False, True], ids=["fast", "deterministic"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Engine:
    return load(folder, deterministic=request.param, token_budget=64)


@pytest.mark.parametrize("case", SAMPLING)
def test_sampling(engine: Engine, case: str) -> None:
    check(engine, *SAMPLING[case])


def test_after_all_that_it_works_as_new(engine: Engine, folder: Path) -> None:
    check_as_new(engine, SAMPLING.values(), load(folder, deterministic=engine.deterministic, token_budget=64))


MASKS: dict[str, tuple[Callable[[list[int], int], Any], str]] = {
    "short": (
        lambda ids, at: EVEN[:100],
        r"should return a bool tensor \[101\] or None, not torch.bool \[100\]",
    ),
    "of one": (lambda ids, at: EVEN[:1], r".* not torch.bool \[1\]"),
    "two rows": (lambda ids, at: EVEN.expand(2, 101), r".* not torch.bool \[2, 101\]"),
    "float": (lambda ids, at: EVEN.float(), r".* not torch.float32 \[101\]"),
    "list": (lambda ids, at: EVEN.tolist(), r".* not a list"),
    "nothing": (lambda ids, at: EVEN & (at == 0), r"no token allowed at position 1"),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks(folder: Path, case: str) -> None:
    """Refused by request, in the middle of sampling: nothing is left running."""
    engine = load(folder)
    mask, words = MASKS[case]
    settings = [Sampling(ignore_eos=True), Sampling(logit_mask=mask, ignore_eos=True)]
    with pytest.raises(EngineError, match=rf"^prompt 1: logit_mask: {words}$"):
        engine.sample([[1], [2]], settings)
    assert engine._policy.sampler is not None and engine._policy.sampler.scheduler.idle


def test_load_refuses_by_name(folder: Path) -> None:
    for options, words in [
        ({"dtype": "int8"}, r"^dtype='int8': Input should be 'auto', 'float32', 'bfloat16' or 'float16'$"),
        ({"dtype": torch.int8}, r"^dtype='int8': Input should be"),
        ({"resident": "cpu"}, r"^resident='cpu': Input should be 'auto', 'dense' or 'nf4'$"),
        ({"device": "mps"}, r"^device='mps': String should match pattern"),
        ({"device": "cuda:99"}, r"^device='cuda:99': this machine has "),
        ({"page_size": 0}, r"^page_size=0: Input should be greater than or equal to 1$"),
        ({"kv_token": 8}, r"^Engine.load: unknown option 'kv_token' \(did you mean 'kv_tokens'\?\)$"),
        ({"lra": None}, r"^Engine.load: unknown option 'lra' \(did you mean 'lora'\?\)$"),
        ({"quantization": "fp4"}, r"^quantization='fp4': Input should be 'auto', 'nf4' or 'none'$"),
        ({"token_budget": -5}, r"^token_budget=-5: "),
        ({"load_in_4bit": True}, r"unknown option 'load_in_4bit' \(did you mean 'quantization'\?\)$"),
        ({"config": 3, "page_size": None}, r"^Engine.load: a config and options"),
        ({"progress": 3}, r"^Engine.load: progress should be a function \(done, total\), not 3$"),
        ({"lora": {"rank": 8}}, r"^Engine.load: lora should be a LoRA, not \{'rank': 8\}$"),
        ({"seed": 1.5}, r"^Engine.load: seed should be an integer, not 1.5$"),
        ({"zzz": 1}, r"^Engine.load: unknown option 'zzz' \(known: device, dtype, .*revision\)$"),
        (
            {"config": EngineConfig()},
            r"^Engine.load: a config and options \(page_size, kv_tokens, max_batch\)",
        ),
    ]:
        with pytest.raises(EngineError, match=words):
            load(folder, **options)


def test_a_folder_is_a_path() -> None:
    for path in (None, 5, ""):
        with pytest.raises(EngineError, match=rf"^Engine.load: takes a folder or hub id, not {path!r}$"):
            Engine.load(path)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"^Engine.load: config should be an EngineConfig, not \{"):
        Engine.load("x", {"page_size": 4})  # type: ignore[arg-type]


def test_a_config_loads_as_its_options(folder: Path) -> None:
    options = {"page_size": 4, "kv_tokens": 64, "dtype": torch.bfloat16}
    config = EngineConfig(**options)
    assert config.dtype == "bfloat16" and config == EngineConfig.model_validate_json(config.model_dump_json())
    for engine in (Engine.load(folder, config), Engine.load(folder, **options)):
        assert engine.options == config and engine.decoder.dtype == torch.bfloat16
        engine.sample([[1]], Sampling(max_tokens=1))
        assert engine.counters()["pages_cached"] == 1 and sampler(engine).cache.k[0].shape[1] == 64


def test_ids_come_as_lists_arrays_and_tensors(folder: Path) -> None:
    engine = load(folder)
    kinds = [
        [5, 6],
        (5, 6),
        np.array([5, 6]),
        torch.tensor([5, 6]),
        [np.int64(5), torch.tensor(6)],
        range(5, 7),
    ]
    assert [engine.encode(kind) for kind in kinds] == [[5, 6]] * len(kinds)  # type: ignore[arg-type]
    assert all(type(i) is int for kind in kinds for i in engine.encode(kind))  # type: ignore[arg-type]
    drawn = [g.prompt_ids for g in engine.sample(torch.tensor([[5, 6], [7, 8]]), Sampling(max_tokens=1))]  # type: ignore[arg-type]
    assert drawn == [[5, 6], [7, 8]]
    for wrong in (b"ab", [1.7, 2.2], [[1]], None, 3, {"role": "user"}, torch.ones(1, 2), ["a", "b"]):
        with pytest.raises(EngineError, match="a prompt is text, a list of messages, or a list of token ids"):
            engine.encode(wrong)  # type: ignore[arg-type]


def test_every_refusal_has_one_root() -> None:
    for kind in (EngineError, ChatError, CheckpointError, RequestTooLarge):
        assert issubclass(kind, ProactorError)
