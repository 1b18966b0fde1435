"""bitsandbytes' 4-bit layout in a Hugging Face folder: check a config, read and write one linear.

Beside `weight` (the packed bytes) a linear has `weight.absmax`, `weight.quant_map`, the JSON
`weight.quant_state.bitsandbytes__nf4`, and with nested scales also `weight.nested_absmax` and
`weight.nested_quant_map`. [CODE] bitsandbytes 0.50 `QuantState`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from proactor.engine.config_keys import LARGEST_NUMBER, CheckpointError, is_count
from proactor.engine.model_config import DTYPES
from proactor.engine.shards import Shards
from proactor.kernels.nf4 import NF4_CODE, NF4Tensor

STATE = ".quant_state.bitsandbytes__nf4"
PARTS = (".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map", STATE)
BLOCKSIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)


def is_4bit(config: Mapping[str, Any], where: str) -> bool:
    """Whether ``config`` (a whole config.json) declares bitsandbytes NF4.

    Raises CheckpointError naming any other quantisation.
    """
    quantization = config.get("quantization_config")
    if not quantization:
        return False
    if not isinstance(quantization, dict):
        raise CheckpointError(f"{where}: quantization_config: should be an object, not {quantization!r}")
    method = quantization.get("quant_method")
    if method != "bitsandbytes" and not (method is None and quantization.get("load_in_4bit")):
        raise CheckpointError(
            f"{where}: quantization_config: quant_method {method!r} is not supported, only bitsandbytes "
            "4-bit NF4"
        )
    if not quantization.get("load_in_4bit", quantization.get("_load_in_4bit")):
        raise CheckpointError(
            f"{where}: quantization_config: bitsandbytes 8-bit is not supported, only 4-bit NF4"
        )
    kind = quantization.get("bnb_4bit_quant_type", "fp4")
    if kind != "nf4":
        raise CheckpointError(
            f"{where}: quantization_config: bnb_4bit_quant_type {kind!r} is not supported, only 'nf4'"
        )
    return True


def unpack(shards: Shards, name: str, shape: tuple[int, int], device: torch.device | str) -> NF4Tensor:
    """Read the linear ``name`` ("....weight") of ``shape`` (outputs, inputs), its bytes exactly as stored.

    Raises CheckpointError, naming file and key, where a part is missing, malformed, or contradicts ``shape``.
    """
    state = _read_state(shards, name, shape)
    nested = name + ".nested_absmax" in shards
    for part in (".quant_map", *((".nested_absmax", ".nested_quant_map") if nested else (".absmax",))):
        if (kind := shards.dtype(name + part)) != "F32":
            raise shards.error(name + part, f"is {kind}, not F32")
    code = _copy(shards, name + ".quant_map", device)
    if code.shape != (16,) or not torch.allclose(code.cpu(), NF4_CODE, rtol=0, atol=1e-6):
        raise shards.error(name + ".quant_map", "does not hold the sixteen NF4 levels")
    packed = _copy(shards, name, device).reshape(-1)
    if packed.dtype != torch.uint8:  # bnb_4bit_quant_storage: the same bytes under another dtype
        packed = packed.view(torch.uint8)
    try:
        tensor = NF4Tensor(
            packed=packed,
            absmax=_copy(shards, name + ".absmax", device),
            # bitsandbytes dequantises with its own table whatever the file says; so do we, to the bit
            code=NF4_CODE.to(device, copy=True),
            nested_absmax=_copy(shards, name + ".nested_absmax", device) if nested else None,
            nested_code=_copy(shards, name + ".nested_quant_map", device) if nested else None,
            nested_offset=float(state.get("nested_offset", 0.0)),
            shape=shape,
            dtype=DTYPES[state["dtype"]],
            blocksize=state["blocksize"],
            nested_blocksize=state.get("nested_blocksize", 256),
        )
    except ValueError as error:
        raise shards.error(name, str(error)) from error
    floats = {".absmax": tensor.absmax}
    if tensor.nested_absmax is not None and tensor.nested_code is not None:
        floats = {".nested_absmax": tensor.nested_absmax, ".nested_quant_map": tensor.nested_code}
    for part, values in floats.items():
        if not bool(torch.isfinite(values).all()):
            raise shards.error(name + part, "holds values that are not finite")
    return tensor


def _copy(shards: Shards, name: str, device: torch.device | str) -> Tensor:
    stored = shards.read(name)
    kept = stored.to(device, copy=True)
    shards.release(stored)
    return kept


def _read_state(shards: Shards, name: str, shape: tuple[int, int]) -> dict[str, Any]:
    """The JSON of one linear, checked."""
    key = name + STATE
    try:
        state = json.loads(bytes(shards.read(key).numpy()))
    except (ValueError, TypeError, RecursionError) as error:
        raise shards.error(key, "does not hold JSON") from error
    if not isinstance(state, dict):
        raise shards.error(key, "does not hold a JSON object")
    if state.get("quant_type") != "nf4":
        raise shards.error(key, f"quant_type {state.get('quant_type')!r} is not supported, only 'nf4'")
    if state.get("blocksize") not in BLOCKSIZES:
        raise shards.error(
            key, f"blocksize {state.get('blocksize')!r} is not one of {', '.join(map(str, BLOCKSIZES))}"
        )
    if state.get("dtype") not in tuple(DTYPES):
        raise shards.error(key, f"dtype {state.get('dtype')!r} is not one of {', '.join(DTYPES)}")
    if state.get("shape") != list(shape):
        raise shards.error(
            key, f"shape {state.get('shape')} contradicts config.json, which needs {list(shape)}"
        )
    if name + ".nested_absmax" in shards:
        blocksize, offset = state.get("nested_blocksize"), state.get("nested_offset")
        if not is_count(blocksize) or blocksize == 0:
            raise shards.error(key, f"nested_blocksize {blocksize!r} should be a positive integer")
        if isinstance(offset, bool) or not (
            isinstance(offset, int | float) and abs(offset) <= LARGEST_NUMBER
        ):
            raise shards.error(key, f"nested_offset {offset!r} should be a finite number")
    elif "nested_offset" in state:
        raise shards.error(name + ".nested_absmax", "missing, though the scales are nested")
    return state


def pack(name: str, tensor: NF4Tensor) -> dict[str, Tensor]:
    """The tensors that bitsandbytes stores for one linear, by key, on the CPU."""
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": tensor.blocksize,
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
    }
    parts = {
        name: tensor.packed.view(-1, 1),
        name + ".absmax": tensor.absmax,
        name + ".quant_map": tensor.code,
    }
    if tensor.nested_absmax is not None and tensor.nested_code is not None:
        parts |= {
            name + ".nested_absmax": tensor.nested_absmax,
            name + ".nested_quant_map": tensor.nested_code,
        }
        state |= {
            "nested_blocksize": tensor.nested_blocksize,
            "nested_dtype": "float32",
            "nested_offset": tensor.nested_offset,
        }
    parts[name + STATE] = torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)
    # copies: linears may share their tables, which safetensors refuses
    return {key: value.cpu().clone(memory_format=torch.contiguous_format) for key, value in parts.items()}


def quantization_config(
    plain_linears: Iterable[str], nested: bool, compute_dtype: torch.dtype
) -> dict[str, Any]:
    """The `quantization_config` of config.json; ``plain_linears``: modules left unquantised, with lm_head."""
    return {
        "quant_method": "bitsandbytes",
        "load_in_4bit": True,
        "load_in_8bit": False,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": nested,
        "bnb_4bit_compute_dtype": str(compute_dtype).removeprefix("torch."),
        "bnb_4bit_quant_storage": "uint8",
        "llm_int8_enable_fp32_cpu_offload": False,
        "llm_int8_has_fp16_weight": False,
        "llm_int8_skip_modules": list(plain_linears),
        "llm_int8_threshold": 6.0,
    }
