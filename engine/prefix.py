"""The prefix tree over KV pages: which page holds which tokens behind which tokens.

One node is one page. A path from the root spells token ids; only a node that holds a whole page can have
children. A node is announced before it is computed (`filled` counts the computed tokens), so that requests
arriving together can see that somebody is already at work on what they share.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Ids
from dataclasses import dataclass, field
from itertools import pairwise


@dataclass(slots=True, eq=False)
class Node:
    """One page. `tokens` are the ids it holds or will hold; the KV of the first `filled` of them is
    computed.
    """

    parent: Node | None
    tokens: tuple[int, ...]
    page: int
    filled: int = 0
    live: bool = True  # in a tree
    tick: int = 0  # when it last lost its last owner
    full: dict[tuple[int, ...], Node] = field(default_factory=dict)  # children that hold a whole page
    heads: dict[int, list[Node]] = field(default_factory=dict)  # all children, by first id

    def children(self) -> Iterator[Node]:
        """Children in the order of their first ids' arrival."""
        for nodes in self.heads.values():
            yield from nodes

    def descendants(self) -> Iterator[Node]:
        """All nodes below this one, parents first."""
        stack = list(self.children())
        while stack:
            node = stack.pop()
            yield node
            stack.extend(node.children())

    def covers(self, tokens: tuple[int, ...], size: int) -> bool:
        """True when a child already stands for `tokens`, or for more that begins with them."""
        if len(tokens) == size:
            return tokens in self.full
        return any(child.tokens[: len(tokens)] == tokens for child in self.heads.get(tokens[0], ()))

    def add(self, child: Node, size: int) -> None:
        """Hang `child` under this node."""
        self.heads.setdefault(child.tokens[0], []).append(child)
        if len(child.tokens) == size:
            self.full[child.tokens] = child

    def remove(self, child: Node, size: int) -> None:
        """Take the childless `child` off this node."""
        assert not child.heads, "only leaves leave the tree"
        same_head = self.heads[child.tokens[0]]
        same_head.remove(child)
        if not same_head:
            del self.heads[child.tokens[0]]
        if len(child.tokens) == size:
            del self.full[child.tokens]
        child.live = False


@dataclass(slots=True, eq=False)
class Tree:
    """The prefix tree of one namespace. `dropped`: its weights are gone, nothing is added or found any
    more.
    """

    root: Node
    dropped: bool = False


@dataclass(slots=True, frozen=True)
class Match:
    """What a tree knows about the beginning of some ids.

    nodes: whole computed pages to share. source, overlap: a page whose first `overlap` computed tokens go on
    from there: copy on write. wait, needed: the last page that a live sequence is computing for these ids:
    all is there once `wait.filled >= needed`.
    """

    nodes: tuple[Node, ...] = ()
    source: Node | None = None
    overlap: int = 0
    wait: Node | None = None
    needed: int = 0

    def blocked(self) -> bool:
        """True while the page waited for has a writer and is not there yet. A look at two fields, no new
        search.
        """
        return self.wait is not None and self.wait.live and self.wait.filled < self.needed

    def without_copy(self) -> Match:
        """The shared pages only."""
        return Match(self.nodes)


def common_prefix(a: Ids[int], b: Ids[int]) -> int:
    """Number of equal leading ids."""
    count = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        count += 1
    return count


def search(tree: Tree, ids: Ids[int], size: int) -> Match:
    """Longest known beginning of `ids` (`size` tokens a page), never all of them: the last one gives the
    logits.
    """
    node, nodes, at, usable = tree.root, list[Node](), 0, len(ids) - 1
    wait, needed = None, 0
    while at + size <= usable:
        child = node.full.get(tuple(ids[at : at + size]))
        if child is None:
            break
        if child.filled < size:
            wait, needed = child, size  # and on: what matters is when the last shared page is there
        else:
            nodes.append(child)
        node, at = child, at + size
    rest = ids[at : min(at + size, usable)]
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


def common_length(a: list[int], b: list[int]) -> int:
    """`common_prefix` of long lists: halves slices, which compare at C speed."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def sharing_order(prompts: list[list[int]]) -> list[int]:
    """Order in which prompts that arrive together are best computed: walks their trie, the branch with most
    prompts first.

    Of the turns of one dialogue (each a longer piece of the trunk with a tail of its own) the deepest comes
    first: it computes the trunk, and all others need only their tails from the next step on. Shallow first,
    every turn would wait for the one before. Prompts that share nothing, and branches of equal weight, keep
    their order.
    """
    ranked = sorted(range(len(prompts)), key=lambda i: (prompts[i], i))
    depth = [common_length(prompts[a], prompts[b]) for a, b in pairwise(ranked)]
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
            (-(hi - lo) if shared else 0, min(ranked[lo:hi]), lo, hi)
            for lo, hi in zip([first, *cuts], [*cuts, end], strict=True)
        ]
        stack.extend((lo, hi) for _, _, lo, hi in sorted(branches, reverse=True))
    return order
