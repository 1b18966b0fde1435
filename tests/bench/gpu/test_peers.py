"""Peers of the GPU benchmark compute the same as our operations, on a CPU."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from bench import gpu_peers
from bench.gpu.peers import PEERS, Peer
from bench.gpu.rows import difference
from bench.gpu.timing import tensors
from proactor.kernels.op import Arguments
from proactor.kernels.registry import OPS
from tests.bench.fake_gpu import CPU


@pytest.mark.parametrize(
    ("name", "peer"),
    [(n, p) for n, peers in PEERS.items() for p in peers],
    ids=lambda v: getattr(v, "name", v),
)
def test_peers_compute_the_same(name: str, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """On every case that a peer supports; peers with kernels for GPUs only are skipped."""
    if peer.name in ("liger", "varlen_attn") or peer.absent:
        pytest.skip(peer.absent or f"{peer.name} runs on cards only")
    from torch.nn.attention.flex_attention import flex_attention

    monkeypatch.setattr(gpu_peers, "_compiled", {"flex": flex_attention})  # compiling for a CPU takes long
    (op,) = (op for op in OPS if op.name == name)
    built = 0
    for case in op.cases:
        draw = partial(case.make, device=CPU, dtype=torch.float32)
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
