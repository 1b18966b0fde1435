"""Peers of the GPU benchmark compute the same as our operations, on a CPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from bench.gpu.attention_peers import FLEX, VARLEN, VARLEN_COPIES
from bench.gpu.form import Peer
from bench.gpu.peers import PEERS
from bench.gpu.rows import difference
from bench.gpu.timing import tensors
from proactor.kernels.op import Arguments
from proactor.kernels.registry import OPS
from tests.bench.gpu.fake import CPU

ALL = [(name, peer) for name, peers in PEERS.items() for peer in peers]
ALL += [("span_attention", FLEX), ("span_attention", VARLEN_COPIES)]


def varlen_attn(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float | None = None,
    window_size: tuple[int, int] = (-1, -1),
    enable_gqa: bool = False,
) -> Tensor:
    """torch's, whose kernel exists for cards only."""
    assert window_size == (-1, 0), "causal"
    assert max_q == max_k == int(cu_seq_q.diff().max())
    out = []
    for a, b in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
        q, k, v = (x[a:b].transpose(0, 1)[None] for x in (query, key, value))
        attended = F.scaled_dot_product_attention(q, k, v, scale=scale, is_causal=True, enable_gqa=enable_gqa)
        out.append(attended[0].transpose(0, 1))
    return torch.cat(out)


@torch.compiler.set_stance("force_eager")  # bitsandbytes would compile its fallback for odd rows, for 20 s
@pytest.mark.parametrize(("name", "peer"), ALL, ids=lambda v: getattr(v, "name", v))
def test_peers_compute_the_same(name: str, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every case that a peer supports; one with kernels for GPUs only, by a stand-in or not at all."""
    if peer.name == "liger" or peer.absent:
        pytest.skip(peer.absent or f"{peer.name} runs on cards only")
    if peer in (VARLEN, VARLEN_COPIES):
        monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn)
    (op,) = (op for op in OPS if op.name == name)
    built = 0
    for case in op.cases:
        draw: Any = partial(case.make, device=CPU, dtype=torch.float32)
        arguments = draw(torch.Generator().manual_seed(1))
        form = peer.build(arguments) if not is_empty(arguments) else None
        if form is not None:
            with torch.no_grad():
                theirs = list(tensors(form.view(form.call())))
            ours = list(tensors(op.function(**draw(torch.Generator().manual_seed(1)))))
            assert difference(theirs, ours) < (5e-3 if peer.package == "bitsandbytes" else 1e-5), case.name
            built += 1
    assert built


def is_empty(arguments: Arguments) -> bool:
    return any(isinstance(v, Tensor) and v.numel() == 0 for v in arguments.values())
