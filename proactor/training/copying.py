"""Heads that copy, in the initial weights of a small model.

Copying a value out of a dialogue takes two heads in a row (an induction circuit: Olsson et al. 2022): one
tells each token what stood before it, a later one finds where the present token stood before and repeats what
followed. A model of this size forms them late in its minutes, and until then answers with frequent values. So
it begins with both. Structured initial weights are known for images (mimetic initialisation: Trockman and
Kolter 2023); this form is our own, its constants found by trial (bench/NOTES.md).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

OFFSETS = (1, 2)
"""How far before a token the two heads of the first layer look."""
SHARPNESS = 6.0
"""Their queries' and keys' constant part; at 6, 95% of the attention is at the offset."""
MATCH = 2.0
"""Weight of the match in the second layer's queries and keys."""
GAIN = 0.6
"""Size of a copied token in the stream; an embedding has the one it was drawn with."""
FAR = 300
"""Tokens over which a pair of dimensions turns by less than a radian, so that it compares contents."""


@torch.no_grad()
def start_copying(model: Any) -> bool:
    """Write the circuit into the first two layers of a new Qwen2ForCausalLM; False where it does not fit.

    The stream is cut in four parts: two for the token, one for the token before, one for the token before
    that. Two heads of layer 0 fill the last two: constant queries and keys make them attend by position. A
    head of layer 1 attends to where the last two tokens are followed by something, and adds that to the
    first part, which the tied head reads as the next token. Needs two layers and two heads.
    """
    config = model.config
    if config.num_hidden_layers < 2 or config.num_attention_heads < 2:
        return False
    embedding = model.get_input_embeddings().weight
    part = config.hidden_size // 4
    size = config.hidden_size // config.num_attention_heads
    group = config.num_attention_heads // config.num_key_value_heads
    frequencies = config.rope_parameters["rope_theta"] ** (-torch.arange(size // 2) / (size // 2))
    std = float(embedding.std())
    embedding[:, 2 * part :] *= 0.1
    first, second = (model.model.layers[i].self_attn for i in range(2))
    for head, offset in enumerate(OFFSETS):
        _attend_to_offset(first, head, head // group, size, frequencies, offset)
        _pass_on(first, head, head // group, size, part, (2 + head) * part, std)
    _attend_to_match(second, size, part, frequencies)
    _pass_on(second, 0, 0, size, part, 0, GAIN)
    return True


def _attend_to_offset(
    layer: Any, head: int, kv_head: int, size: int, frequencies: Tensor, offset: int
) -> None:
    """Queries and keys whose constant part, turned by their positions, agree best at ``offset``."""
    fast, half = len(frequencies) // 2, size // 2
    query, key = head * size, kv_head * size
    layer.q_proj.weight[query : query + size] = 0
    layer.k_proj.weight[key : key + size] = 0
    angles = offset * frequencies[:fast]
    layer.q_proj.bias[query : query + fast] = SHARPNESS * angles.cos()
    layer.q_proj.bias[query + half : query + half + fast] = -SHARPNESS * angles.sin()
    layer.k_proj.bias[key : key + fast] = SHARPNESS


def _attend_to_match(layer: Any, size: int, part: int, frequencies: Tensor) -> None:
    """Queries of head 0 hold the last two tokens, its keys the two before: both sums in one vector.

    The older token is added in reverse order of dimensions, so that the two do not mix.
    """
    slow = [i for i, f in enumerate(frequencies.tolist()) if f * FAR < 1]
    rows = [*slow, *(i + size // 2 for i in slow)][:part]
    layer.q_proj.weight[:size] = 0
    layer.k_proj.weight[:size] = 0
    for i, row in enumerate(rows):
        back = len(rows) - 1 - i
        for projection, newer, older in ((layer.q_proj, 0, 2 * part), (layer.k_proj, 2 * part, 3 * part)):
            projection.weight[row, newer + i] = MATCH
            projection.weight[row, older + back] = MATCH


def _pass_on(layer: Any, head: int, kv_head: int, size: int, part: int, to: int, gain: float) -> None:
    """What ``head`` attends to: the first part of its stream is added at ``to``, times ``gain``."""
    count = min(size, part)
    value, output = kv_head * size, head * size
    layer.v_proj.weight[value : value + size] = 0
    layer.v_proj.weight[value : value + count, :count] = torch.eye(count)
    layer.o_proj.weight[:, output : output + size] = 0
    layer.o_proj.weight[to : to + count, output : output + count] = gain * torch.eye(count)
