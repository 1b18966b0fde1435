"""Sequences and the pages of the KV cache that they own and share.

A page holds the keys and values of `page_size` consecutive tokens. A prompt that begins like an earlier one
takes its pages (`page_cache.py`) instead of computing them. Shared pages are never written: a sequence that
diverges inside a page copies the part it agrees on.

The pool is a state machine over integers. It has no tensors: the sampler executes the copies it asks for. And
it reserves nothing: the scheduler decides who may allocate how much.

`PagePool.check` asserts four rules:

1. a page is free, or cached (known content, no owner), or referenced; its references are the block tables
   that name it, plus pins and holds;
2. a page that will still be written has one owner;
3. a referenced node's ancestors are referenced, so every cached page can be evicted, leaf first;
4. a node that is not computed has a live writer, so whoever waits for it waits for progress.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from collections.abc import Sequence as Ids
from dataclasses import dataclass

from proactor.engine.page_cache import OutOfPages, PageCache
from proactor.engine.prefix import Match, PageNode, PrefixTree

Copy = tuple[int, int, int]
"""(source page, destination page, leading tokens to copy)."""


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


class PagePool(PageCache):
    """The sequences that own pages, and what else keeps them.

    Counters: that of `PageCache`, `hits` (prompt tokens taken from a tree instead of computed), `copies`
    (page copies requested).
    """

    def __init__(self, num_pages: int, page_size: int = 16) -> None:
        super().__init__(num_pages, page_size)
        self.hits = 0
        self.copies = 0
        self._live: dict[Sequence, None] = {}
        self._pins: list[int] = []
        self._holds: Counter[int] = Counter()

    # -- readings ---

    @property
    def held(self) -> int:
        """Pages that are held, each counted once."""
        return len(self._holds)

    @property
    def live(self) -> int:
        """Sequences that are open."""
        return len(self._live)

    def own(self, seq: Sequence) -> int:
        """Pages that only this sequence uses: `available` rises by so many when it is closed."""
        return sum(self._refs[page] == 1 for page in seq.block_table)

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
        self._check_pages(owners, writers)
