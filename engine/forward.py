"""The trainer's forward: a token tree in, log-probabilities of its trained tokens out."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from proactor.engine.blocks import stack, tree_families
from proactor.engine.model import Decoder
from proactor.engine.tree import Layout, Tree, layout
from proactor.engine.types import EngineError
from proactor.kernels.logprob import log_probabilities
from proactor.kernels.tree_attention import AttentionBlock, tree_attention


@dataclass(slots=True)
class TreeView:
    """Attention among a tree's own rows."""

    blocks: list[AttentionBlock]
    scale: float
    exact: bool

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq * D], differentiable."""
        return tree_attention(q, k, v, self.blocks, self.scale, self.exact)


def tree_logprobs(decoder: Decoder, tree: Tree, adapter: bool = True) -> tuple[Tensor, Layout]:
    """Log-probabilities [N] of a tree's trained tokens in the order of `TokenBatch`, and its layout with ``batch.entropy`` filled in.

    Differentiable when gradients are on; ``adapter`` False takes the bare base model. Raises EngineError when no token is trained.
    """
    flat = layout(tree)
    if not len(flat.head_row):
        raise EngineError("tree: no token carries loss (every mask is False)")
    view = TreeView(stack(tree_families(tree, flat.start)), decoder.config.head_dim**-0.5, decoder.form.exact)
    hidden = decoder.hidden(flat.ids, flat.positions, view, adapter)
    rows = decoder.final_norm(hidden.index_select(0, flat.head_row))
    logp, entropy = log_probabilities(
        rows, decoder.head, flat.pair_row, flat.pair_target, flat.head_temperature, decoder.head_linear
    )
    flat.batch.entropy = entropy[flat.unsort]
    return logp[flat.unsort], flat
