"""Configs against transformers' own, and every refusal by the name of its file and key."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from proactor.engine import Engine
from proactor.engine.config_keys import CheckpointError
from proactor.engine.model_config import ModelConfig
from proactor.engine.rope_config import RopeConfig
from tests.tiny import LLAMA3, YARN, save_tiny, tiny_config

PLAIN = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 128,
}


def write(folder: Path, changes: dict[str, Any], generation: dict[str, Any] | None = None) -> Path:
    values = {key: value for key, value in {**PLAIN, **changes}.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(values))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.mark.parametrize(
    "rope", [None, YARN, LLAMA3, {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}]
)
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "mistral"])
def test_reads_what_transformers_writes(tmp_path: Path, family: str, rope: dict[str, Any] | None) -> None:
    theirs = tiny_config(family, rope_parameters=dict(rope) if rope else None, tie_word_embeddings=True)
    theirs.save_pretrained(tmp_path)
    ours = ModelConfig.from_folder(tmp_path)
    assert (ours.family, ours.num_layers, ours.num_heads, ours.num_kv_heads, ours.head_dim) == (
        family,
        2,
        4,
        2,
        16,
    )
    assert (ours.hidden_size, ours.intermediate_size, ours.vocab_size) == (64, 128, 101)
    assert ours.tie_embeddings and ours.rms_eps == 1e-6
    assert ours.qkv_bias is (family == "qwen2") and ours.qk_norm is (family == "qwen3")
    assert ours.context_length == 128
    if rope is not None:
        inv_freq, attention = ROPE_INIT_FUNCTIONS[rope["rope_type"]](theirs, "cpu")
        assert torch.equal(ours.rope.inv_freq(16), inv_freq)
        assert ours.rope.attention_factor == attention
    else:
        assert torch.equal(ours.rope.inv_freq(16), 1.0 / (1e4 ** (torch.arange(0, 16, 2).float() / 16)))


@pytest.mark.parametrize(
    "extra",
    [
        {"beta_fast": 16, "beta_slow": 2},
        {"truncate": False},
        {"attention_factor": 1.5},
        {"mscale": 0.7, "mscale_all_dim": 0.3},
        {"factor": 0.5},
    ],
)
def test_yarn_options_are_transformers(tmp_path: Path, extra: dict[str, Any]) -> None:
    shape = {"head_dim": 128, "max_position_embeddings": 16384}  # a ramp wide enough for the options to show
    theirs = tiny_config(
        "qwen3", rope_parameters={**YARN, "original_max_position_embeddings": 4096, **extra}, **shape
    )
    theirs.save_pretrained(tmp_path)
    rope = ModelConfig.from_folder(tmp_path).rope
    inv_freq, attention = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    assert torch.equal(rope.inv_freq(128), inv_freq)
    assert rope.attention_factor == attention


def test_old_and_new_rope_spellings_agree(tmp_path: Path) -> None:
    old: dict[str, Any] = {
        "rope_theta": 1e6,
        "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
    }
    new = {"rope_parameters": {**old["rope_scaling"], "rope_type": "yarn", "rope_theta": 1e6}}
    nested = {"rope_parameters": {"full_attention": new["rope_parameters"]}}
    configs = [ModelConfig.from_folder(write(tmp_path, changes)) for changes in (old, new, nested)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].rope == RopeConfig(1e6, "yarn", 4.0, 128, attention_factor=0.1 * math.log(4) + 1)
    assert configs[0].context_length == 512  # the original 128 stretched by 4


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 5e4},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        {"type": "linear", "factor": 2.0},
        {},
        None,
    ],
)
@pytest.mark.parametrize("theta", [1e4, 1e6])
def test_rope_scaling_beside_rope_parameters(
    tmp_path: Path, scaling: dict[str, Any] | None, theta: float
) -> None:
    """What transformers computes, or a refusal where it would lose the base without a word."""
    save_tiny(tmp_path, "qwen2", rope_parameters={"rope_type": "default", "rope_theta": theta})
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rope_scaling": scaling}))
    ids = torch.randint(0, 100, (1, 100), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
        wanted = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    if scaling and "rope_theta" not in scaling and theta != 1e4:
        with pytest.raises(
            CheckpointError, match=r"rope_scaling: has no rope_theta, and hides .* \(1e\+06\)$"
        ):
            Engine.load(tmp_path)
        return
    ours = Engine.load(tmp_path).logprobs(ids.tolist())[0]
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=0)


def test_context_of_llama3_is_the_configured_one(tmp_path: Path) -> None:
    changes = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "rope_scaling": LLAMA3}
    assert ModelConfig.from_folder(write(tmp_path, changes)).context_length == 128


def test_every_end_id_counts(tmp_path: Path) -> None:
    config = ModelConfig.from_folder(
        write(tmp_path, {"eos_token_id": 7, "bos_token_id": 3}, {"eos_token_id": [9, 7, 8]})
    )
    assert config.eos_ids == (7, 8, 9) and config.bos_id == 3
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    assert ModelConfig.from_folder(write(tmp_path, llama, {})).eos_ids == (2,)  # what transformers assumes
    assert ModelConfig.from_folder(write(tmp_path, {**llama, "eos_token_id": None}, {})).eos_ids == ()


def test_biases_by_family(tmp_path: Path) -> None:
    llama = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": True,
        "mlp_bias": True,
    }
    config = ModelConfig.from_folder(write(tmp_path, llama))
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, True, True)
    config = ModelConfig.from_folder(
        write(tmp_path, {"attention_bias": True, "mlp_bias": True})
    )  # Qwen2 knows neither key
    assert (config.qkv_bias, config.o_bias, config.mlp_bias) == (True, False, False)


def test_dtype_in_both_spellings(tmp_path: Path) -> None:
    assert ModelConfig.from_folder(write(tmp_path, {"dtype": "bfloat16"})).dtype == torch.bfloat16
    assert ModelConfig.from_folder(write(tmp_path, {"torch_dtype": "float16"})).dtype == torch.float16
    assert ModelConfig.from_folder(write(tmp_path, {})).dtype == torch.float32


def test_head_dim_and_heads_default_as_in_transformers(tmp_path: Path) -> None:
    assert ModelConfig.from_folder(write(tmp_path, {})).head_dim == 16
    assert ModelConfig.from_folder(write(tmp_path, {"head_dim": None})).head_dim == 16
    qwen3 = {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}
    assert ModelConfig.from_folder(write(tmp_path, qwen3)).head_dim == 128
    llama = {"model_type": "llama", "architectures": None, "num_key_value_heads": ...}
    assert ModelConfig.from_folder(write(tmp_path, llama)).num_kv_heads == 4


@pytest.mark.parametrize(
    "changes",
    [
        {"use_sliding_window": False, "sliding_window": 16},
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 4},
        {"use_sliding_window": True, "sliding_window": 128, "max_window_layers": 0},
        {
            "use_sliding_window": True,
            "sliding_window": 16,
            "layer_types": ["full_attention"] * 4,
            "max_window_layers": 0,
        },
        {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "sliding_window": None},
    ],
)
def test_windows_that_never_bind_are_accepted(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert ModelConfig.from_folder(write(tmp_path, changes)).context_length == 128


MISTRAL = {"model_type": "mistral", "architectures": ["MistralForCausalLM"], "max_position_embeddings": 8192}
REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"model_type": "qwen2_moe", "architectures": ["Qwen2MoeForCausalLM"]},
        "model_type: 'qwen2_moe' is a mixture of experts",
    ),
    ({"model_type": "mixtral", "num_local_experts": 8}, "mixture of experts"),
    ({"num_experts": 60}, "mixture of experts"),
    ({"model_type": "gpt2"}, "model_type: 'gpt2' is not supported"),
    ({"model_type": ...}, "model_type: None"),
    (
        {"architectures": ["Qwen2ForSequenceClassification"]},
        "architectures: .*Qwen2ForSequenceClassification",
    ),
    (
        {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
        "rope_scaling: rope_type: 'dynamic' is not supported",
    ),
    (
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}},
        "rope_parameters: rope_type: 'longrope'",
    ),
    ({"rope_scaling": {"type": "linear"}}, "rope_scaling: factor: missing"),
    (
        {"rope_scaling": {"type": "linear", "factor": "2"}},
        "rope_scaling: factor: should be a positive number",
    ),
    ({"rope_scaling": [1]}, "rope_scaling: should be an object"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    (
        {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1},
        "sliding_window: 3 layers see only 16",
    ),
    ({**MISTRAL, "sliding_window": 4096}, "sliding_window: 4 layers see only 4096"),
    (MISTRAL, "sliding_window: 4 layers see only 4096"),  # the default when the key is absent
    ({"attention_sinks": True}, "attention_sinks: not supported"),
    ({"hidden_act": "gelu"}, "hidden_act: 'gelu'"),
    ({"hidden_size": ...}, "hidden_size: missing"),
    ({"vocab_size": 0}, "vocab_size: should be an integer of at least 1"),
    ({"num_hidden_layers": True}, "num_hidden_layers: should be an integer of at least 1"),
    ({"num_key_value_heads": 3}, "num_key_value_heads: 3 does not divide"),
    ({"head_dim": 15}, "head_dim: 15 is odd"),
    ({"rms_norm_eps": -1}, "rms_norm_eps: should be a positive number"),
    ({"tie_word_embeddings": 1}, "tie_word_embeddings: should be true or false"),
    ({"eos_token_id": "</s>"}, "eos_token_id: should be token ids"),
    ({"bos_token_id": "<s>"}, "bos_token_id: should be a token id"),
    ({"dtype": "float8_e4m3fn"}, "dtype: 'float8_e4m3fn'"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refuses_in_one_line_that_names_file_and_key(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        ModelConfig.from_folder(write(tmp_path, changes))
    assert str(caught.value).startswith(str(tmp_path / "config.json")) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_malformed_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json"):
        ModelConfig.from_folder(tmp_path)
    write(tmp_path, {})
    (tmp_path / "generation_config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"generation_config\.json"):
        ModelConfig.from_folder(tmp_path)


def test_missing_config_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json: No such file"):
        ModelConfig.from_folder(tmp_path)
