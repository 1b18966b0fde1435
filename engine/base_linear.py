"""The frozen weight of linears that read one input: dense, 4-bit for a GPU or a CPU, or as it was stored."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from proactor.engine.lora import shapes
from proactor.engine.lora_config import Target
from proactor.engine.lora_targets import module_name
from proactor.engine.model_config import ModelConfig
from proactor.kernels.nf4 import NF4Tensor
from proactor.kernels.nf4_cpu import HostNF4, can_host, host, path_of
from proactor.kernels.nf4_pack import PackedNF4, can_repack, repack
from proactor.kernels.op import use_triton
from proactor.kernels.ordered import OrderedWeight, can_order, order, worth_ordering


class BaseLinear:
    """Frozen weight of one or several linears that read the same input, stacked by output: dense, or NF4.

    ``resident`` True makes one dense copy in ``dtype`` and drops the stored parts; on a CPU it lies in the
    order of products where that pays (`worth_ordering`), unless ``exact``. Otherwise NF4 parts are repacked
    for the products of the GPU or, unless ``exact``, of the CPU, where these can take them; else they are
    dequantised at each use.
    """

    def __init__(
        self,
        parts: Sequence[Tensor | NF4Tensor],
        bias: Tensor | None,
        dtype: torch.dtype,
        resident: bool,
        exact: bool = False,
    ) -> None:
        self.parts: list[Tensor | NF4Tensor] = list(parts)
        self.bias, self.dtype = bias, dtype
        self.ready: Tensor | OrderedWeight | PackedNF4 | HostNF4 | None = None
        quantised = [p for p in parts if isinstance(p, NF4Tensor)]
        if resident or not quantised:
            dense = self._build()
            ordered = not exact and can_order(dense) and not use_triton(dense)
            ordered = ordered and worth_ordering((dense.shape[0], dense.shape[1]), dense.dtype)
            self.ready = order(dense) if ordered else dense
        elif len(quantised) == len(parts):
            if use_triton(quantised[0].packed):
                self.ready = repack(*quantised) if can_repack(*quantised) else None
            elif not exact and can_host(*quantised):
                self.ready = host(*quantised, dtype=dtype)
        if self.ready is not None:
            self.parts = []

    def _build(self) -> Tensor:
        # dequantise to the stored dtype, then widen, as bitsandbytes does: float32 equals transformers then
        dense = [(p.dequantize() if isinstance(p, NF4Tensor) else p).to(self.dtype) for p in self.parts]
        return dense[0] if len(dense) == 1 else torch.cat(dense)

    def weight(self) -> Tensor | OrderedWeight | PackedNF4 | HostNF4:
        """The weight [N, K]: the resident dense or packed one, else a new dense one in ``dtype``."""
        return self.ready if self.ready is not None else self._build()

    def nbytes(self) -> tuple[int, int]:
        """(bytes held dense, bytes held as NF4)."""
        held = self.parts if self.ready is None else [self.ready]
        dense = sum(p.nbytes for p in held if isinstance(p, Tensor | OrderedWeight))
        return dense, sum(p.nbytes for p in held if not isinstance(p, Tensor | OrderedWeight))


def form_of(weight: Tensor | OrderedWeight | PackedNF4 | HostNF4 | None, dtype: torch.dtype) -> str:
    """How a weight is held and multiplied, in words; ``dtype``: of the rows."""
    if isinstance(weight, HostNF4):
        return path_of(weight)
    if isinstance(weight, PackedNF4):
        return "nf4, fused for few rows on the GPU"
    name = str(dtype).removeprefix("torch.")
    if isinstance(weight, OrderedWeight):
        return f"dense {name}, in the order of oneDNN's products"
    return f"dense {name}" if weight is not None else f"nf4, dequantised to {name} at each use"


def stack_linears(
    weights: dict[str, Tensor | NF4Tensor],
    layer: int,
    group: tuple[Target, ...],
    config: ModelConfig,
    dtype: torch.dtype,
    resident: bool,
    exact: bool,
) -> BaseLinear:
    """The linear of a layer's targets that read one input; its tensors are popped from ``weights``."""
    size = shapes(config)
    parts = [weights.pop(f"{module_name(layer, t)}.weight") for t in group]
    biases = {t: weights.pop(f"{module_name(layer, t)}.bias", None) for t in group}
    if all(bias is None for bias in biases.values()):
        return BaseLinear(parts, None, dtype, resident, exact)
    device = parts[0].device if isinstance(parts[0], Tensor) else parts[0].packed.device
    stacked = torch.zeros(sum(size[t][0] for t in group), dtype=dtype, device=device)
    for part, t in zip(stacked.split([size[t][0] for t in group]), group, strict=True):
        bias = biases[t]
        if isinstance(bias, Tensor):
            part.copy_(bias)
    return BaseLinear(parts, stacked, dtype, resident, exact)
