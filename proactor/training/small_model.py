"""A small Qwen2 model and its tokenizer: random weights, written as a 4-bit Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from proactor.config_base import Pieces, SmallModel
from proactor.engine import save_quantized
from proactor.training.copying import start_copying

EMBEDDING_SCALE = 5.0
"""Factor of the initial embeddings over transformers' own, found by trial (bench/NOTES.md)."""
ROPE_THETA = 1e6
"""As in Qwen2.5: half of a head's pairs of dimensions hardly turn within a dialogue."""
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
SPLITS: dict[Pieces, str] = {"words": r"\d|[A-Za-z]+|[^\sA-Za-z\d]+| |\s+", "lines": r"[\d\n-]|[^\d\n-]+"}
"""Where no token goes across, by `SmallModel.pieces`."""
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocabulary: int, pieces: Pieces = "words") -> Any:
    """A byte-level BPE tokenizer (transformers, fast) with a ChatML template; every digit is a token.

    ``pieces``: what a token is at most, as in `SmallModel`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLITS[pieces]), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", chat_template=TEMPLATE
    )


def build_model(tokenizer: Any, size: SmallModel) -> Any:
    """A new Qwen2ForCausalLM for ``tokenizer``: random weights, and heads that copy (`copying`)."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(size.seed)
    vocabulary = -(-len(tokenizer) // 64) * 64
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=size.context,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        attn_implementation="sdpa",
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        # In transformers' scale (0.02) a token's own vector is too faint in the residual stream to be copied.
        model.get_input_embeddings().weight.mul_(EMBEDDING_SCALE)
    start_copying(model)
    return model


def export(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write model and tokenizer as a bitsandbytes-4bit Hugging Face folder (NF4, double quantisation)."""
    config = {**model.config.to_diff_dict(), "architectures": ["Qwen2ForCausalLM"], "torch_dtype": "float32"}
    tensors = {k: v.detach() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_quantized(folder, config, tensors)
    tokenizer.save_pretrained(str(folder))
