"""Peers of operations on a GPU: library forms of the same computation, by the operation's name.

A peer takes the operation's arguments and prepares outside of the timing what its users prepare once (weights
in its layout, a mask). Packages are imported when used; a missing one is recorded as absent. A peer whose
result differs from ours is not timed.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.attention_peers import SDPA, SDPA_ON_GATHERED, VARLEN
from bench.gpu.form import Form, Peer
from proactor.kernels.op import Arguments, Op


def peers_of(op: Op) -> list[Peer]:
    """The libraries' forms, and the operation's torch reference in the same dtype."""

    def reference(arguments: Arguments) -> Form:
        return Form(lambda: op.reference(**arguments), [arguments[n] for n in op.gradients if n in arguments])

    return [*PEERS.get(op.name, ()), Peer("torch reference", reference)]


# --- norms, rotation, activation ---


def _torch_norm(a: Arguments) -> Form:
    x, weight = a["x"], a["weight"]
    return Form(lambda: F.rms_norm(x, weight.shape, weight, a["eps"]), [x])


def _torch_add_norm(a: Arguments) -> Form:
    x, residual, weight = a["x"], a["residual"], a["weight"]

    def call() -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, a["eps"]), total

    return Form(call, [x, residual])


def _liger(module: str) -> Any:
    return importlib.import_module(f"liger_kernel.ops.{module}")


def _liger_norm(a: Arguments) -> Form:
    norm = _liger("rms_norm").LigerRMSNormFunction
    return Form(lambda: norm.apply(a["x"], a["weight"], a["eps"], 0.0, "llama", False), [a["x"]])


def _liger_add_norm(a: Arguments) -> Form:
    fused = _liger("fused_add_rms_norm").LigerFusedAddRMSNormFunction
    x, residual = a["x"], a["residual"]
    return Form(lambda: fused.apply(x, residual, a["weight"], a["eps"], 0.0, "llama", False), [x, residual])


def _liger_swiglu(a: Arguments) -> Form:
    product = _liger("swiglu").LigerSiLUMulFunction
    gate, up = (half.detach().contiguous().requires_grad_() for half in a["gate_up"].chunk(2, -1))
    return Form(lambda: product.apply(gate, up), [gate, up])


def _liger_rope(a: Arguments) -> Form | None:
    """Liger rotates queries and keys together, in place: here all heads but the last, and the last.

    Both are laid out as a projection leaves them.
    """
    turn = _liger("rope").LigerRopeFunction
    x = a["x"].detach()
    if x.shape[1] < 2:
        return None
    parts = (x[:, :-1].contiguous(), x[:, -1:].contiguous())
    q, k = (part.unsqueeze(0).transpose(1, 2).requires_grad_() for part in parts)
    cos, sin = (torch.cat([a[n], a[n]], -1).unsqueeze(0) for n in ("cos", "sin"))
    return Form(
        lambda: turn.apply(q, k, cos, sin),
        [q, k],
        lambda out: torch.cat(list(out), 1)[0].transpose(0, 1),
    )


# --- 4-bit linear ---


def _dense(a: Arguments) -> Form:
    weight = a["weight"].dequantize(a["x"].dtype)
    return Form(lambda: F.linear(a["x"], weight, a.get("bias")), [a["x"]])


def _dequantise_then_linear(a: Arguments) -> Form:
    return Form(lambda: F.linear(a["x"], a["weight"].dequantize(a["x"].dtype), a.get("bias")), [a["x"]])


def bnb_state(weight: Any, dtype: torch.dtype) -> tuple[Tensor, Any]:
    """The weight for bitsandbytes: the same bytes, or its values quantised again where ours are repacked.

    Quantising again changes the scales of scales slightly.
    """
    from bitsandbytes.functional import QuantState, quantize_4bit

    if not hasattr(weight, "packed"):
        values = weight.dequantize(dtype)
        packed, state = quantize_4bit(
            values, blocksize=64, compress_statistics=weight.nested, quant_type="nf4"
        )
        return packed, state
    inner = offset = None
    if weight.nested:
        inner = QuantState(
            absmax=weight.nested_absmax,
            code=weight.nested_code,
            blocksize=weight.nested_blocksize,
            dtype=torch.float32,
        )
        offset = torch.tensor(weight.nested_offset, device=weight.device)
    state = QuantState(
        absmax=weight.absmax,
        shape=torch.Size(weight.shape),
        code=weight.code,
        blocksize=weight.blocksize,
        quant_type="nf4",
        dtype=dtype,
        offset=offset,
        state2=inner,
    )
    return weight.packed.view(-1, 1), state


def _bnb_fused(a: Arguments) -> Form:
    import bitsandbytes

    packed, state = bnb_state(a["weight"], a["x"].dtype)
    return Form(
        lambda: bitsandbytes.matmul_4bit(a["x"], packed.t(), quant_state=state, bias=a.get("bias")), [a["x"]]
    )


def _bnb_dequantise(a: Arguments) -> Form:
    from bitsandbytes.functional import dequantize_4bit

    packed, state = bnb_state(a["weight"], a["x"].dtype)
    return Form(lambda: F.linear(a["x"], dequantize_4bit(packed, state), a.get("bias")), [a["x"]])


def _bnb_dequantise_alone(a: Arguments) -> Form:
    from bitsandbytes.functional import dequantize_4bit

    packed, state = bnb_state(a["weight"], a["dtype"])
    return Form(lambda: dequantize_4bit(packed, state))


# --- optimizer ---


def _torch_adamw(a: Arguments) -> Form:
    """torch's fused AdamW on the same state."""
    state = torch.tensor(float(a["step"] - 1), device=a["param"].device)
    beta1, beta2 = a["betas"]

    def call() -> tuple[Tensor, ...]:
        torch._fused_adamw_(
            [a["param"]],
            [a["grad"]],
            [a["m"]],
            [a["v"]],
            [],
            [state.add_(1)],
            lr=a["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=a["weight_decay"],
            eps=a["eps"],
            amsgrad=False,
            maximize=False,
        )
        return a["param"], a["m"], a["v"]

    return Form(call)


PEERS: dict[str, tuple[Peer, ...]] = {
    "rms_norm": (Peer("torch rms_norm", _torch_norm), Peer("liger", _liger_norm, "liger_kernel")),
    "add_rms_norm": (
        Peer("torch add, rms_norm", _torch_add_norm),
        Peer("liger", _liger_add_norm, "liger_kernel"),
    ),
    "swiglu": (Peer("liger", _liger_swiglu, "liger_kernel"),),
    "rope": (Peer("liger", _liger_rope, "liger_kernel"),),
    "nf4_linear": (
        Peer("cuBLAS bf16", _dense),
        Peer("dequantise, cuBLAS", _dequantise_then_linear),
        Peer("bitsandbytes", _bnb_fused, "bitsandbytes"),
        Peer("bitsandbytes dequantise, cuBLAS", _bnb_dequantise, "bitsandbytes"),
    ),
    "nf4_dequantize": (Peer("bitsandbytes", _bnb_dequantise_alone, "bitsandbytes"),),
    "span_attention": (SDPA, VARLEN),
    "paged_attention": (SDPA_ON_GATHERED,),
    "adamw": (Peer("torch fused", _torch_adamw),),
}
