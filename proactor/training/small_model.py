"""A small Qwen2 model and its tokenizer: random weights, written as a 4-bit Hugging Face folder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from proactor.engine import save_quantized

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% "
    "endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class SmallModel:
    """Sizes of the model and of its training.

    ``text_weight``: loss weight of the dialogue's own text; answers have 1. ``pending``: whether answers
    announce actions that are not ready yet.
    """

    hidden: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate: int = 384
    vocabulary: int = 1024
    context: int = 2048
    batch: int = 16
    lr: float = 3e-3
    muon_lr: float = 0.02
    text_weight: float = 0.3
    pending: bool = False
    seed: int = 0


def train_tokenizer(texts: Iterable[str], vocabulary: int) -> Any:
    """A byte-level BPE tokenizer (transformers, fast) with a ChatML template; every digit is a token."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(r"\d| ?[A-Za-z]+| ?[^\sA-Za-z\d]+|\s+"), "isolated")
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
    """A random Qwen2ForCausalLM for ``tokenizer``."""
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
        attn_implementation="sdpa",
    )
    return Qwen2ForCausalLM(config)


def export(model: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write model and tokenizer as a bitsandbytes-4bit Hugging Face folder (NF4, double quantisation)."""
    config = {**model.config.to_diff_dict(), "architectures": ["Qwen2ForCausalLM"], "torch_dtype": "float32"}
    tensors = {k: v.detach() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_quantized(folder, config, tensors)
    tokenizer.save_pretrained(str(folder))
