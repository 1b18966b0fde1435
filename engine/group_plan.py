"""What a training step on given groups computes: the trees it makes, their chunks, memory and operations.

The trees are the trainer's own (`Budgets.pack`, `engine/chunks.py`), so tokens and chunks are exact. Bytes
(`engine/peak.py`) and operations (`engine/operations.py`) are computed from shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from proactor.engine.chunks import Chunk, cut, kept_alone
from proactor.engine.config import GRPO, SFT
from proactor.engine.footprint import Footprint
from proactor.engine.layout import Layout, layout
from proactor.engine.lora_config import LoRA
from proactor.engine.lora_targets import total_rank
from proactor.engine.loss import GRPOLoss, Loss, SFTLoss, by_token
from proactor.engine.memory import Budgets
from proactor.engine.model import Decoder
from proactor.engine.operations import Operations, Work
from proactor.engine.peak import Peak
from proactor.engine.tree import Tree
from proactor.engine.types import Group, with_parents
from proactor.kernels.op import use_triton

PARTS = ("forward", "backward", "computed again", "reference")
"""What a step's operations are for: the pass with gradient and its backward, what is computed once more
before it because the tree is recomputed by turns, and the pass with the adapter off."""


@dataclass(frozen=True, slots=True)
class TreeWork:
    """One tree in training.

    ``rows``: its tokens, each computed once with gradient, of which ``trained`` are predicted; ``flat``: rows
    without sharing. ``chunk``: rows at a time, in ``chunks`` passes. ``again``: rows computed once more
    without gradient, ``reference``: with the adapter off. ``bytes``: the most that lives beside the model.
    ``operations``: by (part of the step, part of the model).
    """

    rows: int
    flat: int
    trained: int
    chunk: int
    chunks: int
    again: int
    reference: int
    bytes: int
    operations: Counter[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class GroupPlan:
    """A step's trees. ``held``: bytes of weights, adapter and optimizer. ``epochs``: times the trees are
    trained. ``masked``: groups without a trained token, which are left out.
    """

    trees: tuple[TreeWork, ...]
    held: int
    epochs: int = 1
    masked: int = 0

    @property
    def tokens(self) -> int:
        """Rows with gradient: what `Engine.train` reports as ``tokens_computed``."""
        return self.epochs * sum(tree.rows for tree in self.trees)

    @property
    def again(self) -> int:
        """Rows computed once more, without gradient."""
        return self.epochs * sum(tree.again for tree in self.trees)

    @property
    def reference(self) -> int:
        """Rows computed with the adapter off."""
        return self.epochs * sum(tree.reference for tree in self.trees)

    @property
    def flat(self) -> int:
        """Rows that separate, unshared sequences would take."""
        return self.epochs * sum(tree.flat for tree in self.trees)

    @property
    def chunks(self) -> int:
        """Passes with gradient."""
        return self.epochs * sum(tree.chunks for tree in self.trees)

    @property
    def peak(self) -> int:
        """Predicted bytes at the height of the step: what is held, and the largest tree beside it."""
        return self.held + max((tree.bytes for tree in self.trees), default=0)

    @property
    def operations(self) -> float:
        """Floating-point operations."""
        return self.epochs * sum(sum(tree.operations.values()) for tree in self.trees)

    def shares(self) -> dict[str, float]:
        """Each of `PARTS` as a share of the operations, which stand for the time."""
        return self._shares(0, PARTS)

    def model_shares(self) -> dict[str, float]:
        """Linears, attention and head as shares of the operations."""
        return self._shares(1, ("linears", "attention", "head"))

    def _shares(self, place: int, names: Sequence[str]) -> dict[str, float]:
        sums = Counter[str]()
        for tree in self.trees:
            for key, count in tree.operations.items():
                sums[key[place]] += count
        total = sums.total() or 1
        return {name: sums[name] / total for name in names}


@dataclass(frozen=True, slots=True)
class GroupPlanner:
    """Plans of one model. ``exact``: deterministic mode, in which no tree depends on other groups."""

    budgets: Budgets
    operations: Operations
    peak: Peak
    held: int
    exact: bool = False

    def plan(self, groups: Sequence[Group], config: GRPO | SFT | Loss | None = None) -> GroupPlan:
        """The plan of a step; ``config``: that of `Engine.train`, or a loss; None: GRPO's defaults.

        Minibatches are planned as one: cut apart, they share a little less. Raises EngineError as `Tree` and
        `layout` do.
        """
        config = GRPO() if config is None else config
        loss = _loss(config)
        kept = with_parents(groups, lambda group: not group.masked)
        trees = self.budgets.pack(kept, gradient=True, exact=self.exact)
        epochs = config.epochs if isinstance(config, GRPO) else 1
        works = tuple(self._work(tree, loss) for tree in trees)
        return GroupPlan(works, self.held, epochs, len(groups) - len(kept))

    def _work(self, tree: Tree, loss: Loss) -> TreeWork:
        flat, most = layout(tree), self.budgets.chunk_of(tree)
        in_chunks = tree.rows > most
        chunks = cut(tree, flat.start, most) if in_chunks else []
        whole = _work_of(flat, torch.arange(tree.rows))
        again = Work()
        if in_chunks and not by_token(loss):
            again = whole
        elif in_chunks:
            again = _kept_work(flat, kept_alone(chunks))
        reference = whole if getattr(loss, "needs_reference", False) else Work()
        counts = Counter[tuple[str, str]]()
        per = self.operations
        passes = (per.forward(whole), per.backward(whole), per.forward(again), per.forward(reference, False))
        for part, operations in zip(PARTS, passes, strict=True):
            counts.update({(part, of): int(count) for of, count in operations.items()})
        return TreeWork(
            rows=tree.rows,
            flat=tree.flat_tokens,
            trained=len(flat.pair_row),
            chunk=min(most, tree.rows),
            chunks=len(chunks) or 1,
            again=again.rows,
            reference=reference.rows,
            bytes=self.peak.of(tree, flat, chunks, loss),
            operations=counts,
        )


def _loss(config: GRPO | SFT | Loss) -> Loss:
    """The loss of a config, or the one that is given."""
    if isinstance(config, GRPO):
        return GRPOLoss(config)
    return SFTLoss(config) if isinstance(config, SFT) else config


def _work_of(flat: Layout, rows: Tensor, heads: bool = True) -> Work:
    """The work of some rows: each sees the keys of its path, itself included."""
    pairs = int((flat.positions[rows] + 1).sum())
    return Work(len(rows), pairs, len(flat.head_row) if heads else 0)


def _kept_work(flat: Layout, chunks: Sequence[Chunk]) -> Work:
    """Pass one: the kept rows, no logits."""
    parts = [_work_of(flat, torch.from_numpy(chunk.rows), heads=False) for chunk in chunks]
    return Work(sum(part.rows for part in parts), sum(part.pairs for part in parts))


def group_planner(decoder: Decoder, lora: LoRA, beside: Sequence[LoRA], budgets: Budgets) -> GroupPlanner:
    """The plans of a loaded model for the adapter ``lora``, with others ``beside`` it."""
    config, nf4 = decoder.config, decoder.nbytes()["nf4"] > 0
    footprint = Footprint.of(config, [lora, *beside], nf4, decoder.dtype)
    operations = Operations.of(config, lora)
    peak = Peak(config, total_rank(lora, config.num_layers), footprint, use_triton(decoder.embed))
    return GroupPlanner(budgets, operations, peak, footprint.held, decoder.form.exact)
