"""Token trees, on which the trainer computes: tries of token runs, whose ancestors are their context.

Prompts merge where their ids are equal. Sampled tokens of different samples never merge, because clipping is
not linear in the advantage. A group is a prompt with its samples as leaves; a dialogue replayed turn by turn
is a caterpillar tree. Each run of tokens is one range of rows, computed once forward and once backward. The
last token of a leaf is only a target: nothing is predicted from it, so it gets no row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from proactor.engine.arguments import short
from proactor.engine.prefix import common_prefix
from proactor.engine.types import EngineError, Group, Sample

Ids = NDArray[np.int64]
ROOT = -1


@dataclass(slots=True)
class Node:
    """A run of tokens after ``parent`` (an index, or ROOT), the first of them at ``depth``."""

    ids: Ids
    parent: int
    depth: int
    leaf: bool = False
    children: dict[int, int] = field(default_factory=dict)


class Tree:
    """The trie of some groups.

    ``nodes`` in creation order; ``prompt_end[g]`` is the node that ends group g's prompt; ``leaves[g][s]``
    the node of a sample's rows (None when it has none). Raises EngineError for an empty prompt or completion,
    a sample of another prompt, or a group whose parent sample is not in the tree.
    """

    def __init__(self, groups: Sequence[Group]) -> None:
        self.groups = list(groups)
        self.nodes: list[Node] = []
        self.roots: dict[int, int] = {}
        self.prompt_end: list[int] = []
        self.leaves: list[list[int | None]] = []
        self._leaf_of: dict[int, int] = {}
        extended = {id(g.parent) for g in self.groups if g.parent is not None}
        for group in self.groups:
            self._add(group, extended)

    @property
    def rows(self) -> int:
        """Rows that enter each linear layer: the tree's token count."""
        return sum(len(n.ids) for n in self.nodes)

    @property
    def flat_tokens(self) -> int:
        """Rows that separate, unshared sequences would take."""
        return sum(len(g.prompt_ids) + len(s.token_ids) - 1 for g in self.groups for s in g.samples)

    def _add(self, group: Group, extended: set[int]) -> None:
        if not len(group.prompt_ids):
            raise EngineError("group.prompt_ids: a prompt needs at least one token")
        prompt = _ids(group.prompt_ids, "group.prompt_ids")
        start, at = 0, ROOT
        if group.parent is not None:
            at = self._leaf_of.get(id(group.parent), ROOT)
            start = len(group.parent.prompt_ids) + len(group.parent.token_ids)
            if at == ROOT or group.prompt_ids[:start] != group.parent.prompt_ids + group.parent.token_ids:
                raise EngineError(
                    "group.parent: the parent sample must stand earlier in the tree and begin this group's "
                    "prompt; give both groups one `tree` key"
                )
        for sample in group.samples:
            if sample.prompt_ids is not group.prompt_ids and list(sample.prompt_ids) != list(
                group.prompt_ids
            ):
                raise EngineError("group: a sample's prompt is not the group's")
        end = self._insert(prompt[start:], at, start)
        self.prompt_end.append(end)
        self.leaves.append([self._add_leaf(s, end, len(prompt), id(s) in extended) for s in group.samples])

    def _add_leaf(self, sample: Sample, parent: int, depth: int, extended: bool) -> int | None:
        if not len(sample.token_ids):
            raise EngineError("sample.token_ids: a sample needs at least one token")
        ids = _ids(sample.token_ids, "sample.token_ids")
        if not extended:
            ids = ids[:-1]
        if not len(ids):
            return None
        self.nodes.append(Node(ids, parent, depth, leaf=True))
        self._leaf_of[id(sample)] = len(self.nodes) - 1
        return len(self.nodes) - 1

    def _insert(self, ids: Ids, at: int, depth: int) -> int:
        """Insert ``ids`` below node ``at``, splitting and adding prompt nodes; returns their last node."""
        while len(ids):
            children = self.roots if at == ROOT else self.nodes[at].children
            child = children.get(int(ids[0]))
            if child is None:
                self.nodes.append(Node(ids, at, depth))
                children[int(ids[0])] = len(self.nodes) - 1
                return len(self.nodes) - 1
            shared = common_prefix(self.nodes[child].ids.tolist(), ids.tolist())
            if shared < len(self.nodes[child].ids):
                child = self._split(child, shared, children)
            ids, at, depth = ids[shared:], child, depth + shared
        return at

    def _split(self, index: int, length: int, siblings: dict[int, int]) -> int:
        """Split node ``index`` after ``length`` tokens; returns the new upper part.

        The lower part keeps the index, so that `prompt_end` and `leaves` stay valid.
        """
        lower = self.nodes[index]
        upper = Node(lower.ids[:length], lower.parent, lower.depth, children={int(lower.ids[length]): index})
        self.nodes.append(upper)
        siblings[int(upper.ids[0])] = len(self.nodes) - 1
        lower.ids, lower.parent, lower.depth = lower.ids[length:], len(self.nodes) - 1, lower.depth + length
        return len(self.nodes) - 1

    def order(self) -> list[int]:
        """Node indices, parents first, prompt nodes before leaves: a trunk is one range of rows."""
        order: list[int] = []
        inner = [i for i, n in enumerate(self.nodes) if n.parent == ROOT]
        below: dict[int, list[int]] = {}
        for i, node in enumerate(self.nodes):
            below.setdefault(node.parent, []).append(i)
        late: list[int] = []
        stack = list(reversed(inner))
        while stack:
            i = stack.pop()
            order.append(i)
            children = below.get(i, [])
            late.extend(c for c in children if self.nodes[c].leaf)
            stack.extend(c for c in reversed(children) if not self.nodes[c].leaf)
            if not stack and late:
                stack.extend(reversed(late))
                late.clear()
        return order


def _ids(values: Sequence[int], what: str) -> Ids:
    """Token ids as int64. Raises EngineError, naming ``what``, for anything but whole numbers."""
    try:
        ids = np.asarray(values)
    except ValueError:  # lists of several lengths
        ids = np.empty(0)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise EngineError(f"{what} should be a list of token ids, not {short(values)}")
    return ids.astype(np.int64, copy=False)
