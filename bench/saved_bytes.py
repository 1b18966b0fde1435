"""What autograd keeps of one layer between forward and backward: bytes a token, by tensor.

    python -m bench.saved_bytes                                                 # torch forms
    TRITON_INTERPRET=1 PROACTOR_KERNELS=triton python -m bench.saved_bytes      # Triton forms, interpreted

At the shape of Qwen2.5-14B in bfloat16, with LoRA of rank 16 on every linear. Every weight is one zero,
expanded, so that a layer fits anywhere. A storage counts once, however many tensors and functions share it;
the layer's own figures are what a second layer adds. Tensors that a function keeps as attributes of its
context, where autograd's hooks do not see them, count too.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from torch.autograd.graph import Node

from bench.shapes import model_config
from proactor.engine.base_linear import BaseLinear
from proactor.engine.forward import head_rows
from proactor.engine.lora import GROUPS, LoRABuffer, shapes
from proactor.engine.lora_config import LoRA, Target
from proactor.engine.model import Decoder, Layer
from proactor.engine.tree import Tree
from proactor.engine.types import Group, Sample
from proactor.kernels.op import QWEN25, ModelShape

TOKENS = 8
KERNELS = str(Path("proactor", "kernels"))


@dataclass(slots=True)
class Kept:
    """A storage that autograd keeps: its bytes, the tensor that was saved first, and who saves it."""

    nbytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    by: set[str] = field(default_factory=set)


Row = tuple[int, tuple[int, ...], str, tuple[str, ...]]
"""(bytes a token, shape behind the token's dimension, dtype, functions that keep it)."""


def empty_decoder(shape: ModelShape, layers: int, dtype: torch.dtype) -> Decoder:
    """A decoder of ``shape`` whose weights are zeros without memory; its vocabulary has 64 ids."""
    config = model_config(shape, num_hidden_layers=layers, vocab_size=64, max_position_embeddings=4 * TOKENS)
    size, zero = shapes(config), torch.zeros((), dtype=dtype)

    def linear(group: tuple[Target, ...]) -> BaseLinear:
        outputs = sum(size[t][0] for t in group)
        bias = zero.expand(outputs) if "q" in group else None
        return BaseLinear([zero.expand(outputs, size[group[0]][1])], bias, dtype, True)

    norm, table = zero.expand(shape.hidden), zero.expand(64, shape.hidden)
    stack = [Layer(norm, norm, {group: linear(group) for group in GROUPS}) for _ in range(layers)]
    angles = zero.expand(4 * TOKENS, shape.head_dim // 2)
    lora = LoRABuffer(config, LoRA(rank=16, alpha=32), torch.device("cpu"))
    return Decoder(config, dtype, table, table, norm, stack, angles, angles, lora)


def caller() -> str:
    """The function of the kernels that saves a tensor: the innermost one on the stack."""
    frame = sys._getframe(2)
    while frame.f_back is not None and KERNELS not in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_name


def kept_storages(decoder: Decoder, tokens: int) -> list[Kept]:
    """What the trainer's forward over a tree of ``tokens`` rows keeps; the adapter's own factors left out."""
    prompt = [1] * (tokens // 2)
    samples = [Sample(prompt, [2] * (tokens // 4 + 1)) for _ in range(2)]
    tree = Tree([Group(prompt, samples)])
    assert tree.rows == tokens and decoder.lora is not None
    kept: dict[int, Kept] = {}

    def count(tensor: Tensor, by: str) -> None:
        storage = tensor.untyped_storage()
        at = kept.setdefault(storage.data_ptr(), Kept(storage.nbytes(), tuple(tensor.shape), tensor.dtype))
        at.by.add(by)

    def pack(tensor: Tensor) -> Tensor:
        count(tensor, caller())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        rows, _ = head_rows(decoder, tree)
    for node in graph_nodes(rows):
        for value in getattr(node, "__dict__", {}).values():
            if isinstance(value, Tensor):
                count(value, node.name())
    kept.pop(decoder.lora.flat.untyped_storage().data_ptr())
    return list(kept.values())


def graph_nodes(tensor: Tensor) -> set[Node]:
    """The nodes of the graph that ends in ``tensor``."""
    nodes: set[Node] = set()
    open_nodes = [tensor.grad_fn]
    while open_nodes:
        node = open_nodes.pop()
        if node is not None and node not in nodes:
            nodes.add(node)
            open_nodes += [following for following, _ in node.next_functions]
    return nodes


def saved_rows(shape: ModelShape, dtype: torch.dtype = torch.bfloat16, tokens: int = TOKENS) -> list[Row]:
    """What one layer keeps, largest first: the storages of two layers without those of one."""

    def rows(layers: int) -> Counter[Row]:
        kept = kept_storages(empty_decoder(shape, layers, dtype), tokens)
        return Counter(
            (k.nbytes // tokens, k.shape[1:], str(k.dtype).removeprefix("torch."), tuple(sorted(k.by)))
            for k in kept
        )

    return sorted((rows(2) - rows(1)).elements(), reverse=True)


def main() -> int:
    """Print the table."""
    rows = saved_rows(QWEN25[0])
    print("| bytes a token | a token's shape | dtype | kept by |\n|---:|---|---|---|")
    for nbytes, shape, dtype, by in rows:
        print(f"| {nbytes:,} | {' x '.join(map(str, shape))} | {dtype} | {', '.join(by)} |")
    total = sum(row[0] for row in rows)
    print(f"| **{total:,}** | {total / 1024:.1f} KiB | | |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
