"""In float32 on a CPU, numbers are those of transformers and PEFT: logits to 1e-4, gradients of the adapter
to 1e-4 relative.

Each model is random, written by transformers, with biases and norms that are not trivial. The other side gets
padded, separate sequences; ours a token tree. Run with ``-s`` to see the errors.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from proactor.engine import GRPO, Engine, Group, GRPOLoss, LoRA, Sample
from proactor.engine.forward import tree_logprobs
from proactor.engine.lora_config import ALL_TARGETS
from proactor.engine.tree import Tree
from tests.engine.engines import prompts, shake
from tests.engine.peers import (
    engine_gradients,
    grpo_by_hand,
    largest_error,
    padded_logits,
    padded_logprobs,
    peft_gradients,
    tree_logits,
    with_adapter,
)
from tests.tiny import LLAMA3, YARN, save_tiny_4bit, tiny_model

SMALL: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "head_dim": 8}
MODELS: dict[str, dict[str, Any]] = {
    "qwen2 untied, sharded": {"family": "qwen2", "tie_word_embeddings": False, "shard": "20KB"},
    "qwen2 tied": {"family": "qwen2", "tie_word_embeddings": True},
    "qwen2 GQA 7:1, odd vocabulary": {
        "family": "qwen2",
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "vocab_size": 131,
        "hidden_size": 56,
    },
    "qwen2 GQA 8:1": {
        "family": "qwen2",
        "num_attention_heads": 8,
        "num_key_value_heads": 1,
        "tie_word_embeddings": True,
    },
    "qwen2 yarn": {"family": "qwen2", "rope_parameters": YARN},
    "qwen3": {"family": "qwen3", "tie_word_embeddings": True},
    "llama with llama3 scaling": {"family": "llama", "rope_parameters": LLAMA3},
    "llama with biases": {"family": "llama", "attention_bias": True, "mlp_bias": True},
    "mistral": {"family": "mistral"},
}
WITH_GRADIENTS = [
    "qwen2 untied, sharded",
    "qwen2 GQA 7:1, odd vocabulary",
    "qwen2 yarn",
    "qwen3",
    "llama with llama3 scaling",
]
RANK = LoRA(rank=3, alpha=12)


def write(folder: Path, name: str) -> Any:
    """Write the named model; returns transformers' form. Large weights make attention far from uniform."""
    settings = {**SMALL, **MODELS[name]}
    shard = settings.pop("shard", "1GB")
    model = tiny_model(**settings)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(4.0)
    model.save_pretrained(folder, max_shard_size=shard)
    return model


def load(folder: Path, **changes: Any) -> Engine:
    engine = Engine.load(folder, **{"lora": RANK, **changes})
    if engine.trainer is not None:
        shake(engine)
    return engine


def sequences() -> list[list[int]]:
    """Three with one beginning, one without, one past the original context (32) of the scaled models."""
    return [*prompts(3, 9, shared=6), *prompts(1, 5, seed=1), *prompts(1, 100, seed=2, shared=6)]


@pytest.mark.parametrize("name", MODELS)
def test_logits_and_logprobs_equal_transformers(name: str, tmp_path: Path) -> None:
    model = write(tmp_path, name)
    if "sharded" in name:
        assert len(list(tmp_path.glob("*.safetensors"))) > 2
    engine = load(tmp_path, lora=None)
    ids = sequences()
    assert max(map(len, ids)) > 3 * 32
    with torch.no_grad():
        theirs, expected = padded_logits(model, ids), padded_logprobs(model, ids)
    ours = tree_logits(engine, [Group(s, [Sample(s, [0])]) for s in ids])
    errors = [float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)]
    scored = [float((a - b).abs().max()) for a, b in zip(engine.logprobs(ids), expected, strict=True)]
    spread = float(torch.cat(theirs).std())
    print(f"{name}: logits {max(errors):.1e} (spread {spread:.1f}), log-probabilities {max(scored):.1e}")
    assert max(errors) < 1e-4 and max(scored) < 1e-4
    assert spread > 0.3, "a model that says nothing would agree with anything"


def caterpillar(seed: int = 0) -> list[Group]:
    """Groups hanging off one trunk of 60 at different offsets, some behind a board of their own; lengths,
    masks and temperatures differ.

    One branch continues like the trunk, two samples begin alike, one has one token, one is past the original
    context.
    """
    generator = torch.Generator().manual_seed(seed)

    def ids(count: int) -> list[int]:
        return torch.randint(0, 100, (count,), generator=generator).tolist()

    def numbers(count: int) -> list[float]:
        return torch.randn(count, generator=generator).tolist()

    trunk, groups = ids(60), []
    for at, board, lengths in (
        (7, 0, (5, 1, 3)),
        (20, 4, (2, 6, 4)),
        (20, 3, (4, 4)),
        (41, 0, (7, 2)),
        (60, 2, (3, 5)),
    ):
        prompt = [*trunk[:at], *ids(board)]
        samples = [Sample(prompt, ids(n)) for n in lengths]
        samples[0].token_ids[: len(trunk[at : at + 2])] = trunk[at : at + 2][: len(samples[0].token_ids)]
        if len(lengths) > 1:
            samples[1].token_ids[0] = samples[0].token_ids[0]
        for i, sample in enumerate(samples):
            count = len(sample.token_ids)
            sample.advantage = numbers(1)[0] if i else numbers(count)
            sample.temperature = 0.7 if i == 1 else 1.0
            sample.mask = [j % 3 != 1 for j in range(count)] if i == 0 and count > 2 else None
        groups.append(Group(prompt, samples))
    return groups


def record(engine: Engine, groups: list[Group], seed: int = 1) -> None:
    """Recorded log-probabilities near the model's, so that some ratios are clipped and some are not."""
    generator = torch.Generator().manual_seed(seed)
    for sample in (s for g in groups for s in g.samples):
        count = len(sample.token_ids)
        scored = Group(
            sample.prompt_ids, [Sample(sample.prompt_ids, sample.token_ids, temperature=sample.temperature)]
        )
        with torch.no_grad():
            now = tree_logprobs(engine.decoder, Tree([scored]))[0]
        noise, shift = (torch.randn(count, generator=generator) * 0.3 for _ in range(2))
        sample.policy_logprobs = (now + noise).tolist()
        sample.logprobs = (now + noise + shift).tolist()


LOSSES = {
    "clip": GRPO(epsilon=0.2),
    "asymmetric clip, KL": GRPO(epsilon=0.1, epsilon_high=0.3, beta=0.1),
    "mean a sample": GRPO(normalizer="samples"),
    "constant, importance": GRPO(normalizer="constant", constant=7.0, importance_cap=1.2),
}


def gradient_error(
    engine: Engine, folder: Path, groups: list[Group], config: GRPO, model: Any = None
) -> float:
    """Largest relative error of any module's gradient against PEFT on separate sequences."""
    engine.save_adapter(folder / "adapter")
    peer = with_adapter(folder, folder / "adapter", model)
    tallied = engine.forward_backward(groups, GRPOLoss(config))
    engine.reduce_gradients()
    ours = engine_gradients(engine)
    engine.zero_grad()
    loss = grpo_by_hand(peer, groups, config)
    divisor = {"tokens": tallied["tokens"], "samples": tallied["samples"], "constant": config.constant}[
        config.normalizer
    ]
    assert tallied["loss"] / divisor == pytest.approx(float(loss.detach()), rel=1e-4)
    return largest_error(ours, peft_gradients(peer, loss))


@pytest.mark.parametrize("name", WITH_GRADIENTS)
def test_grpo_gradients_on_trees_equal_peft_on_sequences(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    engine, groups = load(tmp_path), caterpillar()
    record(engine, groups)
    assert Tree(groups).rows < 0.5 * Tree(groups).flat_tokens
    error = gradient_error(engine, tmp_path, groups, LOSSES["clip"])
    print(f"{name}: gradients {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_each_loss(name: str, tmp_path: Path) -> None:
    write(tmp_path, "qwen2 tied")
    engine, groups = load(tmp_path), caterpillar()
    record(engine, groups)
    error = gradient_error(engine, tmp_path, groups, LOSSES[name])
    print(f"{name}: gradients {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize(
    "changes", [{"token_budget": 40}, {"token_budget": 1}, {"deterministic": True}], ids=str
)
def test_gradients_do_not_depend_on_how_trees_are_packed(changes: dict[str, Any], tmp_path: Path) -> None:
    write(tmp_path, "qwen2 tied")
    engine, groups = load(tmp_path, **changes), caterpillar()
    record(engine, groups)
    error = gradient_error(engine, tmp_path, groups, LOSSES["clip"])
    print(f"{changes}: gradients {error:.1e}")
    assert error < 1e-4


@pytest.mark.parametrize("targets", [("q", "v"), ("o", "down"), ("k", "up"), ALL_TARGETS], ids=",".join)
def test_any_targets(targets: tuple[Any, ...], tmp_path: Path) -> None:
    """Also where attention inputs carry no gradient, and where part of a fused linear is adapted."""
    write(tmp_path, "qwen3")
    engine, groups = load(tmp_path, lora=LoRA(rank=2, alpha=5, targets=targets)), caterpillar()
    record(engine, groups)
    error = gradient_error(engine, tmp_path, groups, LOSSES["clip"])
    print(f"{targets}: gradients {error:.1e}")
    assert error < 1e-4


def test_a_sample_extended_by_observations(tmp_path: Path) -> None:
    """Two turns with an environment's tokens in between, and a second group behind the first's sample."""
    write(tmp_path, "qwen2 tied")
    engine = load(tmp_path)
    first = Sample([1, 2, 3], [4, 5, 6])
    first.extend([50, 51])
    ids = first.prompt_ids + first.token_ids
    groups = [
        Group([1, 2, 3], [first, Sample([1, 2, 3], [4, 9])]),
        Group([*ids, 7], [Sample([*ids, 7], [8, 9]), Sample([*ids, 7], [8, 3, 1])], parent=first),
    ]
    for group in groups:
        group.tree = "one"
        for i, sample in enumerate(group.samples):
            sample.advantage = 0.5 - i
    record(engine, groups)
    assert Tree(groups).rows == 3 + 5 + 1 + 1 + 1 + 2
    assert gradient_error(engine, tmp_path, groups, LOSSES["clip"]) < 1e-4


@pytest.mark.parametrize(
    "name", ["qwen2 tied", "qwen2 GQA 7:1, odd vocabulary", "qwen3", "llama with biases"]
)
def test_an_exported_adapter_gives_the_same_in_peft(name: str, tmp_path: Path) -> None:
    write(tmp_path, name)
    engine, ids = load(tmp_path), sequences()
    bare = engine.logprobs(ids, adapter=False)
    engine.save_adapter(tmp_path / "adapter")
    peer = with_adapter(tmp_path, tmp_path / "adapter")
    with torch.no_grad():
        theirs, expected = padded_logits(peer, ids), padded_logprobs(peer, ids)
    ours, scored = tree_logits(engine, [Group(s, [Sample(s, [0])]) for s in ids]), engine.logprobs(ids)
    error = max(
        float((a - b).abs().max()) for a, b in zip([*ours, *scored], [*theirs, *expected], strict=True)
    )
    print(f"{name}: with adapter {error:.1e}")
    assert error < 1e-4
    assert max(float((a - b).abs().max()) for a, b in zip(bare, expected, strict=True)) > 0.1, (
        "the adapter says nothing"
    )


def test_an_adapter_trained_in_peft_is_taken_over(tmp_path: Path) -> None:
    write(tmp_path, "qwen2 tied")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    leaves = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    peer = get_peft_model(base, LoraConfig(r=RANK.rank, lora_alpha=12, target_modules=leaves)).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.2)
    peer.save_pretrained(tmp_path / "adapter")
    engine = load(tmp_path)
    engine.load_adapter(tmp_path / "adapter")
    ids = sequences()
    with torch.no_grad():
        expected = padded_logprobs(peer, ids)
    assert max(float((a - b).abs().max()) for a, b in zip(engine.logprobs(ids), expected, strict=True)) < 1e-4


def dequantised(folder: Path) -> Any:
    """The 4-bit folder as a plain float32 model of transformers, its weights dequantised by bitsandbytes."""
    stored = dict(AutoModelForCausalLM.from_pretrained(folder, device_map="cpu").named_parameters())
    plain = tiny_model()
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            state = getattr(stored[name], "quant_state", None)
            weight = stored[name].data if state is None else dequantize_4bit(stored[name].data, state)
            parameter.copy_(weight.float())
    return plain


@pytest.mark.parametrize("resident", ["dense", "nf4"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16], ids=str)
def test_a_4bit_folder_gives_what_transformers_gives_dequantised(
    stored: torch.dtype, resident: Any, tmp_path: Path
) -> None:
    save_tiny_4bit(tmp_path / "model", dtype=stored)
    model, ids = dequantised(tmp_path / "model"), sequences()
    engine, groups = load(tmp_path / "model", resident=resident), caterpillar()
    with torch.no_grad():
        expected = padded_logprobs(model, ids)
    error = max(
        float((a - b).abs().max()) for a, b in zip(engine.logprobs(ids, adapter=False), expected, strict=True)
    )
    record(engine, groups)
    slope = gradient_error(engine, tmp_path, groups, LOSSES["clip"], model)
    print(f"4-bit, {stored}, {resident}: log-probabilities {error:.1e}, gradients {slope:.1e}")
    assert error < 1e-4 and slope < 1e-4


def test_resident_nf4_equals_the_dense_copy(tmp_path: Path) -> None:
    save_tiny_4bit(tmp_path / "model")
    results = {}
    for resident in ("dense", "nf4"):
        engine, groups = load(tmp_path / "model", resident=resident), caterpillar()
        record(engine, groups)
        memory = engine.memory()
        assert (memory["nf4"] > 0) == (resident == "nf4") and (memory["dense"] > 0) == (resident == "dense")
        scores = engine.logprobs(sequences())
        engine.forward_backward(groups, GRPOLoss(GRPO()))
        engine.reduce_gradients()
        results[resident] = torch.cat(scores), engine_gradients(engine), memory
    torch.testing.assert_close(results["nf4"][0], results["dense"][0], rtol=0, atol=1e-6)
    assert largest_error(results["nf4"][1], results["dense"][1]) < 3e-6  # two orders of sums in float32
    # 4.1 bits a weight, and tables, of 32
    assert results["nf4"][2]["nf4"] < 0.2 * results["dense"][2]["dense"]
