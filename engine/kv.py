"""Pages of the KV cache: who owns which page, and which tokens it holds.

A page holds the keys and values of `page_size` consecutive tokens. Pages whose content is known are linked in
a prefix tree, one tree a namespace (adapter or none, weights epoch, KV dtype): a prompt that begins like an
earlier one takes its pages instead of computing them. Shared pages are never written: a sequence that
diverges inside a page copies the part it agrees on.

The pool is a state machine over integers. It has no tensors: the sampler executes the copies it asks for. It
has no clock: "least recently used" counts releases. And it reserves nothing: the scheduler decides who may
allocate how much.

`PagePool.check` asserts four rules:

1. a page is free, or cached (known content, no owner), or referenced; its references are the block tables
   that name it, plus pins and holds;
2. a page that will still be written has one owner;
3. a referenced node's ancestors are referenced, so every cached page can be evicted, leaf first;
4. a node that is not computed has a live writer, so whoever waits for it waits for progress.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Hashable
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from proactor.engine.prefix import Match, PageNode, PrefixTree, search
from proactor.engine.types import EngineError

Copy = tuple[int, int, int]
"""(source page, destination page, leading tokens to copy)."""


class OutOfPages(RuntimeError):
    """More pages were asked for than `PagePool.available`."""


@dataclass(slots=True, eq=False)
class Sequence:
    """The pages of ``prompt + generated``, of which the first ``computed`` tokens have their KV written.

    ``block_table[i]`` is the page of tokens ``i * page_size ...``, ``nodes[i]`` its tree node or None.
    """

    tree: PrefixTree
    prompt: list[int]
    generated: list[int]
    block_table: list[int]
    nodes: list[PageNode | None]
    computed: int


class PagePool:
    """Reference-counted pages and the prefix trees over them.

    Counters: `hits` (prompt tokens taken from a tree instead of computed), `copies` (page copies requested),
    `evictions` (cached pages given up for room).
    """

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        if num_pages < 1 or page_size < 1:
            raise EngineError(f"num_pages and page_size must be positive, got {num_pages} and {page_size}")
        self.num_pages = num_pages
        self.page_size = page_size
        self.hits = 0
        self.copies = 0
        self.evictions = 0
        self._free = list(range(num_pages - 1, -1, -1))
        self._refs = [0] * num_pages
        self._node: list[PageNode | None] = [None] * num_pages
        self._cached = 0
        self._trees: dict[Hashable, PrefixTree] = {}
        self._live: dict[Sequence, None] = {}
        self._pins: list[int] = []
        self._holds: Counter[int] = Counter()
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
        """Pages referenced by live sequences, pinned as the source of a copy, or held."""
        return self.num_pages - self.available

    @property
    def held(self) -> int:
        """Pages that are held, each counted once."""
        return len(self._holds)

    @property
    def live(self) -> int:
        """Sequences that are open."""
        return len(self._live)

    def pages_for(self, tokens: int) -> int:
        """Pages that ``tokens`` tokens occupy."""
        return -(-tokens // self.page_size)

    def own(self, seq: Sequence) -> int:
        """Pages that only this sequence uses: `available` rises by so many when it is closed."""
        return sum(self._refs[page] == 1 for page in seq.block_table)

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

    # -- pages ---

    def _offer(self, node: PageNode) -> None:
        """Offer an idle leaf for eviction. Entries are checked when popped; stale ones are swept at times."""
        heapq.heappush(self._heap, (node.tick, node.page, node))
        if len(self._heap) > 4 * self.num_pages + 64:
            self._heap = sorted({entry[1]: entry for entry in self._heap if self._evictable(entry)}.values())

    def _evictable(self, entry: tuple[int, int, PageNode]) -> bool:
        tick, page, node = entry
        return node.live and node.tick == tick and not node.heads and self._refs[page] == 0

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

    # -- sequences ---

    def open(self, namespace: Hashable, prompt: list[int], match: Match) -> tuple[Sequence, Copy | None]:
        """Pages for a prompt: those of ``match`` are shared, new ones are announced in the tree.

        Returns the sequence, whose `computed` tokens are those of the match, and the copy to run before its
        first step, whose source is pinned until `settle`. Raises OutOfPages when
        ``cost(match, len(prompt)) > available``.
        """
        cost = self.cost(match, len(prompt))
        if cost > self.available:
            raise OutOfPages(f"{cost} pages needed, {self.available} available")
        tree = self._trees.setdefault(namespace, PrefixTree(PageNode(None, (), -1)))
        size, shared = self.page_size, len(match.nodes)
        for node in match.nodes:
            self._retain(node.page)
        if match.source is not None:
            self._retain(match.source.page)
            self._pins.append(match.source.page)
        pages = [node.page for node in match.nodes]
        pages.extend(self._acquire() for _ in range(self.pages_for(len(prompt)) - shared))
        seq = Sequence(tree, prompt, [], pages, list(match.nodes), shared * size + match.overlap)
        parent: PageNode | None = match.nodes[-1] if match.nodes else tree.root
        for i in range(shared, len(pages)):
            # filled is 0 even where the page begins with copied tokens: the copy has not run yet
            parent = (
                self._insert(parent, tuple(prompt[i * size : (i + 1) * size]), pages[i], 0)
                if parent
                else None
            )
            seq.nodes.append(parent)
        self._live[seq] = None
        self.hits += seq.computed
        if match.source is None:
            return seq, None
        self.copies += 1
        return seq, (match.source.page, pages[shared], match.overlap)

    def advance(self, seq: Sequence, count: int) -> None:
        """Mark the next ``count`` tokens of the prompt as computed: others may share them now."""
        size, first = self.page_size, seq.computed // self.page_size
        seq.computed += count
        for i in range(first, self.pages_for(seq.computed)):
            node = seq.nodes[i]
            if node is not None:
                node.filled = min(len(node.tokens), seq.computed - i * size)

    def fork(self, seq: Sequence) -> tuple[Sequence, Copy | None]:
        """A sibling of a computed prompt: shares its full pages, copies a partial last one."""
        full, tail = divmod(len(seq.prompt), self.page_size)
        pages = seq.block_table[:full]
        for page in pages:
            self._refs[page] += 1
        child = Sequence(seq.tree, seq.prompt, [], pages, seq.nodes[:full], len(seq.prompt))
        self._live[child] = None
        if not tail:
            return child, None
        self.grow(child)
        self.copies += 1
        return child, (seq.block_table[full], pages[-1], tail)

    def grow(self, seq: Sequence) -> None:
        """One more page at the end of the block table."""
        seq.block_table.append(self._acquire())
        seq.nodes.append(None)

    def settle(self) -> None:
        """Unpin the sources of copies, which have run now."""
        for page in self._pins:
            self._release(page)
        self._pins.clear()

    def close(self, seq: Sequence, keep: bool = True) -> None:
        """Release all pages. With ``keep``, computed tokens stay in the tree until evicted; without, only the
        whole computed pages that the tree already holds.
        """
        del self._live[seq]
        if not seq.tree.dropped:
            self._withdraw(seq)
            if keep:
                self._publish(seq)
        for page in reversed(seq.block_table):
            self._release(page)

    def _withdraw(self, seq: Sequence) -> None:
        """Unlink pages that this sequence announced but did not compute, and partial ones it extended."""
        for i in range(len(seq.nodes) - 1, -1, -1):
            node = seq.nodes[i]
            if node is None or not node.live:
                continue
            if node.filled == self.page_size:
                break
            if node.filled < len(node.tokens) or len(node.tokens) < seq.computed - i * self.page_size:
                self._detach(node)

    def _publish(self, seq: Sequence) -> None:
        """Link all computed pages that the tree does not hold yet."""
        size, ids = self.page_size, seq.prompt + seq.generated
        parent = seq.tree.root
        for i, page in enumerate(seq.block_table):
            tokens = tuple(ids[i * size : min((i + 1) * size, seq.computed)])
            if not tokens:
                return
            node = self._node[page]
            if node is None:
                if self._refs[page] > 1 and i and parent.page != seq.block_table[i - 1]:
                    # The tree holds a different copy of the previous page, and siblings still use this one:
                    # it cannot be linked.
                    return
                node = self._insert(parent, tokens, page, len(tokens)) or parent.full.get(tokens)
            if node is None or node.filled < size:
                return
            parent = node

    # -- holds ---

    def hold(self, namespace: Hashable, ids: Ids[int], spare: int) -> list[int]:
        """Keep the pages of the longest known beginning of ``ids`` from being evicted, until `let_go`.

        None of them, where `available` would fall by more than ``spare``.
        """
        match = self.match(namespace, ids)
        nodes = [*match.nodes, *([match.source] if match.source is not None else [])]
        if sum(self._refs[node.page] == 0 for node in nodes) > spare:
            return []
        pages = [node.page for node in nodes]
        for page in pages:
            self._retain(page)
        self._holds.update(pages)
        return pages

    def let_go(self, pages: list[int]) -> None:
        """End one `hold`."""
        self._holds.subtract(pages)
        self._holds = +self._holds
        for page in reversed(pages):
            self._release(page)

    # -- invariants ---

    def check(self) -> None:
        """Assert the four rules of the module docstring. Walks everything: for tests and for debugging."""
        owners = [0] * self.num_pages
        writers: set[PageNode] = set()
        for seq in self._live:
            assert len(set(seq.block_table)) == len(seq.block_table), "a block table names a page twice"
            assert len(seq.nodes) == len(seq.block_table), "nodes and block table differ in length"
            writers.update(node for node in seq.nodes if node is not None)
            for page in seq.block_table:
                owners[page] += 1
        for seq in self._live:
            for page in seq.block_table[seq.computed // self.page_size :]:
                assert owners[page] == 1, f"page {page} will be written and has {owners[page]} owners"
        for page in (*self._pins, *self._holds.elements()):
            owners[page] += 1
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

    def _check_node(self, node: PageNode, writers: set[PageNode]) -> None:
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
