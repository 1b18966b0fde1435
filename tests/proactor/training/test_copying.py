"""A new small model repeats what it has seen, before any training."""

from __future__ import annotations

import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from proactor.training.copying import start_copying
from proactor.training.small_model import EMBEDDING_SCALE, ROPE_THETA


def new_model(**sizes: int) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        **{
            "vocab_size": 512,
            "hidden_size": 128,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **sizes,
        },
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(EMBEDDING_SCALE)
    return model


def share_copied(model: Qwen2ForCausalLM, length: int) -> float:
    """Of a random text said twice: the share of the second half's tokens that are the likeliest ones.

    It has 40 distinct tokens, so that one token alone does not tell where it stood.
    """
    torch.manual_seed(1)
    words = torch.randint(0, 512, (8, 40))
    text = words.gather(1, torch.randint(0, 40, (8, length)))
    ids = torch.cat([text, text], 1)
    with torch.no_grad():
        guessed = model(ids).logits.argmax(-1)
    return float((guessed[:, length + 2 : -1] == ids[:, length + 3 :]).float().mean())


@pytest.mark.parametrize(
    "heads, kv_heads, least", [(4, 2, 0.5), (4, 4, 0.5), (4, 1, 0.5), (2, 2, 0.5), (8, 2, 0.1)]
)
@pytest.mark.parametrize("length", [60, 200])
def test_a_new_model_repeats_what_it_has_seen(heads: int, kv_heads: int, least: float, length: int) -> None:
    sizes = {"num_attention_heads": heads, "num_key_value_heads": kv_heads}
    plain, copying = new_model(**sizes), new_model(**sizes)
    assert start_copying(copying)
    assert share_copied(plain, length) < 0.05
    assert share_copied(copying, length) > least


@pytest.mark.parametrize(
    "sizes", [{"num_hidden_layers": 1}, {"num_attention_heads": 1, "num_key_value_heads": 1}]
)
def test_a_model_too_small_for_it_stays_as_it_is(sizes: dict[str, int]) -> None:
    model = new_model(**sizes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert not start_copying(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
