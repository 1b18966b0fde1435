"""The prefix tree over KV pages: which page holds which tokens after which tokens.

One node is one page. A path from the root spells token ids; only a node that holds a whole page can have
children. A node is announced before it is computed (`filled` counts the computed tokens), so that requests
which arrive together see that another one is already computing what they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True, eq=False)
class PageNode:
    """One page that holds, or will hold, the ids ``tokens``; the KV of the first ``filled`` is computed."""

    parent: PageNode | None
    tokens: tuple[int, ...]
    page: int
    filled: int = 0
    live: bool = True  # in a tree
    tick: int = 0  # when it last lost its last owner
    full: dict[tuple[int, ...], PageNode] = field(default_factory=dict)  # children that hold a whole page
    heads: dict[int, list[PageNode]] = field(default_factory=dict)  # all children, by first id

    def children(self) -> Iterator[PageNode]:
        """Children, grouped by first id in the order of arrival."""
        for nodes in self.heads.values():
            yield from nodes

    def descendants(self) -> Iterator[PageNode]:
        """All nodes below this one, parents first."""
        stack = list(self.children())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children())

    def covers(self, tokens: tuple[int, ...], size: int) -> bool:
        """Whether a child already holds ``tokens``, or more that begins with them."""
        if len(tokens) == size:
            return tokens in self.full
        return any(child.tokens[: len(tokens)] == tokens for child in self.heads.get(tokens[0], ()))

    def add(self, child: PageNode, size: int) -> None:
        """Link ``child`` under this node."""
        self.heads.setdefault(child.tokens[0], []).append(child)
        if len(child.tokens) == size:
            self.full[child.tokens] = child

    def remove(self, child: PageNode, size: int) -> None:
        """Unlink the childless ``child``."""
        assert not child.heads, "only leaves leave the tree"
        same_head = self.heads[child.tokens[0]]
        same_head.remove(child)
        if not same_head:
            del self.heads[child.tokens[0]]
        if len(child.tokens) == size:
            del self.full[child.tokens]
        child.live = False


@dataclass(slots=True, eq=False)
class PrefixTree:
    """The prefix tree of one namespace. ``dropped``: its weights are gone; nothing is added or matched."""

    root: PageNode
    dropped: bool = False


@dataclass(slots=True, frozen=True)
class Match:
    """The longest known beginning of some ids.

    nodes: whole computed pages to share. source, overlap: a page whose first ``overlap`` computed tokens
    continue them, to be copied. wait, needed: the last page that a live sequence is computing for these ids;
    everything is there once ``wait.filled >= needed``.
    """

    nodes: tuple[PageNode, ...] = ()
    source: PageNode | None = None
    overlap: int = 0
    wait: PageNode | None = None
    needed: int = 0

    def blocked(self) -> bool:
        """Whether the page waited for still has a writer and is not computed. Cheap: no new search."""
        return self.wait is not None and self.wait.live and self.wait.filled < self.needed

    def without_copy(self) -> Match:
        """The shared pages only."""
        return Match(self.nodes)


def common_prefix(a: Ids[int], b: Ids[int]) -> int:
    """Length of the longest common prefix of two lists, or of two tuples.

    Bisects on slices, which compare at C speed.
    """
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def search(tree: PrefixTree, ids: Ids[int], size: int) -> Match:
    """The longest known beginning of ``ids`` with pages of ``size`` tokens.

    It never includes the last id, which must be computed to give the logits.
    """
    node, nodes, at, usable = tree.root, list[PageNode](), 0, len(ids) - 1
    wait, needed = None, 0
    while at + size <= usable:
        child = node.full.get(tuple(ids[at : at + size]))
        if child is None:
            break
        if child.filled < size:
            wait, needed = child, size  # go on: the last shared page is the one to wait for
        else:
            nodes.append(child)
        node, at = child, at + size
    rest = tuple(ids[at : min(at + size, usable)])
    source, overlap, longest = None, 0, 0
    for child in node.heads.get(rest[0], ()) if rest else ():
        agreed = common_prefix(child.tokens, rest)
        if min(agreed, child.filled) > overlap:
            source, overlap = child, min(agreed, child.filled)
        if agreed > longest:
            longest, furthest = agreed, child
    if longest > overlap:
        wait, needed = furthest, longest
    return Match(tuple(nodes), source, overlap, wait, needed)


def sharing_order(prompts: list[list[int]], lengths: list[int] | None = None) -> list[int]:
    """The order in which to compute prompts that arrive together: walks their trie, first the branch with the
    longest of ``lengths`` (what is expected of each prompt's samples, in any unit), then the heaviest.

    What takes longest begins first, so that it does not run alone at the end.
    Of a dialogue's turns (each a longer piece of the trunk with a tail of its own) the deepest comes first:
    it computes the trunk, and from the next step on the others need only their tails. Shallow first, every
    turn would wait for the one before. Unrelated prompts and branches of equal weight keep their order.
    """
    lengths = lengths or [0] * len(prompts)
    ranked = sorted(range(len(prompts)), key=lambda i: (prompts[i], i))
    depth = [common_prefix(prompts[a], prompts[b]) for a, b in pairwise(ranked)]
    order: list[int] = []
    stack = [(0, len(ranked))] if ranked else []
    while stack:
        first, end = stack.pop()
        if end - first == 1:
            order.append(ranked[first])
            continue
        shared = min(depth[first : end - 1])
        cuts = [k + 1 for k in range(first, end - 1) if depth[k] == shared]
        branches = [
            (-max(lengths[i] for i in ranked[lo:hi]), -(hi - lo) if shared else 0, min(ranked[lo:hi]), lo, hi)
            for lo, hi in zip([first, *cuts], [*cuts, end], strict=True)
        ]
        stack.extend((lo, hi) for _, _, _, lo, hi in sorted(branches, reverse=True))
    return order
