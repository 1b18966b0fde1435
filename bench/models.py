"""Models of benchmarks: random weights in Hugging Face folders that both sides load, without a download."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

VOCAB = 8192
PAD, EOS, UNKNOWN = 0, 1, 2
RANK, ALPHA = 16, 32
TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_tiny_qwen2(folder: Path, seed: int = 0, tokenizer: Any = None, **changes: int) -> Path:
    """A Qwen2 of 5.2M float32 parameters with a ``tokenizer`` (None: one word per id).

    4 layers, hidden size 256, 4 heads, 2 key-value heads, vocabulary 8192, tied embeddings. ``changes``: of
    its `Qwen2Config`.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    size = {"hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 4}
    size |= {"max_position_embeddings": 2048, "tie_word_embeddings": True, **changes}
    config = Qwen2Config(
        **size,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCAB,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).float()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                # transformers starts biases at 0, which would hide one that a side forgets.
                parameter.normal_(0, 0.02)
    model.save_pretrained(folder)
    (tokenizer or word_tokenizer(VOCAB)).save_pretrained(folder)
    return folder


def write_adapter(folder: Path, model: Path, seed: int = 1) -> Path:
    """A PEFT adapter for that model, with random A and B.

    Adapters start with B = 0, where half of the gradients would be 0 and agree by accident.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    config = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)  # nosec B615 # a local folder
    peft = get_peft_model(base, config)
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.01)
    peft.save_pretrained(folder)
    return folder


def word_tokenizer(vocabulary: int, words: Sequence[str] = ()) -> Any:
    """A fast tokenizer in which id i is the word `ti`; 0 to 2 are pad, end and unknown, ``words`` follow."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = [*words, *(f"t{i}" for i in range(3 + len(words), vocabulary))]
    ids = {"<pad>": PAD, "<eos>": EOS, "<unk>": UNKNOWN} | {name: 3 + i for i, name in enumerate(names)}
    core = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
