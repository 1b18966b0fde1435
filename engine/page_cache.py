"""Which pages are free, referenced, or cached for what they hold.

Pages whose content is known are linked in a prefix tree, one tree a namespace (adapter or none, weights
epoch, KV dtype). A linked page that nothing refers to any more is cached. Where no page is free, cached ones
are evicted, leaf first, the least recently used before others. There is no clock: that counts releases.

A state machine over integers, without tensors. `kv.PagePool` knows who refers to a page.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Hashable
from collections.abc import Sequence as Ids

from proactor.engine.prefix import Match, PageNode, PrefixTree, search
from proactor.engine.types import EngineError


class OutOfPages(RuntimeError):
    """More pages were asked for than `PageCache.available`."""


class PageCache:
    """Reference-counted pages and the prefix trees over them.

    Counter: `evictions` (cached pages given up for room).
    """

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        if num_pages < 1 or page_size < 1:
            raise EngineError(f"num_pages and page_size must be positive, got {num_pages} and {page_size}")
        self.num_pages = num_pages
        self.page_size = page_size
        self.evictions = 0
        self._free = list(range(num_pages - 1, -1, -1))
        self._refs = [0] * num_pages
        self._node: list[PageNode | None] = [None] * num_pages
        self._cached = 0
        self._trees: dict[Hashable, PrefixTree] = {}
        self._heap: list[tuple[int, int, PageNode]] = []
        self._tick = 0

    # -- readings ---

    @property
    def available(self) -> int:
        """Pages that can be allocated now: free ones, and cached ones, which are evicted for it."""
        return len(self._free) + self._cached

    @property
    def cached(self) -> int:
        """Pages kept for their content, without an owner."""
        return self._cached

    @property
    def used(self) -> int:
        """Pages that are referenced."""
        return self.num_pages - self.available

    def pages_for(self, tokens: int) -> int:
        """Pages that ``tokens`` tokens occupy."""
        return -(-tokens // self.page_size)

    # -- the prefix trees ---

    def match(self, namespace: Hashable, ids: Ids[int]) -> Match:
        """Longest known beginning of ``ids``, never the last one. No reference is taken: use it at once."""
        tree = self._trees.get(namespace)
        return Match() if tree is None else search(tree, ids, self.page_size)

    def cost(self, match: Match, tokens: int) -> int:
        """By how much `available` falls when a prompt of ``tokens`` ids is opened with this match."""
        idle = sum(self._refs[node.page] == 0 for node in match.nodes)
        pinned = match.source is not None and self._refs[match.source.page] == 0
        return self.pages_for(tokens) - len(match.nodes) + idle + pinned

    def drop_namespace(self, namespace: Hashable) -> int:
        """Forget a namespace; returns the pages freed. Referenced ones are freed when they are released."""
        tree = self._trees.pop(namespace, None)
        if tree is None:
            return 0
        tree.dropped = True
        before = len(self._free)
        for node in tree.root.descendants():
            node.live = False
            self._node[node.page] = None
            if self._refs[node.page] == 0:
                self._cached -= 1
                self._free.append(node.page)
        return len(self._free) - before

    def drop_all(self) -> None:
        """`drop_namespace` of every namespace: for a cache that loses its memory."""
        for namespace in list(self._trees):
            self.drop_namespace(namespace)

    def _insert(self, parent: PageNode, tokens: tuple[int, ...], page: int, filled: int) -> PageNode | None:
        """Link a page under ``parent``; None where the tree already holds these tokens."""
        if parent.covers(tokens, self.page_size):
            return None
        node = PageNode(parent, tokens, page, filled)
        parent.add(node, self.page_size)
        self._node[page] = node
        return node

    def _detach(self, node: PageNode) -> None:
        """Take a leaf out of its tree; its page keeps its references."""
        parent = node.parent
        assert parent is not None, "the root stays"
        parent.remove(node, self.page_size)
        self._node[node.page] = None
        if parent.parent is not None and not parent.heads and self._refs[parent.page] == 0:
            self._offer(parent)

    # -- references ---

    def _acquire(self) -> int:
        while not self._free:
            if not self._heap:
                raise OutOfPages(f"all {self.num_pages} pages are in use")
            entry = heapq.heappop(self._heap)
            if self._evictable(entry):
                self._detach(entry[2])
                self._cached -= 1
                self.evictions += 1
                self._free.append(entry[1])
        page = self._free.pop()
        self._refs[page] = 1
        return page

    def _retain(self, page: int) -> None:
        if self._refs[page] == 0:
            self._cached -= 1
        self._refs[page] += 1

    def _release(self, page: int) -> None:
        self._refs[page] -= 1
        if self._refs[page]:
            return
        node = self._node[page]
        if node is None:
            self._free.append(page)
            return
        self._cached += 1
        self._tick += 1
        node.tick = self._tick
        if not node.heads:
            self._offer(node)

    def _offer(self, node: PageNode) -> None:
        """Offer an idle leaf for eviction. Entries are checked when popped; stale ones are swept at times."""
        heapq.heappush(self._heap, (node.tick, node.page, node))
        if len(self._heap) > 4 * self.num_pages + 64:
            self._heap = sorted({entry[1]: entry for entry in self._heap if self._evictable(entry)}.values())

    def _evictable(self, entry: tuple[int, int, PageNode]) -> bool:
        tick, page, node = entry
        return node.live and node.tick == tick and not node.heads and self._refs[page] == 0

    # -- invariants ---

    def _check_pages(self, owners: list[int], writers: Collection[PageNode]) -> None:
        """Assert the rules of trees and pages. ``owners``: references of each page; ``writers``: nodes that a
        sequence may be computing.
        """
        assert owners == self._refs, "reference counts differ from block tables, pins and holds"
        nodes = [node for tree in self._trees.values() for node in tree.root.descendants()]
        held = {page for page, node in enumerate(self._node) if node is not None}
        assert len(nodes) == len(held) and all(self._node[node.page] is node for node in nodes), (
            "tree and pages differ"
        )
        for node in nodes:
            self._check_node(node, writers)
        idle = {page for page in range(self.num_pages) if owners[page] == 0}
        assert len(idle & held) == self._cached, "the count of cached pages is wrong"
        assert sorted(self._free) == sorted(idle - held), (
            "a page leaked, is free twice, or is free and in use"
        )

    def _check_node(self, node: PageNode, writers: Collection[PageNode]) -> None:
        idle, parent = self._refs[node.page] == 0, node.parent
        assert parent is not None and node.live
        assert 0 < len(node.tokens) <= self.page_size and 0 <= node.filled <= len(node.tokens)
        assert all(
            nodes and {child.tokens[0] for child in nodes} == {head} for head, nodes in node.heads.items()
        )
        assert set(node.full.values()) == {
            child for child in node.children() if len(child.tokens) == self.page_size
        }
        assert not node.heads or len(node.tokens) == self.page_size, "a partial page has children"
        assert node.filled == len(node.tokens) or (node in writers and not idle), (
            "a page waits for a lost writer"
        )
        assert idle or parent.parent is None or self._refs[parent.page], (
            "a referenced page hangs under an idle one"
        )
        if idle and not node.heads:
            assert any(e[2] is node and self._evictable(e) for e in self._heap), (
                "an idle leaf cannot be evicted"
            )
