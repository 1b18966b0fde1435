"""Model folders in Hugging Face's layout: read weights, and quantise them on the way.

Names, shapes and dtypes are checked from the headers before any weight is read. An error is one line that
names file and tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor

from proactor.engine import bnb4bit
from proactor.engine.config_keys import CheckpointError, read_json
from proactor.engine.files import recover, unfinished
from proactor.engine.model_config import ModelConfig
from proactor.engine.reading import check_name
from proactor.engine.shards import Shards
from proactor.engine.types import one_line
from proactor.kernels.nf4 import NF4Tensor, quantize_nf4

__all__ = ["CheckpointError", "load_weights", "resolve_model", "weight_shapes"]

Quantization = Literal["auto", "nf4", "none"]
Weights = dict[str, Tensor | NF4Tensor]

HUB_FILES = ("*.json", "*.model", "*.txt", "*.jinja")
"""Files of a model beside its weights."""
PLAIN_DTYPES = ("F32", "F16", "BF16")


def resolve_model(path_or_hub_id: str | Path, revision: str | None = None, weights: bool = True) -> Path:
    """A local folder as it is, or a Hub repository at ``revision``, downloaded or from the offline cache.

    ``weights`` False downloads the other files alone. Raises CheckpointError naming the argument when it is
    neither.
    """
    try:
        check_name(path_or_hub_id)
        path = Path(path_or_hub_id).expanduser()
    except (OSError, RuntimeError) as error:  # no name of a file; a user without a home
        raise CheckpointError(f"{path_or_hub_id}: {one_line(error)}") from None
    recover(path)
    name = str(path_or_hub_id)
    partial = unfinished(path)
    if path.is_dir() and partial != path:
        return path
    if partial is not None:
        raise CheckpointError(f"{name}: not written to its end ({partial} is what there is): write it again")
    if path.exists():
        raise CheckpointError(
            f"{name}: is a file; a model is a folder with config.json and safetensors files"
        )
    if isinstance(path_or_hub_id, Path) or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise CheckpointError(f"{name}: no such folder")
    patterns = [*HUB_FILES, *(["*.safetensors"] if weights else [])]
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        at = f" at revision {revision!r}" if revision else ""
        raise CheckpointError(
            f"{name}{at}: no such folder, and not available from the Hub: {one_line(error)}"
        ) from error


def weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every tensor that a checkpoint of this model must hold, by name, in reading order."""
    hidden, inner = config.hidden_size, config.intermediate_size
    queries, keys = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    linears = {
        "self_attn.q_proj": (queries, hidden, config.qkv_bias),
        "self_attn.k_proj": (keys, hidden, config.qkv_bias),
        "self_attn.v_proj": (keys, hidden, config.qkv_bias),
        "self_attn.o_proj": (hidden, queries, config.o_bias),
        "mlp.gate_proj": (inner, hidden, config.mlp_bias),
        "mlp.up_proj": (inner, hidden, config.mlp_bias),
        "mlp.down_proj": (hidden, inner, config.mlp_bias),
    }
    layer: dict[str, tuple[int, ...]] = {}
    for name, (rows, columns, bias) in linears.items():
        layer[f"{name}.weight"] = (rows, columns)
        if bias:
            layer[f"{name}.bias"] = (rows,)
    layer |= {"input_layernorm.weight": (hidden,), "post_attention_layernorm.weight": (hidden,)}
    if config.qk_norm:
        layer |= {
            "self_attn.q_norm.weight": (config.head_dim,),
            "self_attn.k_norm.weight": (config.head_dim,),
        }
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, hidden)}
    for index in range(config.num_layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in layer.items()}
    shapes["model.norm.weight"] = (hidden,)
    if not config.tie_embeddings:
        shapes["lm_head.weight"] = (config.vocab_size, hidden)
    return shapes


def is_linear(name: str) -> bool:
    """Whether a tensor name is one of the seven quantisable linears' weight."""
    return name.startswith("model.layers.") and name.endswith("_proj.weight")


def load_weights(
    folder: str | Path,
    config: ModelConfig,
    *,
    quantization: Quantization = "auto",
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] | None = None,
) -> Weights:
    """Every tensor of `weight_shapes(config)`, by name, on ``device``; plain ones in ``dtype`` or as stored.

    The linears of a 4-bit folder come as NF4Tensor with the stored bytes ("auto", "nf4"; modules that
    bitsandbytes skipped stay plain) or dequantised ("none"). "nf4" on a plain folder quantises each linear,
    with double quantisation, before the next one is read. `progress(done, total)` is called per tensor.

    Raises CheckpointError for a tensor that is missing, unexpected, malformed, not finite, or whose shape is
    not the one that ``config`` gives.
    """
    path = Path(folder)
    stored_4bit = bnb4bit.is_4bit(read_json(path / "config.json"), str(path / "config.json"))
    shapes = weight_shapes(config)
    weights: Weights = {}
    with Shards(path) as shards:
        check_weights(shards, config)
        for done, (name, shape) in enumerate(shapes.items(), 1):
            if name + bnb4bit.STATE in shards:
                weights[name] = _load_quantized(shards, name, shape, quantization, dtype, device)
            else:
                quantize = quantization == "nf4" and not stored_4bit and is_linear(name)
                weights[name] = _load_plain(shards, name, quantize, dtype, device)
            if progress is not None:
                progress(done, len(shapes))
    return weights


def read_plain(shards: Shards, name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor on the CPU, as stored; a 4-bit one is dequantised to the dtype that its file names.

    `check_weights` first. Raises CheckpointError for values that are malformed or not finite.
    """
    if name + bnb4bit.STATE in shards:
        tensor = _load_quantized(shards, name, shape, "none", None, "cpu")
    else:
        tensor = _load_plain(shards, name, False, None, "cpu")
    assert isinstance(tensor, Tensor)
    return tensor


def check_weights(shards: Shards, config: ModelConfig) -> None:
    """Check names, shapes and dtypes, from the headers alone. Raises CheckpointError as `load_weights`."""
    shapes, tied = weight_shapes(config), config.tie_embeddings
    for name in shards.names():
        kind = name.rpartition(".quant_state.")[2]
        if kind != name and not name.endswith(bnb4bit.STATE):
            raise shards.error(name, f"{kind.rpartition('__')[2]!r} is not supported, only bitsandbytes nf4")
    missing = [name for name in shapes if name not in shards]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise shards.error(missing[0], f"missing{more}")
    parts = {name + part for name in shapes if name + bnb4bit.STATE in shards for part in bnb4bit.PARTS}
    for name in shards.names():
        if name in shapes or name in parts or name.endswith("rotary_emb.inv_freq"):
            continue
        if tied and name == "lm_head.weight":
            _check_tied(shards)
        elif ".quant_state." in name:
            raise shards.error(
                name, f"quantisation {name.rpartition('__')[2]!r} is not supported, only bitsandbytes nf4"
            )
        elif name.rpartition(".weight.")[0] + ".weight" in shapes and name.endswith(bnb4bit.PARTS):
            raise shards.error(name.rpartition(".weight.")[0] + ".weight" + bnb4bit.STATE, "missing")
        else:
            raise shards.error(name, "unexpected: config.json describes a model without it")
    for name, shape in shapes.items():
        if name + bnb4bit.STATE in shards:
            continue
        if shards.dtype(name) not in PLAIN_DTYPES:
            what = (
                "and has no quant_state"
                if shards.dtype(name) == "U8"
                else f"only {', '.join(PLAIN_DTYPES)} are supported"
            )
            raise shards.error(name, f"is {shards.dtype(name)}, {what}")
        if shards.shape(name) != shape:
            raise shards.error(
                name, f"shape {list(shards.shape(name))} contradicts config.json, which needs {list(shape)}"
            )


def _check_tied(shards: Shards) -> None:
    """A tied folder may repeat the embedding as its head, but not hold another head."""
    embed, head = "model.embed_tokens.weight", "lm_head.weight"
    if shards.dtype(head) not in PLAIN_DTYPES:
        raise shards.error(head, f"is {shards.dtype(head)}, only {', '.join(PLAIN_DTYPES)} are supported")
    same = shards.shape(head) == shards.shape(embed)
    if same:
        pair = shards.read(head), shards.read(embed)
        same = torch.equal(*pair)
        for tensor in pair:
            shards.release(tensor)
    if not same:
        raise shards.error(head, f"differs from {embed}, though config.json ties them (tie_word_embeddings)")


def _load_quantized(
    shards: Shards,
    name: str,
    shape: tuple[int, ...],
    quantization: Quantization,
    dtype: torch.dtype | None,
    device: torch.device | str,
) -> Tensor | NF4Tensor:
    if len(shape) != 2:
        raise shards.error(name, "only two-dimensional weights can be quantised")
    tensor = bnb4bit.unpack(shards, name, (shape[0], shape[1]), device)
    if quantization != "none" and is_linear(name):
        return tensor
    # rounded to the stored type first, as bitsandbytes and transformers do
    return tensor.dequantize().to(dtype)


def _load_plain(
    shards: Shards, name: str, quantize: bool, dtype: torch.dtype | None, device: torch.device | str
) -> Tensor | NF4Tensor:
    tensor = shards.read(name)
    if quantize:
        try:
            return quantize_nf4(tensor.to(device), dtype=dtype)
        except ValueError as error:
            raise shards.error(name, str(error)) from error
        finally:
            shards.release(tensor)
    converted = tensor.to(device, dtype or tensor.dtype, copy=True)
    if not _finite(converted):
        what = f"does not fit {dtype}: pick another dtype"
        raise shards.error(name, what if _finite(tensor) else "holds values that are not finite")
    shards.release(tensor)
    return converted


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(torch.stack(torch.aminmax(tensor))).all())
