"""Peers of operations on a GPU: library forms of the same computation, by the operation's name.

A peer takes the operation's arguments and prepares outside of the timing what its users prepare once (weights
in its layout, a mask). Packages are imported when used; a missing one is recorded as absent. A peer whose
result differs from ours is not timed.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from proactor.kernels.op import Arguments, Op, Outputs


@dataclass(frozen=True, slots=True)
class Form:
    """A call ready to time. ``leaves``: inputs that get gradients; ``view``: its result in our layout."""

    call: Callable[[], Any]
    leaves: Sequence[Tensor] = ()
    view: Callable[[Any], Outputs] = lambda out: out


@dataclass(frozen=True, slots=True)
class Peer:
    """A library's form. ``build`` returns None where it cannot take the arguments; needs ``package``."""

    name: str
    build: Callable[[Arguments], Form | None]
    package: str = "torch"
    gradients: bool = True

    @property
    def absent(self) -> str:
        """Why it cannot run here; empty if it can."""
        root, _, rest = self.package.partition(".")
        if importlib.util.find_spec(root) is None or (
            rest and importlib.util.find_spec(self.package) is None
        ):
            return f"{self.package} is not installed"
        return ""


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


def _bnb_state(weight: Any, dtype: torch.dtype) -> tuple[Tensor, Any]:
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

    packed, state = _bnb_state(a["weight"], a["x"].dtype)
    return Form(
        lambda: bitsandbytes.matmul_4bit(a["x"], packed.t(), quant_state=state, bias=a.get("bias")), [a["x"]]
    )


def _bnb_dequantise(a: Arguments) -> Form:
    from bitsandbytes.functional import dequantize_4bit

    packed, state = _bnb_state(a["weight"], a["x"].dtype)
    return Form(lambda: F.linear(a["x"], dequantize_4bit(packed, state), a.get("bias")), [a["x"]])


def _bnb_dequantise_alone(a: Arguments) -> Form:
    from bitsandbytes.functional import dequantize_4bit

    packed, state = _bnb_state(a["weight"], a["dtype"])
    return Form(lambda: dequantize_4bit(packed, state))


# --- attention ---


def _heads_first(a: Arguments) -> list[Tensor]:
    """Queries, keys and values as views [1, heads, T, D]."""
    return [a[name].transpose(0, 1).unsqueeze(0) for name in ("q", "k", "v")]


def _rows_first(out: Tensor) -> Tensor:
    return out[0].transpose(0, 1).flatten(1)


def _is_causal(spans: Any) -> bool:
    return len(spans.start) == 1


def _sdpa(a: Arguments) -> Form:
    """SDPA: causal where the tree is one run, with a dense mask elsewhere."""
    q, k, v = _heads_first(a)
    if _is_causal(a["spans"]):
        rest: dict[str, Any] = {"is_causal": True}
    else:
        rest = {"attn_mask": torch.from_numpy(a["spans"].visible()).to(q.device)}
    call = lambda: F.scaled_dot_product_attention(q, k, v, scale=a["scale"], enable_gqa=True, **rest)  # noqa: E731
    return Form(call, [a[n] for n in ("q", "k", "v")], _rows_first)


def _varlen(a: Arguments) -> Form | None:
    """varlen_attn, only for separate causal runs: it does not support trees."""
    from torch.nn.attention.varlen import varlen_attn

    spans = a["spans"]
    if len(spans.spans) or (spans.base != spans.start).any():
        return None
    edges = torch.tensor([*spans.start.tolist(), spans.rows], dtype=torch.int32, device=a["q"].device)
    longest, group = int(spans.length.max()), a["q"].shape[1] // a["k"].shape[1]
    known = inspect.signature(varlen_attn).parameters  # changes between versions
    rest: dict[str, Any] = {"window_size": (-1, 0)} if "window_size" in known else {"is_causal": True}
    rest |= {"scale": a["scale"]} if "scale" in known else {}
    rest |= {"enable_gqa": True} if "enable_gqa" in known else {}

    def call() -> Any:
        few = group == 1 or "enable_gqa" in known
        k, v = (a[n] if few else a[n].repeat_interleave(group, 1) for n in ("k", "v"))
        return varlen_attn(a["q"], k, v, edges, edges, longest, longest, **rest)

    return Form(call, [a[n] for n in ("q", "k", "v")], lambda out: out.flatten(1))


_compiled: dict[str, Any] = {}


def _flex(a: Arguments) -> Form:
    """FlexAttention, compiled once, with a prepared block mask of the tree."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    if "flex" not in _compiled:
        _compiled["flex"] = torch.compile(flex_attention)
    q, k, v = _heads_first(a)
    visible = torch.from_numpy(a["spans"].visible()).to(q.device)
    rows = len(visible)
    mask = create_block_mask(lambda b, h, i, j: visible[i, j], None, None, rows, rows, device=str(q.device))
    call = lambda: _compiled["flex"](q, k, v, block_mask=mask, scale=a["scale"], enable_gqa=True)  # noqa: E731
    return Form(call, [a[n] for n in ("q", "k", "v")], _rows_first)


def _sdpa_on_gathered(a: Arguments) -> Form | None:
    """SDPA over keys gathered from the pages beforehand, where all rows see the same number of keys."""
    lengths, unit = a["lengths"], a["unit"]
    count = int(lengths[0]) if len(lengths) else 0
    if not count or bool((lengths != count).any()):
        return None
    place = torch.arange(count, device=lengths.device)
    slots = a["table"][:, place // unit].long() * unit + place % unit  # [B, count]
    k, v = (a[n][:, slots].transpose(0, 1).contiguous() for n in ("keys", "values"))  # [B, Hkv, count, D]
    q = a["q"].unsqueeze(2)
    call = lambda: F.scaled_dot_product_attention(q, k, v, scale=a["scale"], enable_gqa=True)  # noqa: E731
    return Form(call, view=lambda out: out[:, :, 0].flatten(1))


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
    "span_attention": (
        Peer("SDPA", _sdpa),
        Peer("varlen_attn", _varlen, "torch.nn.attention.varlen"),
        Peer("FlexAttention", _flex, "torch.nn.attention.flex_attention"),
    ),
    "paged_attention": (Peer("SDPA on gathered keys", _sdpa_on_gathered),),
    "adamw": (Peer("torch fused", _torch_adamw),),
}
